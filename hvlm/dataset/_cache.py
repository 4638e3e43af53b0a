"""Decoded clips kept in memory.

Small sets are seen many times in one command (several epochs, several stages), and decoding costs more than a small
model's step. The cache belongs to the process, so that the stages of a chain share it; forked workers start with what
is there and keep their own additions. It fills up and then stays: with random order over more than fits, throwing out
the oldest would only ever throw out what is needed next.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np


class Clip(NamedTuple):
    """A sample's JSON, its frames uint8 [T, 3, H, W] and their seconds float32 [T]. Shared: not to be changed."""

    sample: dict[str, Any]
    frames: np.ndarray
    times: np.ndarray


class ClipCache:
    """Clips by key, up to a number of bytes of pixels."""

    def __init__(self) -> None:
        self._clips: dict[Hashable, Clip] = {}
        self.bytes = 0

    def get(self, key: Hashable, make: Callable[[], Clip], limit: int) -> Clip:
        """The clip under ``key``. An absent one is made, and kept if all together stay below ``limit`` bytes."""
        clip = self._clips.get(key)
        if clip is None:
            clip = make()
            if self.bytes + clip.frames.nbytes <= limit:
                self._clips[key] = clip
                self.bytes += clip.frames.nbytes
        return clip


SHARED = ClipCache()
