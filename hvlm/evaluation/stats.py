"""The mean of 0/1 answers and its standard error when several answers come from one video.

Questions about the same clip fail together (a blurred object, a missed flash), so they are not independent samples.
Treating them as such makes the error bar too small; the unit that was drawn at random is the video. For a weighted
mean m = sum_i w_i y_i the cluster-robust variance is

    var(m) = G / (G - 1) * sum_g ( sum_{i in g} w_i (y_i - m_task(i)) )^2        g = 1..G videos

(Liang & Zeger 1986; the same idea as lmms-eval's ``cluster_key`` and as Miller 2024, "Adding error bars to evals").
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np


def clustered_mean(
    values: Sequence[float], clusters: Sequence[Hashable], groups: Sequence[Hashable] | None = None
) -> tuple[float, float | None]:
    """Mean of ``values`` and its standard error, clustered.

    values: one score per question, in [0, 1].  clusters: the video of each question.
    groups: the task of each question. When given, the mean is over tasks (every task weighs the same, however many of
        its questions could be asked), and residuals are taken within the task. Without it every question weighs
        the same.
    Returns (mean, standard error); the error is None with a single video, where it cannot be estimated.
    Raises ValueError for empty input or unequal lengths.
    """
    y = np.asarray(values, dtype=np.float64)
    if groups is None:
        groups = [0] * len(y)
    if len(y) == 0 or len(y) != len(clusters) or len(y) != len(groups):
        raise ValueError(f"need equally many values, clusters and groups: {len(y)}, {len(clusters)}, {len(groups)}")
    group = _codes(groups)
    cluster = _codes(clusters)
    size = np.bincount(group)
    mean_of_group = np.bincount(group, y) / size
    weight = 1.0 / (len(size) * size[group])
    per_cluster = np.bincount(cluster, weight * (y - mean_of_group[group]))
    g = len(per_cluster)
    stderr = math.sqrt(g / (g - 1) * float((per_cluster**2).sum())) if g > 1 else None
    return float(mean_of_group.mean()), stderr


def group_mean(values: Sequence[float], groups: Sequence[Hashable]) -> float:
    """Mean over groups of the mean inside each group: how ``accuracy_mean`` weighs, applied to its chance level."""
    group = _codes(groups)
    return float((np.bincount(group, np.asarray(values, dtype=np.float64)) / np.bincount(group)).mean())


def _codes(labels: Sequence[Hashable]) -> np.ndarray:
    """Labels -> 0, 1, 2, ... in order of first appearance. int64 [len(labels)]."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)
