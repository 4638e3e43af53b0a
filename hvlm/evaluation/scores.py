"""Questions, answers, and what answers are worth.

``Question`` is what a benchmark asks, ``Prediction`` what came back, whoever answered: by the likelihood of each option
(``hvlm.evaluation.likelihood``), in the model's own words (``hvlm.evaluation.generate``), or another program
(``hvlm.evaluation.predictions`` reads its file).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hvlm.evaluation.answers import AMBIGUOUS, MISSING, UNREAD, same
from hvlm.evaluation.stats import clustered_mean, group_mean

PROBLEMS = (MISSING, UNREAD, AMBIGUOUS)


class Likelihood(NamedTuple):
    """logp: nats, summed over the answer's own ``tokens`` (the end token is not among them)."""

    logp: float
    tokens: int


class Try(NamedTuple):
    """One way to ask a question.

    options: what is offered, () for an open question. answers: ``answers[i]`` is the text whose likelihood stands for
    ``options[i]``: the option itself, or its letter when the prompt lists the options; of an open question the one
    right answer. gold: index into answers.
    """

    prompt: str
    options: tuple[str, ...]
    answers: tuple[str, ...]
    gold: int

    @property
    def lettered(self) -> bool:
        """Whether the prompt lists the options with letters, so that a letter is an answer."""
        return self.options != self.answers


class Question(NamedTuple):
    """id: unique in the benchmark. key: the clip's one name (its uid). evidence: seconds, half-open:
    every interval must hold a sampled frame, otherwise the question is not asked."""

    id: str
    key: str
    task: str
    tries: tuple[Try, ...]
    evidence: tuple[tuple[float, float], ...]


class Prediction(NamedTuple):
    """One answer to one try of a question; one line of a predictions file.

    options: what was offered, () for an open question. gold: index of the right option, None for an open question.
    pred: index of the chosen option, None where there is none. scores: of each option, where options were scored.
    text: what was written, where something was. answer: the right answer of an open question.
    problem: why there is no ``pred``: "missing" (no answer), "unread" (a text that is no option), "ambiguous" (it could
    mean two), or "".
    """

    question_id: str
    key: str
    task: str
    attempt: int  # "try" in the file
    options: tuple[str, ...]
    gold: int | None
    pred: int | None
    scores: tuple[float, ...] | None
    variant: str
    text: str | None = None
    answer: str | None = None
    problem: str = ""

    @property
    def right(self) -> bool:
        if self.options:
            return self.pred is not None and self.pred == self.gold
        return self.answer is not None and same(self.text, self.answer)


def choose(scores: Sequence[float]) -> int | None:
    """Index of the best score (the first one of equals), or None when a score is not a finite number."""
    if not all(math.isfinite(score) for score in scores):
        return None
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def score(predictions: Iterable[Prediction], apart: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Predictions -> {variant, metric, value, stderr, n, videos, chance}, for each variant in order of appearance.

    accuracy/<task>: share of right tries. accuracy_mean: mean over tasks, each weighing the same.
    accuracy_4of4 (and per task): share of questions whose four tries are all right; only where all have four.
    n counts questions (the tries of a question are not new evidence); the standard error is clustered by video. chance
    is that of guessing each try independently, None where a question is open.
    answers_<problem>: how many tries have no answer, a text that is none of the options, or one that could mean two;
    all of them count as wrong. Only where there are some; n then counts tries.

    Args:
        apart: tasks that the two means leave out. Rows of these means then have ``left_out``, the tasks' names.
    """
    by_variant: dict[str, dict[str, list[Prediction]]] = {}
    for p in predictions:
        by_variant.setdefault(p.variant, {}).setdefault(p.question_id, []).append(p)
    out = []
    for variant, questions in by_variant.items():
        for row in _score_variant(list(questions.values()), apart):
            out.append({"variant": variant, **row})
    return out


def _score_variant(questions: list[list[Prediction]], apart: Sequence[str]) -> list[dict[str, Any]]:
    tasks = sorted({tries[0].task for tries in questions})
    in_mean = [q for q in questions if q[0].task not in apart]
    left_out = {"left_out": ",".join(out)} if (out := [task for task in tasks if task in apart]) else {}
    rows = []
    if in_mean:
        rows.append(_row("accuracy_mean", in_mean, _share_right, _chance_each) | left_out)
    for task in tasks:
        rows.append(_row(f"accuracy/{task}", [q for q in questions if q[0].task == task], _share_right, _chance_each))
    if all(len(q) == 4 for q in questions):
        if in_mean:
            rows.append(_row("accuracy_4of4", in_mean, _all_right, _chance_all) | left_out)
        for task in tasks:
            rows.append(
                _row(f"accuracy_4of4/{task}", [q for q in questions if q[0].task == task], _all_right, _chance_all)
            )
    return rows + _problems([p for tries in questions for p in tries])


def _problems(tries: Sequence[Prediction]) -> list[dict[str, Any]]:
    count = Counter(p.problem for p in tries)
    shared = {"stderr": None, "n": len(tries), "videos": len({p.key for p in tries}), "chance": None}
    return [{"metric": f"answers_{name}", "value": float(count[name]), **shared} for name in PROBLEMS if count[name]]


def _row(metric: str, questions: list[list[Prediction]], value_of: Any, chance_of: Any) -> dict[str, Any]:
    videos = [q[0].key for q in questions]
    tasks = [q[0].task for q in questions]
    value, stderr = clustered_mean([value_of(q) for q in questions], videos, tasks)
    closed = all(p.options for tries in questions for p in tries)
    chance = group_mean([chance_of(q) for q in questions], tasks) if closed else None
    return {
        "metric": metric, "value": value, "stderr": stderr, "n": len(questions), "videos": len(set(videos)),
        "chance": chance,
    }  # fmt: skip


def _share_right(tries: list[Prediction]) -> float:
    return sum(p.right for p in tries) / len(tries)


def _all_right(tries: list[Prediction]) -> float:
    return float(all(p.right for p in tries))


def _chance_each(tries: list[Prediction]) -> float:
    return sum(1 / len(p.options) for p in tries) / len(tries)


def _chance_all(tries: list[Prediction]) -> float:
    return math.prod(1 / len(p.options) for p in tries)
