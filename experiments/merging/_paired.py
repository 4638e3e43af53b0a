"""How far one variant is ahead of another on the same questions: the error of a difference is not that of its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from hvlm.evaluation import paired, results
from hvlm.evaluation.evaluate import BLIND, PREDICTIONS

# As conf/benchmark/needles.yaml leaves it out of the mean.
WAY = paired.Way(paired.share_right, by_task=True, apart=("direction",))


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
            found = paired.of_answers(answers(a), answers(b), WAY)
            if found is None:
                continue
            value, stderr, n = found
            runs.append([results.make(value=value, stderr=stderr, n=n, chance=None, seeds=[seed], seconds=0, **record)])
    yield from results.merge_seeds(runs)


@cache
def answers(folder: Path) -> dict[paired.Id, list[paired.Prediction]]:
    """{(task, question): its tries} of the model that saw the video."""
    found = paired.by_variant(folder / PREDICTIONS)
    return next((asked for variant, asked in found.items() if variant != BLIND), {})
