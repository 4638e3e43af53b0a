"""Questions, answers, and what answers are worth.

``Question`` is what a benchmark asks, ``Prediction`` what came back, whoever answered: by the likelihood of each option
(``hvlm.evaluation.likelihood``), in the model's own words (``hvlm.evaluation.generate``), or another program
(``hvlm.evaluation.predictions`` reads its file).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from hvlm.evaluation.answers import AMBIGUOUS, MISSING, UNREAD, same
from hvlm.evaluation.stats import clustered_mean, group_mean

PROBLEMS = (MISSING, UNREAD, AMBIGUOUS)
ALL_TRIES = "accuracy_4of4"


class Likelihood(NamedTuple):
    """logp: nats, summed over the answer's own ``tokens`` (the end token is not among them)."""

    logp: float
    tokens: int


class Try(NamedTuple):
    """One way to ask a question.

    options: what is offered, () for an open question. answers: ``answers[i]`` is the text whose likelihood stands for
    ``options[i]``: the option itself, or its letter when the prompt lists the options; of an open question all that
    count as right. gold: index into answers.
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
    """id: unique in the benchmark. key: the clip's one name (its uid), by which errors are clustered; clips that are
    parts of one video share it. evidence: seconds, half-open: every interval must hold a sampled frame, otherwise the
    question is not asked. text: the question alone, for whoever reads the answers; "": as in the first try's prompt.
    depth, length: of what it asks about, where that is known: its place in the video, 0 to 1, and the video's seconds.
    """

    id: str
    key: str
    task: str
    tries: tuple[Try, ...]
    evidence: tuple[tuple[float, float], ...]
    text: str = ""
    depth: float | None = None
    length: float | None = None

    @property
    def words(self) -> str:
        """What was asked."""
        return self.text or self.tries[0].prompt


class Prediction(NamedTuple):
    """One answer to one try of a question; one line of a predictions file.

    options: what was offered, () for an open question. gold: index of the right option, None for an open question.
    pred: index of the chosen option, None where there is none. scores: of each option, where options were scored.
    text: what was written, where something was. answers: what counts as right, of an open question.
    problem: why there is no ``pred``: "missing" (no answer), "unread" (a text that is no option), "ambiguous" (it could
    mean two), or "". question: what was asked, where that is known. depth, length: as in ``Question``. about: (column,
    value) of what a published table says of the question, for scores of each value.
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
    answers: tuple[str, ...] = ()
    problem: str = ""
    question: str = ""
    depth: float | None = None
    length: float | None = None
    about: tuple[tuple[str, str], ...] = ()

    @property
    def right(self) -> bool:
        if self.options:
            return self.pred is not None and self.pred == self.gold
        return any(same(self.text, answer) for answer in self.answers)


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
    out = []
    for variant, questions in variants_of(predictions).items():
        tasks, in_mean, apart_here = _parts(questions, apart)
        left_out = {"left_out": ",".join(apart_here)} if apart_here else {}
        means = {"accuracy": (_share_right, _chance_each)}
        if all(len(q) == 4 for q in questions):
            means[ALL_TRIES] = (_all_right, _chance_all)
        rows = []
        for metric, how in means.items():
            if in_mean:
                rows.append(row("accuracy_mean" if metric == "accuracy" else metric, in_mean, *how) | left_out)
            rows += [row(f"{metric}/{task}", of, *how) for task, of in tasks.items()]
        out += [{"variant": variant, **r} for r in rows + problems(questions)]
    return out


