"""From predictions to scores, and the predictions file: one JSON object per line, one line per question and try.

    {"question_id", "key", "task", "try", "options", "gold", "pred", "scores", "variant"}

``options`` are what was offered, ``gold`` the index of the right one, ``pred`` the index that was chosen. Files made by
other programs may leave out ``scores`` and ``variant``, may give ``pred`` as the letter or the text of an option, and
may give null where there was no answer. No answer, and a text that is none of the options, count as wrong: leaving
them out would reward a model for staying silent.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.errors import UserError
from hvlm.evaluation.stats import clustered_mean, group_mean
from hvlm.prompts import LETTERS

BESIDE_THE_MEAN = ("direction",)  # reported, but not part of accuracy_mean and accuracy_4of4


class Likelihood(NamedTuple):
    """logp: nats, summed over the answer's own ``tokens`` (the end token is not among them)."""

    logp: float
    tokens: int


class Try(NamedTuple):
    """One way to ask a question. ``answers[i]`` is the text whose likelihood stands for ``options[i]``: the option
    itself, or its letter when the prompt lists the options."""

    prompt: str
    options: tuple[str, ...]
    answers: tuple[str, ...]
    gold: int


class Question(NamedTuple):
    """id: unique in the benchmark. key: the clip's one name (its uid). evidence: seconds, half-open:
    every interval must hold a sampled frame, otherwise the question is not asked."""

    id: str
    key: str
    task: str
    tries: tuple[Try, ...]
    evidence: tuple[tuple[float, float], ...]


class Prediction(NamedTuple):
    """One line of the predictions file. pred: index into options, or None for no (valid) answer."""

    question_id: str
    key: str
    task: str
    attempt: int  # "try" in the file
    options: tuple[str, ...]
    gold: int
    pred: int | None
    scores: tuple[float, ...] | None
    variant: str

    @property
    def right(self) -> bool:
        return self.pred == self.gold


def choose(scores: Sequence[float]) -> int | None:
    """Index of the best score (the first one of equals), or None when a score is not a finite number."""
    if not all(math.isfinite(score) for score in scores):
        return None
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


# ------------------------------------------------------------------------------------------------------------ scores


