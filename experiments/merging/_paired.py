"""How far one variant is ahead of another on the same questions: the error of a difference is not that of its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from hvlm.evaluation import results
from hvlm.evaluation.evaluate import BLIND, PREDICTIONS
from hvlm.evaluation.predictions import read_predictions
from hvlm.evaluation.scores import Prediction
from hvlm.evaluation.stats import clustered_mean

APART = ("direction",)  # as conf/benchmark/needles.yaml leaves it out of the mean


def ahead(
    first: Sequence[Path], second: Sequence[Path], seeds: Sequence[int], **record: object
) -> Iterator[results.Record]:
    """A record of ``first`` minus ``second`` in ``accuracy_mean``, over the seeds whose folders both hold predictions.

    Question by question, clustered by video, then ``results.merge_seeds``. record: the other arguments of
    ``results.make``.
    """
    runs = []
    for seed, a, b in zip(seeds, first, second, strict=True):
        if (a / PREDICTIONS).exists() and (b / PREDICTIONS).exists():
            one, other = shares(a), shares(b)
            both = [q for q in one if q in other]
            value, stderr = clustered_mean(
                [one[q] - other[q] for q in both], [key for key, _, _ in both], [task for _, task, _ in both]
            )
            runs.append([
                results.make(value=value, stderr=stderr, n=len(both), chance=None, seeds=[seed], seconds=0, **record)
            ])  # fmt: skip
    yield from results.merge_seeds(runs)


@cache
def shares(folder: Path) -> dict[tuple[str, str, str], float]:
    """{(clip, task, question): share of its tries that are right}, of the tasks in ``accuracy_mean``."""
    tries: dict[tuple[str, str, str], list[Prediction]] = {}
    for p in read_predictions(folder / PREDICTIONS, "model"):
        if p.variant != BLIND and p.task not in APART:
            tries.setdefault((p.key, p.task, p.question_id), []).append(p)
    return {question: sum(p.right for p in found) / len(found) for question, found in tries.items()}
