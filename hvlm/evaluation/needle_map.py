"""Accuracy over where the needle is and how long the video is: a picture, and the numbers in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hvlm.evaluation.scores import Prediction
from hvlm.viz.heat_map import heat_map

PICTURE = "needles.png"
BLIND = "blind"
DEPTHS = 5  # rows
MOST_LENGTHS = 8  # columns; more lengths than that share columns, equally many videos in each


class NeedleMap(NamedTuple):
    """share_DL: of right tries, [depths, lengths], NaN where nothing was asked; count_DL: how many tries. lengths:
    (shortest, longest) seconds of each column."""

    share_DL: np.ndarray
    count_DL: np.ndarray
    lengths: list[tuple[float, float]]


def needle_map(predictions: Iterable[Prediction]) -> NeedleMap | None:
    """The share of right tries by depth and length; None where no prediction says both. Not of the blind control."""
    known = [p for p in predictions if p.depth is not None and p.length is not None and p.variant != BLIND]
    if not known:
        return None
    # Videos of one intended length differ by a frame or so: half a second apart is one length.
    seconds = np.array([p.length for p in known], np.float64)
    edges = _edges(seconds)
    column = np.searchsorted(edges, seconds, side="right")
    row = np.minimum((np.array([p.depth for p in known]) * DEPTHS).astype(int), DEPTHS - 1)
    right, count = (np.zeros((DEPTHS, len(edges) + 1)) for _ in range(2))
    np.add.at(count, (row, column), 1)
    np.add.at(right, (row, column), [float(p.right) for p in known])
    with np.errstate(invalid="ignore"):
        share = np.where(count > 0, right / count, np.nan)
    spans = [(float(seconds[column == c].min()), float(seconds[column == c].max())) for c in range(len(edges) + 1)]
    return NeedleMap(share, count.astype(int), spans)


def _edges(seconds: np.ndarray) -> list[float]:
    """Between which lengths a new column begins, ascending."""
    distinct = np.unique(seconds)
    groups = np.split(distinct, np.flatnonzero(np.diff(distinct) > 0.5) + 1)
    if len(groups) <= MOST_LENGTHS:
        return [float(group[0]) for group in groups[1:]]
    quantiles = np.quantile(seconds, np.linspace(0, 1, MOST_LENGTHS + 1)[1:-1])
    return sorted({float(q) for q in quantiles if distinct[0] < q})


def write_needle_map(predictions: Iterable[Prediction], path: Path) -> Path | None:
    """The picture, where the predictions say depth and length; else none, and no older one. Returns its path."""
    found = needle_map(predictions)
    if found is None:
        path.unlink(missing_ok=True)
        return None
    names = [f"{100 * i // DEPTHS} to {100 * (i + 1) // DEPTHS} %" for i in range(DEPTHS)]
    words = [
        ["" if not n else f"{100 * share:.0f} %" for share, n in zip(shares, counts, strict=True)]
        for shares, counts in zip(found.share_DL, found.count_DL, strict=True)
    ]
    tries = int(found.count_DL.sum())
    return heat_map(
        found.share_DL, path, title=f"right answers, of {tries} tries", rows=names,
        columns=_lengths(found.lengths), row_title="depth", column_title="length of the video in seconds", words=words,
    )  # fmt: skip


def _lengths(spans: Sequence[tuple[float, float]]) -> list[str]:
    return [f"{low:.0f}" if high - low <= 0.5 else f"{low:.0f}-{high:.0f}" for low, high in spans]
