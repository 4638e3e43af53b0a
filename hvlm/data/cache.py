"""Decoded clips, and what is computed from their pixels, kept in memory.

Small sets are seen many times in one command (several epochs, several stages), and decoding costs more than a small
model's step. The cache belongs to the process, so that the stages of a chain share it; forked workers start with what
is there and keep their own additions. It fills up and then stays: with random order over more than fits, throwing out
the oldest would only ever throw out what is needed next.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np


class Clip(NamedTuple):
    """A sample's JSON, its frames uint8 [T, 3, H, W] and their seconds float32 [T]. Shared: not to be changed."""

    sample: dict[str, Any]
    frames: np.ndarray
    times: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.frames.nbytes


class Sized(Protocol):
    """What can be kept: a clip, or an array."""

    @property
    def nbytes(self) -> int: ...


Kept = TypeVar("Kept", bound=Sized)


class ClipCache:
    """Clips and their motion by key, up to a number of bytes of pixels and motion.

    A clip's motion has a key of its own, so that stages with and without it share the pixels.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}
        self.bytes = 0

    def get(self, key: Hashable, make: Callable[[], Kept], limit: int) -> Kept:
        """What is kept under ``key``. If absent it is made, and kept if all together stay below ``limit`` bytes."""
        value = self._kept.get(key)
        if value is None:
            value = make()
            if self.bytes + value.nbytes <= limit:
                self._kept[key] = value
                self.bytes += value.nbytes
        return value


SHARED = ClipCache()
