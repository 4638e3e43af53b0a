"""How stored pixels are turned and mirrored to stand upright: one function for display matrices and for EXIF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Orientation(NamedTuple):
    """Where a stored pixel is shown: x' = a x + c y and y' = b x + d y, each of the four -1, 0 or 1."""

    a: int = 1
    b: int = 0
    c: int = 0
    d: int = 1

    @property
    def swaps(self) -> bool:
        """Whether rows become columns, so that height and width change places."""
        return self.a == 0


UPRIGHT = Orientation()
_EXIF = {
    1: UPRIGHT,
    2: Orientation(-1, 0, 0, 1),
    3: Orientation(-1, 0, 0, -1),
    4: Orientation(1, 0, 0, -1),
    5: Orientation(0, 1, 1, 0),
    6: Orientation(0, 1, -1, 0),
    7: Orientation(0, -1, -1, 0),
    8: Orientation(0, -1, 1, 0),
}


def from_matrix(matrix: Sequence[int]) -> Orientation:
    """The orientation nearest to a display matrix: nine numbers, row after row, as containers store them."""
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return Orientation(0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def from_rotation(degrees: float) -> Orientation:
    """The orientation nearest to a counter-clockwise turn."""
    return (UPRIGHT, _EXIF[8], _EXIF[3], _EXIF[6])[round(degrees / 90) % 4]


def from_exif(number: int) -> Orientation:
    """EXIF's tag 0x0112; a number that EXIF does not know means upright."""
    return _EXIF.get(number, UPRIGHT)


def upright(frames: np.ndarray, orientation: Orientation) -> np.ndarray:
    """[..., H, W, C] as stored → as shown (a view): [..., W, H, C] where the orientation swaps."""
    if orientation.swaps:
        frames = frames.swapaxes(-3, -2)
        down, right = orientation.b, orientation.c
    else:
        right, down = orientation.a, orientation.d
    return frames[..., ::down, ::right, :]
