"""Segments of time against ground truth, as torchmetrics classes: mAP@tIoU and Recall@Kx. Formulas: ``segments``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvlm.metrics.segments import Segments, average_precisions, errors_of_map, recalls
from hvlm.metrics.states import Gathered

THUMOS = (0.3, 0.4, 0.5, 0.6, 0.7)
ACTIVITYNET = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


class _Segments(Gathered):
    """Holds predictions and ground truth of all videos.

    thresholds: of tIoU, above 0 and up to 1.
    """

    higher_is_better = True

    def __init__(self, thresholds: Sequence[float] = THUMOS) -> None:
        super().__init__()
        if not thresholds or not all(0 < t <= 1 for t in thresholds):
            raise ValueError(f"thresholds={tuple(thresholds)}: expected some above 0 and up to 1")
        self.thresholds = tuple(thresholds)
        self.videos = 0  # of this process so far
        self.labels: dict[int, int | str] = {}  # that this process has seen, by number
        for kind in ("predicted", "truth"):
            self.add_rows(f"{kind}_ids", torch.zeros(0, 3, dtype=torch.int64))  # video, its place, class
            self.add_rows(f"{kind}_values", torch.zeros(0, 3, dtype=torch.float64))  # start, end, score

    def update(
        self,
        videos: Sequence[str],
        predicted: Sequence[tuple[Any, Any, Any]],
        truth: Sequence[tuple[Any, Any]],
    ) -> None:
        """Add whole videos.

        Args:
            videos: their names, each given once over all batches and processes.
            predicted: of each video (start and end in seconds [N, 2], class [N], score [N]), tensors or lists; classes
                are numbers or names.
            truth: of each video (start and end in seconds [M, 2], class [M]).

        Raises:
            ValueError: a segment that ends before it starts, or a number that is none.
        """
        world, rank = _process()
        for name, guesses, right in zip(videos, predicted, truth, strict=True):
            # Equal scores count in the order of the data, which processes read in turn.
            place = self.videos * world + rank
            self.videos += 1
            number = _number(name)
            for kind, of_one in (("predicted", guesses), ("truth", (*right, None))):
                values = _values(name, kind, *of_one)
                label = self._numbers(of_one[1])
                ids = torch.stack([torch.full_like(label, number), torch.full_like(label, place), label], 1)
                getattr(self, f"{kind}_ids").append(ids.to(self.device))
                getattr(self, f"{kind}_values").append(values.to(self.device))

    def _numbers(self, labels: Tensor | Sequence[int | str]) -> Tensor:
        """Of classes, int64 [N]."""
        given = labels.reshape(-1).tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
        numbers = [_number(label) if isinstance(label, str) else int(label) for label in given]
        self.labels.update(zip(numbers, given, strict=True))
        return torch.tensor(numbers, dtype=torch.int64)

    def reset(self) -> None:
        """Begin again."""
        super().reset()
        self.videos = 0

    def held(self, kind: str) -> Segments:
        """``predicted`` or ``truth``, in the order of the data."""
        ids, values = self.rows(f"{kind}_ids").numpy(), self.rows(f"{kind}_values").numpy()
        order = np.argsort(ids[:, 1], kind="stable")
        return Segments(ids[order, 0], ids[order, 2], values[order, :2], values[order, 2])


class TemporalMAP(_Segments):
    """Mean over classes of the average precision, at each threshold and in their mean.

    With no ground truth at all, NaN.
    """

    def compute(self) -> dict[str, Tensor]:
        """{"mean": over thresholds, "0.50": at that one, ...}, float32."""
        found = average_precisions(self.held("predicted"), self.held("truth"), self.thresholds)
        at = np.mean(list(found.values()), 0) if found else np.full(len(self.thresholds), np.nan)
        out = {"mean": at.mean()} | {f"{t:.2f}": x for t, x in zip(self.thresholds, at, strict=True)}
        return {name: torch.tensor(x, dtype=torch.float32, device=self.device) for name, x in out.items()}

    def errors(self) -> dict[str, float]:
        """{as ``compute`` has it: its standard error over the videos of this process}; see ``errors_of_map``."""
        found = errors_of_map(self.held("predicted"), self.held("truth"), self.thresholds)
        return dict(zip(["mean", *(f"{t:.2f}" for t in self.thresholds)], found.tolist(), strict=True))

    def classes(self) -> dict[int | str, list[float]]:
        """{class: its AP at each threshold} of what this process has seen."""
        found = average_precisions(self.held("predicted"), self.held("truth"), self.thresholds)
        return {self.labels[label]: ap.tolist() for label, ap in found.items()}


class TemporalRecall(_Segments):
    """Recall@Kx, the mean over classes: with k times as many predictions as there are segments.

    thresholds: of tIoU. ks: how many times as many.
    """

    def __init__(self, thresholds: Sequence[float] = THUMOS, ks: Sequence[int] = (1, 5)) -> None:
        super().__init__(thresholds)
        self.ks = tuple(ks)

    def compute(self) -> dict[str, Tensor]:
        """{"1x/0.50": ..., }, float32."""
        found = recalls(self.held("predicted"), self.held("truth"), self.thresholds, self.ks)
        shape = (len(self.thresholds), len(self.ks))
        at = np.mean(list(found.values()), 0) if found else np.full(shape, np.nan)
        return {
            f"{k}x/{t:.2f}": torch.tensor(at[i, j], dtype=torch.float32, device=self.device)
            for j, k in enumerate(self.ks)
            for i, t in enumerate(self.thresholds)
        }


def _values(name: str, kind: str, start_end: Any, label: Any, score: Any) -> Tensor:
    """Start, end and score, float64 [N, 3]."""
    ends = torch.as_tensor(start_end, dtype=torch.float64).reshape(-1, 2).cpu()
    scores = torch.zeros(len(ends)) if score is None else torch.as_tensor(score).reshape(-1).cpu()
    if not len(ends) == len(scores) == len(label):
        raise ValueError(f"{name}: {kind} has unequal numbers of segments, classes and scores")
    values = torch.cat([ends, scores.double()[:, None]], 1)
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name}: {kind} holds a start, end or score that is no finite number")
    if bool((backward := ends[:, 1] < ends[:, 0]).any()):
        start, end = ends[backward][0].tolist()
        raise ValueError(f"{name}: a segment of {kind} ends at {end:g} s, before it starts at {start:g} s")
    return values


def _number(name: str) -> int:
    """Of a name, the same in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def _process() -> tuple[int, int]:
    """(number of processes, which of them this is)."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1, 0
    return distributed.get_world_size(), distributed.get_rank()