def score(predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    """Predictions -> {variant, metric, value, stderr, n, videos, chance}, for each variant in order of appearance.

    accuracy/<task>: share of right tries. accuracy_mean: mean over tasks, each weighing the same.
    accuracy_4of4 (and per task): share of questions whose four tries are all right; only where all have four.
    The two means leave out the tasks in BESIDE_THE_MEAN. n counts questions (the tries of a question are not new
    evidence); the standard error is clustered by video. chance is that of guessing each try independently.
    """
    by_variant: dict[str, dict[str, list[Prediction]]] = {}
    for p in predictions:
        by_variant.setdefault(p.variant, {}).setdefault(p.question_id, []).append(p)
    out = []
    for variant, questions in by_variant.items():
        for row in _score_variant(list(questions.values())):
            out.append({"variant": variant, **row})
    return out


def _score_variant(questions: list[list[Prediction]]) -> list[dict[str, Any]]:
    tasks = sorted({tries[0].task for tries in questions})
    in_mean = [q for q in questions if q[0].task not in BESIDE_THE_MEAN]
    rows = []
    if in_mean:
        rows.append(_row("accuracy_mean", in_mean, _share_right, _chance_each))
    for task in tasks:
        rows.append(_row(f"accuracy/{task}", [q for q in questions if q[0].task == task], _share_right, _chance_each))
    if all(len(q) == 4 for q in questions):
        if in_mean:
            rows.append(_row("accuracy_4of4", in_mean, _all_right, _chance_all))
        for task in tasks:
            rows.append(
                _row(f"accuracy_4of4/{task}", [q for q in questions if q[0].task == task], _all_right, _chance_all)
            )
    return rows


def _row(metric: str, questions: list[list[Prediction]], value_of: Any, chance_of: Any) -> dict[str, Any]:
    videos = [q[0].key for q in questions]
    tasks = [q[0].task for q in questions]
    value, stderr = clustered_mean([value_of(q) for q in questions], videos, tasks)
    chance = group_mean([chance_of(q) for q in questions], tasks)
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


# -------------------------------------------------------------------------------------------------------------- file


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """One line per prediction; the file appears under its name only when complete. Scores that are not finite
    numbers become null (JSON has no NaN)."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        for p in predictions:
            line = p._asdict()
            line["try"] = line.pop("attempt")
            if p.scores is not None:
                line["scores"] = [round(s, 6) if math.isfinite(s) else None for s in p.scores]
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    os.replace(part, path)


def read_predictions(path: Path, variant: str = "predictions") -> list[Prediction]:
    """Read a predictions file, whoever made it; ``variant`` names lines that name none.

    Raises UserError with the line number for what cannot be scored: a missing key, a gold or pred index outside the
    options, the same question and try twice, tries that do not count 0, 1, 2, ... within a question.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"predictions={path}: cannot be read ({error.strerror}); give a predictions.jsonl") from error
    predictions: dict[tuple[str, str, int], Prediction] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        p = _parse(line, f"{path}, line {number}", variant)
        name = (p.variant, p.question_id, p.attempt)
        if name in predictions:
            raise UserError(f"{path}, line {number}: question {p.question_id!r}, try {p.attempt} stands here twice")
        predictions[name] = p
    if not predictions:
        raise UserError(f"predictions={path}: the file holds no predictions")
    tries: dict[tuple[str, str], list[int]] = {}
    for of_variant, question, attempt in predictions:
        tries.setdefault((of_variant, question), []).append(attempt)
    for (_, question), found in tries.items():
        if sorted(found) != list(range(len(found))):
            raise UserError(
                f"{path}: question {question!r} has tries {sorted(found)}, expected {list(range(len(found)))}; "
                "a try without an answer is written with pred null"
            )
    return list(predictions.values())


def _parse(line: str, where: str, variant: str) -> Prediction:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
    needed = ("question_id", "key", "task", "try", "options", "gold", "pred")
    missing = [k for k in needed if not isinstance(value, dict) or k not in value]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing; a line needs {', '.join(needed)}")
    options, gold, attempt = value["options"], value["gold"], value["try"]
    if not isinstance(options, list) or not options:
        raise UserError(f"{where}: options is {options!r}, expected a list of the answers that were offered")
    if not _is_index(gold, len(options)):
        raise UserError(f"{where}: gold is {gold!r}, expected an index from 0 to {len(options) - 1}")
    if not _is_index(attempt, 2**31):
        raise UserError(f"{where}: try is {attempt!r}, expected 0, 1, 2, ...")
    options = tuple(str(option) for option in options)
    scores = value.get("scores")
    if scores is not None:
        scores = tuple(math.nan if s is None else float(s) for s in scores)
    return Prediction(
        question_id=str(value["question_id"]), key=str(value["key"]), task=str(value["task"]), attempt=attempt,
        options=options, gold=gold, pred=_parse_pred(value["pred"], options, where), scores=scores,
        variant=str(value.get("variant", variant)),
    )  # fmt: skip


def _parse_pred(pred: Any, options: tuple[str, ...], where: str) -> int | None:
    """An index, the text of exactly one option, or its letter; nothing is guessed from longer text."""
    if pred is None:
        return None
    if isinstance(pred, str):
        text, folded = pred.strip().casefold(), [option.casefold() for option in options]
        if folded.count(text) == 1:
            return folded.index(text)
        letter = pred.strip().removesuffix(".")  # capitals only: the article "a" is not option A
        return LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS[: len(options)] else None
    if not _is_index(pred, len(options)):
        raise UserError(f"{where}: pred is {pred!r}, expected null, an option or an index, 0 to {len(options) - 1}")
    return pred


def _is_index(value: Any, stop: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < stop
