"""Segments: how far two are apart, and which of many that overlap stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

EPSILON = 1e-8
TINY = 1e-6  # added to lengths, so that none is 0


def iou_of_offsets(found_N2: Tensor, right_N2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of segments around common points, given by their distances to start and end: (intersection over union, length of
    the union, length of what encloses both), [N] each."""
    shared = torch.minimum(found_N2, right_N2).sum(-1)
    union = found_N2.sum(-1) + right_N2.sum(-1) - shared
    enclosing = torch.maximum(found_N2, right_N2).sum(-1)
    return shared / union.clamp(min=EPSILON), union, enclosing


def diou_loss(found_N2: Tensor, right_N2: Tensor) -> Tensor:
    """1 - IoU + the squared distance of the middles over the squared length of what encloses both (Zheng et al. 2020,
    in one dimension): [N]."""
    iou, _, enclosing = iou_of_offsets(found_N2, right_N2)
    apart = 0.5 * ((found_N2[..., 1] - found_N2[..., 0]) - (right_N2[..., 1] - right_N2[..., 0]))
    return 1 - iou + (apart / enclosing.clamp(min=EPSILON)).square()


def giou_loss(found_N2: Tensor, right_N2: Tensor) -> Tensor:
    """1 - IoU + the share of what encloses both that neither covers (Rezatofighi et al. 2019): [N]."""
    iou, union, enclosing = iou_of_offsets(found_N2, right_N2)
    return 1 - iou + (enclosing - union) / enclosing.clamp(min=EPSILON)


def soft_nms(
    segment_N2: Sequence[Sequence[float]] | np.ndarray,
    score_N: Sequence[float] | np.ndarray,
    *,
    sigma: float,
    min_score: float,
    most: int,
) -> list[tuple[int, float]]:
    """Gaussian soft-NMS (Bodla et al. 2017) as ActionFormer does it: the best segment is taken, the scores of *all*
    others are multiplied with exp(-IoU^2 / sigma), those below ``min_score`` are dropped at once, and so on. There is
    no threshold of overlap. Of equal scores the one that came first is taken first.

    Args:
        segment_N2: start and end. score_N: of each.
        sigma: above 0; a small one suppresses more.
        min_score: what falls below it is dropped.
        most: no more are taken.

    Returns:
        (index, its score by then) of those that were taken, in that order.
    """
    segment = np.asarray(segment_N2, np.float64).reshape(-1, 2)
    left = np.asarray(score_N, np.float64).copy()
    length = segment[:, 1] - segment[:, 0] + TINY
    alive = np.ones(len(left), bool)
    taken: list[tuple[int, float]] = []
    while len(taken) < most and alive.any():
        best = int(np.where(alive, left, -np.inf).argmax())  # the first of the largest
        taken.append((best, float(left[best])))
        alive[best] = False
        shared = np.minimum(segment[:, 1], segment[best, 1]) - np.maximum(segment[:, 0], segment[best, 0])
        shared = shared.clip(min=0)
        iou = shared / (length + length[best] - shared)
        left = np.where(alive, left * np.exp(-(iou**2) / sigma), left)
        alive &= left >= min_score
    return taken