def score_choices(predictions: Iterable[Prediction], apart: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The same rows for anybody's multiple choice, without the 4-of-4 score.

    accuracy_macro: mean over tasks, each weighing the same. accuracy_micro: mean over questions. accuracy/<task>.
    A mean that leaves out tasks says so in its name: ``accuracy_macro_without_direction``.
    """
    out = []
    for variant, questions in variants_of(predictions).items():
        rows = means_and_tasks("accuracy", questions, _share_right, apart, _chance_each)
        out += [{"variant": variant, **r} for r in rows + problems(questions)]
    return out


# ------------------------------------------------------------------------------------------------ what scores share

Tries = list[Prediction]  # of one question and variant


def variants_of(predictions: Iterable[Prediction]) -> dict[str, list[Tries]]:
    """{variant: the tries of each question}, in order of appearance."""
    by_variant: dict[str, dict[str, Tries]] = {}
    for p in predictions:
        by_variant.setdefault(p.variant, {}).setdefault(p.question_id, []).append(p)
    return {variant: list(questions.values()) for variant, questions in by_variant.items()}


def means_and_tasks(
    metric: str,
    questions: Sequence[Tries],
    value_of: Callable[[Tries], float],
    apart: Sequence[str],
    chance_of: Callable[[Tries], float] | None = None,
) -> list[dict[str, Any]]:
    """Rows ``<metric>_macro``, ``<metric>_micro`` and ``<metric>/<task>``; see ``score_choices``."""
    tasks, in_mean, apart_here = _parts(questions, apart)
    without = f"_without_{','.join(apart_here)}" if apart_here else ""
    rows = []
    if in_mean:
        rows.append(row(f"{metric}_macro{without}", in_mean, value_of, chance_of))
        rows.append(row(f"{metric}_micro{without}", in_mean, value_of, chance_of, by_task=False))
    return rows + [row(f"{metric}/{task}", of, value_of, chance_of) for task, of in tasks.items()]


def row(
    metric: str,
    questions: Sequence[Tries],
    value_of: Callable[[Tries], float],
    chance_of: Callable[[Tries], float] | None = None,
    by_task: bool = True,
) -> dict[str, Any]:
    """One row: the mean of ``value_of`` over questions with its clustered standard error.

    Args:
        metric: its name.
        value_of: the tries of a question -> in [0, 1].
        chance_of: what guessing gets; None, or a question without options for which nothing can be guessed: no chance.
        by_task: whether every task weighs the same, however many questions it has.
    """
    videos = [q[0].key for q in questions]
    tasks = [q[0].task if by_task else "" for q in questions]
    value, stderr = clustered_mean([value_of(q) for q in questions], videos, tasks)
    chances = [math.nan if chance_of is None else chance_of(q) for q in questions]
    return {
        "metric": metric, "value": value, "stderr": stderr, "n": len(questions), "videos": len(set(videos)),
        "chance": None if any(map(math.isnan, chances)) else group_mean(chances, tasks),
    }  # fmt: skip


def problems(questions: Sequence[Tries]) -> list[dict[str, Any]]:
    """A row for each kind of answer that is none, where there are some; they count tries."""
    tries = [p for of_one in questions for p in of_one]
    count = Counter(p.problem for p in tries)
    shared = {"stderr": None, "n": len(tries), "videos": len({p.key for p in tries}), "chance": None}
    return [{"metric": f"answers_{name}", "value": float(count[name]), **shared} for name in PROBLEMS if count[name]]


def _parts(questions: Sequence[Tries], apart: Sequence[str]) -> tuple[dict[str, list[Tries]], list[Tries], list[str]]:
    """({task: its questions}, those of the means, the tasks that the means leave out)."""
    tasks = {task: [q for q in questions if q[0].task == task] for task in sorted({q[0].task for q in questions})}
    return tasks, [q for q in questions if q[0].task not in apart], [task for task in tasks if task in apart]


def _share_right(tries: Tries) -> float:
    return sum(p.right for p in tries) / len(tries)


def _all_right(tries: Tries) -> float:
    return float(all(p.right for p in tries))


def _chance_each(tries: Tries) -> float:
    """NaN for an open question."""
    return sum(1 / len(p.options) if p.options else math.nan for p in tries) / len(tries)


def _chance_all(tries: Tries) -> float:
    return math.prod(1 / len(p.options) if p.options else math.nan for p in tries)
