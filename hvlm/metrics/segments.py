"""Average precision and recall of segments of time, by ActivityNet's protocol.

Per class, all predictions of all videos by falling score (equal ones in the order in which they came) go through their
video's ground truth from the best overlap down, take the first that is free and overlaps enough, and are false where
there is none. AP is the area under the precision's envelope over recall, summed where recall changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 200  # of videos anew, for standard errors
SAME = 1e-3  # seconds: ground truth of one class whose ends lie nearer is one, and shorter ground truth is none


class Segments(NamedTuple):
    """Segments of any videos. video, label: int64 [N]. start_end: float64 [N, 2], seconds. score: float64 [N], higher
    is surer; of ground truth not used."""

    video: np.ndarray
    label: np.ndarray
    start_end: np.ndarray
    score: np.ndarray

    def where(self, chosen: np.ndarray) -> Segments:
        """Those that a mask or indices choose."""
        return Segments(*(field[chosen] for field in self))


def tiou(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Overlap in time of a segment [2] and segments [N, 2], as a share of what both cover: [N], 0 to 1."""
    both = np.clip(np.minimum(one[1], others[:, 1]) - np.maximum(one[0], others[:, 0]), 0, None)
    either = (others[:, 1] - others[:, 0]) + (one[1] - one[0]) - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def without_repeats(truth: Segments) -> Segments:
    """Ground truth without repeated segments and those of no length."""
    kept: list[int] = []
    of: dict[tuple[int, int], list[int]] = {}
    for i in range(len(truth.video)):
        start, end = truth.start_end[i]
        others = of.setdefault((int(truth.video[i]), int(truth.label[i])), [])
        repeats = any(np.all(np.abs(truth.start_end[j] - truth.start_end[i]) < SAME) for j in others)
        if end - start >= SAME and not repeats:
            others.append(i)
            kept.append(i)
    return truth.where(np.array(kept, dtype=np.int64))


class Matched(NamedTuple):
    """Of one class. right: float64 [T, N], 1 where a prediction is right at that threshold, by falling score. of: int64
    [N], the video of each. truth: int64 [M], the video of each segment of the ground truth."""

    right: np.ndarray
    of: np.ndarray
    truth: np.ndarray

    def average_precision(self, counts: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
        """At each threshold, float64 [T]. NaN where no ground truth counts.

        counts: (videos, rising, and how often each counts, float64); None: each once.
        """
        times, count = np.ones(len(self.of)), float(len(self.truth))
        if counts is not None:
            videos, of_each = counts
            times = of_each[np.searchsorted(videos, self.of)]
            count = float(of_each[np.searchsorted(videos, self.truth)].sum())
        return np.array([_area(row, times, count) if count else np.nan for row in self.right])


def matched(predicted: Segments, truth: Segments, thresholds: Sequence[float]) -> dict[int, Matched]:
    """{class: which predictions are right} of the classes in the ground truth.

    Predictions of classes without ground truth do not count at all.
    """
    truth = without_repeats(truth)
    return {
        int(label): _match(predicted.where(predicted.label == label), truth.where(truth.label == label), thresholds)
        for label in np.unique(truth.label)
    }


def average_precisions(predicted: Segments, truth: Segments, thresholds: Sequence[float]) -> dict[int, np.ndarray]:
    """{class: AP at each threshold, float64 [len(thresholds)]} of the classes in the ground truth; a class that nobody
    predicted has 0."""
    found = matched(predicted, truth, thresholds)
    return {label: one.average_precision() for label, one in found.items()}


def errors_of_map(predicted: Segments, truth: Segments, thresholds: Sequence[float], draws: int = DRAWS) -> np.ndarray:
    """Standard errors over videos of the mean over classes: of its mean over thresholds, then at each, float64 [1 + T].

    An average precision is no mean, so as many videos as there are are drawn with replacement, ``draws`` times (the
    cluster bootstrap, Efron 1979), always the same ones. NaN where there are fewer than two videos.
    """
    found = matched(predicted, truth, thresholds)
    videos = np.unique(np.concatenate([predicted.video, truth.video]))
    if len(videos) < 2 or not found:
        return np.full(1 + len(thresholds), np.nan)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(draws):
        times = np.bincount(rng.integers(len(videos), size=len(videos)), minlength=len(videos)).astype(float)
        each = np.array([one.average_precision((videos, times)) for one in found.values()])
        each = each[~np.isnan(each).any(1)]
        if len(each):
            means.append(each.mean(0))
    at = np.array(means)
    return np.concatenate([at.mean(1, keepdims=True), at], 1).std(0, ddof=1)


def _match(predicted: Segments, truth: Segments, thresholds: Sequence[float]) -> Matched:
    order = np.argsort(-predicted.score, kind="stable")
    there = {int(video): np.flatnonzero(truth.video == video) for video in np.unique(truth.video)}
    taken = np.zeros((len(thresholds), len(truth.video)), dtype=bool)
    right = np.zeros((len(thresholds), len(order)))
    for place, i in enumerate(order):
        candidates = there.get(int(predicted.video[i]))
        if candidates is None:
            continue
        overlap = tiou(predicted.start_end[i], truth.start_end[candidates])
        for best in np.argsort(-overlap, kind="stable"):
            for t, threshold in enumerate(thresholds):
                if overlap[best] >= threshold and not right[t, place] and not taken[t, candidates[best]]:
                    right[t, place] = taken[t, candidates[best]] = True
    return Matched(right, predicted.video[order], truth.video)


def _area(right: np.ndarray, times: np.ndarray, truth: float) -> float:
    """Of predictions by falling score, 1 where right, that count so many times: area under the precision's envelope."""
    hits, said = (right * times).cumsum(), times.cumsum()
    recall = np.concatenate([[0.0], hits / truth, [1.0]])
    precision = np.concatenate([[0.0], np.divide(hits, said, out=np.zeros_like(hits), where=said > 0), [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(((recall[steps] - recall[steps - 1]) * envelope[steps]).sum())


def recalls(
    predicted: Segments, truth: Segments, thresholds: Sequence[float], ks: Sequence[int]
) -> dict[int, np.ndarray]:
    """{class: Recall@Kx, float64 [len(thresholds), len(ks)]} of the classes in the ground truth.

    Of a video with n segments of a class, the k * n best predictions of the class count: a segment is found if any of
    them overlaps it by more than the threshold, however many segments that one finds. The share is over all segments
    of the class.
    """
    truth = without_repeats(truth)
    out = {}
    for label in np.unique(truth.label):
        of_class, guesses = truth.where(truth.label == label), predicted.where(predicted.label == label)
        found = np.zeros((len(thresholds), len(ks)))
        for video in np.unique(of_class.video):
            there, here = of_class.start_end[of_class.video == video], guesses.where(guesses.video == video)
            best = here.where(np.argsort(-here.score, kind="stable"))
            overlap = np.array([tiou(one, there) for one in best.start_end]).reshape(len(best.video), len(there))
            for t, threshold in enumerate(thresholds):
                for j, k in enumerate(ks):
                    found[t, j] += (overlap[: k * len(there)] > threshold).any(0).sum()
        out[int(label)] = found / len(of_class.video)
    return out
