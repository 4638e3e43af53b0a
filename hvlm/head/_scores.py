"""Figures of heads, until they come from hvlm.metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric


def identity(text: str) -> int:
    """A number for a name, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


class TemporalMAP(Metric):
    """ActivityNet's mean average precision at each overlap: computes {"0.30": ..., "mean": ...}."""

    full_state_update = False
    found: list[Tensor]
    right: list[Tensor]

    def __init__(self, thresholds: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7), **more: Any) -> None:
        super().__init__(**more)
        self.thresholds = tuple(thresholds)
        self.add_state("found", default=[], dist_reduce_fx="cat")
        self.add_state("right", default=[], dist_reduce_fx="cat")

    def update(self, key: str, found: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]]) -> None:
        """found: {start, end, label, score}, right: {start, end, label} of one video."""
        video = identity(key)
        rows = [[video, identity(s["label"]), s["start"], s["end"], s["score"]] for s in found]
        self.found.append(torch.tensor(rows, dtype=torch.float64).reshape(-1, 5))
        rows = [[video, identity(s["label"]), s["start"], s["end"]] for s in right]
        self.right.append(torch.tensor(rows, dtype=torch.float64).reshape(-1, 4))

    def compute(self) -> dict[str, Tensor]:
        found, right = ((torch.cat(x) if isinstance(x, list) else x).cpu().numpy() for x in (self.found, self.right))
        classes = np.unique(right[:, 1])
        per_class = [
            [_ap(found[found[:, 1] == c], _distinct(right[right[:, 1] == c]), t) for c in classes]
            for t in self.thresholds
        ]
        means = [float(np.mean(aps)) if aps else 0.0 for aps in per_class]
        named = {f"{t:.2f}": torch.tensor(m) for t, m in zip(self.thresholds, means, strict=True)}
        return named | {"mean": torch.tensor(float(np.mean(means)))}


def _distinct(right: np.ndarray) -> np.ndarray:
    kept: list[np.ndarray] = []
    for row in right:
        if row[3] - row[2] >= 1e-3 and not any(k[0] == row[0] and np.abs(k[2:] - row[2:]).max() <= 1e-3 for k in kept):
            kept.append(row)
    return np.array(kept).reshape(-1, 4)


def _ap(found: np.ndarray, right: np.ndarray, threshold: float) -> float:
    order = np.argsort(-found[:, 4], kind="stable")
    locked = np.zeros(len(right), bool)
    hits = np.zeros(len(found))
    for i, row in enumerate(found[order]):
        (mine,) = (right[:, 0] == row[0]).nonzero()
        shared = (np.minimum(right[mine, 3], row[3]) - np.maximum(right[mine, 2], row[2])).clip(min=0)
        iou = shared / (right[mine, 3] - right[mine, 2] + row[3] - row[2] - shared)
        for j in np.argsort(-iou, kind="stable"):
            if iou[j] < threshold:
                break
            if not locked[mine[j]]:
                locked[mine[j]] = hits[i] = True
                break
    if not len(right):
        return 0.0
    true, false = hits.cumsum(), (1 - hits).cumsum()
    recall, precision = true / len(right), true / np.maximum(true + false, 1e-9)
    precision = np.concatenate([[0], precision, [0]])
    recall = np.concatenate([[0], recall, [1]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    step = (recall[1:] != recall[:-1]).nonzero()[0] + 1
    return float(((recall[step] - recall[step - 1]) * precision[step]).sum())
