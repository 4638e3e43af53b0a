"""Seconds and the grid of frames, and which point of the temporal pyramid learns which segment (ActionFormer).

On the grid frame ``i`` stands at ``i``; level ``l`` has a point at every ``2 ** l``-th frame. Distances to a segment's
ends are in strides of the point's level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEARLY = 1e-3  # segments whose lengths differ by no more are learned together


class Assigned(NamedTuple):
    """classes_KPC: float, 1 where the point learns the class. offsets_KP2: to start and end, in strides.
    positive_KP: whether it learns any."""

    classes_KPC: Tensor
    offsets_KP2: Tensor
    positive_KP: Tensor


class Points(NamedTuple):
    """The points of all levels, one after the other: place_P on the grid, stride_P, and the lengths that each is for,
    low_P to high_P (frames, both included). sizes: points of each level."""

    place_P: Tensor
    stride_P: Tensor
    low_P: Tensor
    high_P: Tensor
    sizes: tuple[int, ...]


def points_of(places: int, levels: int, first_range: float, before: int, device: torch.device) -> Points:
    """Points over so many places (a multiple of the largest stride), each ``before`` frames before its own.

    A segment is learned on the level whose range holds the longer of a point's two distances: 0 to ``first_range``
    frames on the lowest, then up to twice as much on each; the highest has no upper end.
    """
    place, stride, low, high, sizes = [], [], [], [], []
    for level in range(levels):
        step = 2**level
        found = torch.arange(0, places, step, device=device, dtype=torch.float32) - before
        place.append(found)
        stride.append(torch.full_like(found, step))
        low.append(torch.full_like(found, 0.0 if level == 0 else first_range * 2 ** (level - 1)))
        high.append(torch.full_like(found, torch.inf if level == levels - 1 else first_range * step))
        sizes.append(len(found))
    return Points(torch.cat(place), torch.cat(stride), torch.cat(low), torch.cat(high), tuple(sizes))


def to_grid(seconds_KE: Tensor, time_KT: Tensor, mask_KT: Tensor) -> Tensor:
    """Places on the grid of moments in seconds: straight between neighbouring frames, and on beyond both ends with the
    spacing there."""
    time_KT, count_K1 = _increasing(time_KT, mask_KT)
    right = torch.searchsorted(time_KT.contiguous(), seconds_KE.contiguous())
    right = right.clamp(min=1).minimum((count_K1 - 1).clamp(min=1))
    left_time, right_time = time_KT.gather(1, right - 1), time_KT.gather(1, right)
    return right - 1 + (seconds_KE - left_time) / (right_time - left_time)


def to_seconds(place_KE: Tensor, time_KT: Tensor, mask_KT: Tensor) -> Tensor:
    """The inverse of ``to_grid``."""
    time_KT, count_K1 = _increasing(time_KT, mask_KT)
    left = place_KE.floor().long().clamp(min=0).minimum((count_K1 - 2).clamp(min=0))
    left_time, right_time = time_KT.gather(1, left), time_KT.gather(1, left + 1)
    return left_time + (place_KE - left) * (right_time - left_time)


def _increasing(time_KT: Tensor, mask_KT: Tensor) -> tuple[Tensor, Tensor]:
    """Times that go on rising by a second a frame where a row has no more frames, with one frame more than there are,
    so that there is always a second one; and the number of frames [K, 1]."""
    count_K1 = mask_KT.sum(1, keepdim=True)
    time_KT = torch.nn.functional.pad(time_KT.float(), (0, 1))
    place = torch.arange(time_KT.shape[1], device=time_KT.device)
    last_K1 = time_KT.gather(1, (count_K1 - 1).clamp(min=0))
    return torch.where(place < count_K1, time_KT, last_K1 + (place - count_K1 + 1)), count_K1


def assign(
    points: Points, segment_KE2: Tensor, label_KE: Tensor, valid_KP: Tensor, classes: int, radius: float
) -> Assigned:
    """What each point learns.

    A point learns a segment that it lies strictly inside of, no further than ``radius`` strides from its middle, if
    the longer of its distances to start and end is in the range of the point's level; of several the shortest, and with
    it those that are as short (``NEARLY``).

    Args:
        points: of all levels.
        segment_KE2: start and end on the grid.
        label_KE: int64, -1 where there is no segment.
        valid_KP: where there is a frame.
        classes: number of labels.
        radius: in strides.
    """
    start, end = segment_KE2[:, None, :, 0], segment_KE2[:, None, :, 1]  # [K, 1, E]
    place, stride = points.place_P[None, :, None], points.stride_P[None, :, None]
    left, right = place - start, end - place
    middle = (start + end) / 2
    from_left = place - torch.maximum(middle - radius * stride, start)
    from_right = torch.minimum(middle + radius * stride, end) - place
    longer = torch.maximum(left, right)
    fits = (from_left > 0) & (from_right > 0) & valid_KP.unsqueeze(-1) & (label_KE >= 0).unsqueeze(1)
    fits &= (longer >= points.low_P[None, :, None]) & (longer <= points.high_P[None, :, None])
    length_KPE = torch.where(fits, end - start, torch.inf)
    shortest_KP1, which_KP1 = length_KPE.min(2, keepdim=True)
    learned_KPE = fits & (length_KPE <= shortest_KP1 + NEARLY)
    classes_KPC = torch.zeros(*valid_KP.shape, classes + 1, device=place.device)
    where = torch.where(learned_KPE, label_KE.unsqueeze(1), classes)
    classes_KPC = classes_KPC.scatter(2, where, 1.0)[..., :classes]
    offsets = torch.stack([left.gather(2, which_KP1), right.gather(2, which_KP1)], -1).squeeze(2)
    return Assigned(classes_KPC, offsets / points.stride_P[None, :, None], fits.any(2))
