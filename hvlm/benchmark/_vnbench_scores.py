"""VNBench's rule: a video counts only if all four of its tries are right.

Of each task the share of such videos, of the groups ret, ord and cnt and overall the mean over the tasks. A try without
an answer, or that is not there, is wrong, and with it the video. Beside the rule stand the share of right tries, and
the rule under the other reading of the answers, where there are texts to read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from hvlm.benchmark._vnbench_annotations import TRIES
from hvlm.benchmark._vnbench_lines import parse
from hvlm.evaluation.answers import MISSING
from hvlm.evaluation.scores import ALL_TRIES, Prediction, Tries, row, score, variants_of

GROUPS = ("ret", "ord", "cnt")


def score_vnbench(predictions: Iterable[Prediction], parser: str) -> list[dict[str, Any]]:
    """Predictions -> {variant, metric, value, stderr, n, videos, chance}, for each variant in order of appearance.

    accuracy_mean, accuracy/<task>, accuracy/<group>: right tries. accuracy_4of4 likewise: the rule. Groups stand only
    beside several of their tasks. <parser>_accuracy_4of4: the rule under the other parser. predictions_null: answers
    that are null or empty. tries_absent: tries that no prediction is about, where there are some. n counts videos, of
    the last two tries; the standard error is clustered by what the videos were made of.

    Args:
        predictions: of whole questions or of some of their tries.
        parser: the one that they were read with.
    """
    predictions = list(predictions)
    other = "official" if parser == "strict" else "strict"
    out = []
    for variant, questions in variants_of(predictions).items():
        whole = [filled(tries) for tries in questions]
        rows = score(p for tries in whole for p in tries)
        means = [r for r in rows if not r["metric"].startswith("answers_")]
        out += [*means, *({"variant": variant, **r} for r in _groups(whole))]
        if any(p.text is not None for tries in questions for p in tries):
            reread = [[_read_again(p, other) for p in tries] for tries in whole]
            out += [
                r | {"metric": f"{other}_{r['metric']}"}
                for r in score(p for tries in reread for p in tries)
                if r["metric"].startswith(ALL_TRIES)
            ]
        given = [p for tries in questions for p in tries]
        shared = {"variant": variant, "stderr": None, "videos": len({p.key for p in given}), "chance": None}
        null, absent = sum(p.problem == MISSING for p in given), sum(map(len, whole)) - len(given)
        out.append({"metric": "predictions_null", "value": float(null), "n": len(given), **shared})
        if absent:
            out.append({"metric": "tries_absent", "value": float(absent), "n": len(given) + absent, **shared})
        out += [r for r in rows if r["metric"].startswith("answers_") and r["metric"] != f"answers_{MISSING}"]
    return out


def filled(tries: Tries) -> Tries:
    """The four tries of a question; those that are absent are no answers."""
    there = {p.attempt: p for p in tries}
    nothing = tries[0]._replace(pred=None, text=None, scores=None, problem=MISSING)
    return [there.get(i, nothing._replace(attempt=i)) for i in range(max(TRIES, *(i + 1 for i in there)))]


def absent(predictions: Sequence[Prediction]) -> list[str]:
    """``<question>: try 2, 3`` for every question that lacks tries."""
    found = []
    for questions in variants_of(predictions).values():
        for tries in questions:
            if missing := sorted(set(range(TRIES)) - {p.attempt for p in tries}):
                found.append(f"{tries[0].question_id}: try {', '.join(map(str, missing))}")
    return found


def _read_again(p: Prediction, parser: str) -> Prediction:
    if p.text is None:
        return p
    reading = parse(p.text, p.options, parser)
    return p._replace(pred=reading.index, problem=reading.problem)


def _groups(questions: Sequence[Tries]) -> list[dict[str, Any]]:
    out = []
    for group in GROUPS:
        of = [tries for tries in questions if tries[0].task.startswith(f"{group}_")]
        if len({tries[0].task for tries in of}) > 1:
            out.append(row(f"accuracy/{group}", of, _share, lambda tries: _mean([1 / len(p.options) for p in tries])))
            out.append(
                row(f"{ALL_TRIES}/{group}", of, _all, lambda tries: math.prod(1 / len(p.options) for p in tries))
            )
    return out


def _share(tries: Tries) -> float:
    return _mean([float(p.right) for p in tries])


def _all(tries: Tries) -> float:
    return float(all(p.right for p in tries))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
