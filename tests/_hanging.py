"""Decoders that do what decoders should not, for the process that decodes: it imports them by name."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator

import numpy as np

from hvlm.data.decode import Chunk
from hvlm.data.decode import sampled as honest
from hvlm.dataset._haystack import decode_source

MARK = b"hang"  # videos that begin so are not survived


def asleep(video: bytes, *args) -> Iterator[Chunk]:
    """Hangs in Python."""
    if not video.startswith(MARK):
        yield from honest(video, *args)
        return
    while True:
        time.sleep(1)


def stuck(video: bytes, *args) -> Iterator[Chunk]:
    """Hangs in C and holds the global lock: no thread and no signal handler of the process gets a turn."""
    if video.startswith(MARK):
        ctypes.PyDLL(None).sleep(3600)
    yield from honest(video, *args)


def dying(video: bytes, *args) -> Iterator[Chunk]:
    """Takes its process with it."""
    if video.startswith(MARK):
        os.abort()
    yield from honest(video, *args)


def slow(video: bytes, *args) -> Iterator[Chunk]:
    """Each frame in time, all together not."""
    for _ in range(4):
        time.sleep(0.3)
        yield Chunk(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1), (8, 8))


def greedy() -> None:
    raise MemoryError


def wrong() -> None:
    raise ZeroDivisionError("a mistake of ours")


def numbers(count: int, size: int) -> Iterator[np.ndarray]:
    """Arrays too large for the socket, each filled with its number."""
    for i in range(count):
        yield np.full(size * (i + 1), i, np.uint8)


def identity() -> int:
    return os.getpid()


def asleep_at(*args) -> Iterator[Chunk]:
    """Hangs whatever it is given."""
    while True:
        time.sleep(1)
    yield args


def asleep_source(video, *args) -> dict:
    """Of a haystack's video: hangs in Python where it begins so."""
    while video.path.read_bytes().startswith(MARK):
        time.sleep(1)
    return decode_source(video, *args)
