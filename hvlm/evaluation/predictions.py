"""The predictions file: one JSON object per line, one line per question and try.

    {"question_id", "key", "task", "try", "question", "options", "gold", "pred", "scores", "variant", "text", "problem"}
    {"question_id", "key", "task", "try", "question", "answer", "text", "variant"}            # an open question

``options`` are what was offered, ``gold`` the index of the right one, ``pred`` the index that was chosen. Files made by
other programs need question_id, key, task, try, options, gold and pred; ``pred`` may be an index, a text in any form
that ``hvlm.evaluation.answers`` reads, or null where there was no answer. Open questions need answer (the right one)
and text (what was answered) in place of options, gold and pred. No answer, and a text that is none of the options,
count as wrong: leaving them out would reward a model for staying silent. An ``answer`` may be a list of all that count
as right; ``question`` (what was asked) is for whoever reads the file; ``depth`` and ``length`` (where in the video the
answer is, 0 to 1, and the video's seconds) are there where they are known, for the map of accuracy over both; ``about``
({column: text} of a published table), for the scores of each of its values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hvlm.errors import UserError
from hvlm.evaluation.answers import AMBIGUOUS, MISSING, Reading, read_answer, read_number
from hvlm.evaluation.scores import PROBLEMS, Prediction
from hvlm.io.json_lines import numbered_lines, write_lines
from hvlm.prompts import LETTERS

CHOICE = ("question_id", "key", "task", "try", "options", "gold", "pred")
OPEN = ("question_id", "key", "task", "try", "answer", "text")


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """One line per prediction; the file appears under its name only when complete. Scores that are not finite
    numbers become null (JSON has no NaN)."""
    write_lines(path, map(_to_dict, predictions))


def _to_dict(p: Prediction) -> dict[str, Any]:
    line = {"question_id": p.question_id, "key": p.key, "task": p.task, "try": p.attempt}
    line |= {"question": p.question} if p.question else {}
    line |= {name: round(at, 4) for name, at in (("depth", p.depth), ("length", p.length)) if at is not None}
    line |= {"about": dict(p.about)} if p.about else {}
    if p.options:
        scores = p.scores and [round(s, 6) if math.isfinite(s) else None for s in p.scores]
        line |= {"options": p.options, "gold": p.gold, "pred": p.pred, "scores": scores, "variant": p.variant}
        line |= {} if p.text is None else {"text": p.text}
        return line | ({"problem": p.problem} if p.problem else {})
    answer = p.answers[0] if len(p.answers) == 1 else p.answers
    return line | {"answer": answer, "text": p.text, "variant": p.variant}


def lines_of(path: Path) -> list[tuple[int, str]]:
    """(number from 1, text) of each line of a file of predictions, in whatever form; UserError where it has none."""
    try:
        lines = list(numbered_lines(path))
    except OSError as error:
        raise UserError(f"predictions={path}: cannot be read ({error.strerror}); give a predictions.jsonl") from error
    except ValueError as error:
        raise UserError(f"predictions={path}: not UTF-8 ({error}); write the file again in UTF-8") from error
    if not lines:
        raise UserError(f"predictions={path}: the file holds no predictions")
    return lines


def read_predictions(path: Path, variant: str = "predictions") -> list[Prediction]:
    """Read a predictions file, whoever made it; ``variant`` names lines that name none.

    Raises UserError with the line number for what cannot be scored: a missing key, a gold or pred index outside the
    options, the same question and try twice, tries that do not count 0, 1, 2, ... within a question.
    """
    path = Path(path)
    predictions: dict[tuple[str, str, int], Prediction] = {}
    for number, line in lines_of(path):
        p = _parse(line, f"{path}, line {number}", variant)
        name = (p.variant, p.question_id, p.attempt)
        if name in predictions:
            raise UserError(f"{path}, line {number}: question {p.question_id!r}, try {p.attempt} stands here twice")
        predictions[name] = p
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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
    is_open = isinstance(value, dict) and "answer" in value and not value.get("options")
    needed = OPEN if is_open else CHOICE
    missing = [k for k in needed if not isinstance(value, dict) or k not in value]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing; a line needs {', '.join(needed)}")
    if not _is_index(value["try"], 2**31):
        raise UserError(f"{where}: try is {value['try']!r}, expected 0, 1, 2, ...")
    found = _open(value, where) if is_open else _choice(value, where)
    return Prediction(
        question_id=str(value["question_id"]), key=str(value["key"]), task=str(value["task"]), attempt=value["try"],
        variant=str(value.get("variant", variant)), question=str(value.get("question", "")),
        depth=_place(value, "depth", where), length=_place(value, "length", where),
        about=_about(value.get("about"), where), **found,
    )  # fmt: skip


def _open(value: dict[str, Any], where: str) -> dict[str, Any]:
    text = value["text"]
    answers = value["answer"] if isinstance(value["answer"], list) else [value["answer"]]
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise UserError(f"{where}: answer is {value['answer']!r}, expected the right answer's text, or a list of such")
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: text is {text!r}, expected what was answered, or null")
    problem = "" if text and text.strip() else MISSING
    return {
        "options": (), "gold": None, "pred": None, "scores": None, "text": text, "answers": tuple(answers),
        "problem": problem,
    }  # fmt: skip


def _choice(value: dict[str, Any], where: str) -> dict[str, Any]:
    options, gold, scores = value["options"], value["gold"], value.get("scores")
    if not isinstance(options, list) or not options:
        raise UserError(f"{where}: options is {options!r}, expected a list of the answers that were offered")
    if not _is_index(gold, len(options)):
        raise UserError(f"{where}: gold is {gold!r}, expected an index from 0 to {len(options) - 1}")
    options = tuple(str(option) for option in options)
    if scores is not None:
        if not isinstance(scores, list) or not all(map(_is_score, scores)):
            raise UserError(f"{where}: scores is {scores!r}, expected a list of numbers, one per option, or null")
        scores = tuple(math.nan if s is None else float(s) for s in scores)
    text = value.get("text")
    if value.get("problem") in PROBLEMS and value["pred"] is None:
        reading = Reading(None, value["problem"])
    else:
        reading = _read(value["pred"], options, where, own=scores is not None or text is not None)
        text = value["pred"] if isinstance(value["pred"], str) else text
    return {
        "options": options, "gold": gold, "pred": reading.index, "scores": scores,
        "text": text if text is None else str(text), "problem": reading.problem,
    }  # fmt: skip


def _read(pred: Any, options: tuple[str, ...], where: str, own: bool) -> Reading:
    """own: a number is an index for certain, because the line carries what the index was made from."""
    if isinstance(pred, list) and len(pred) == 1:
        pred = pred[0]
    if pred is None:
        return Reading(None, MISSING)
    if own and _is_index(pred, len(options)):  # as an evaluation writes it
        return Reading(pred)
    if isinstance(pred, str):
        return read_answer(pred, options)
    try:
        if isinstance(pred, bool) or not isinstance(pred, int | float):
            raise ValueError
        reading = read_number(pred, options)
    except (ValueError, OverflowError):
        raise UserError(
            f"{where}: pred is {pred!r}, expected null, an option or an index, 0 to {len(options) - 1}"
        ) from None
    if reading.problem == AMBIGUOUS and own:
        return Reading(int(pred))
    if reading.problem == AMBIGUOUS:
        raise UserError(
            f"{where}: pred is {pred!r}, which as an index means {options[int(pred)]!r}, but {str(int(pred))!r} is an "
            f"option, too; write the option's letter, {LETTERS[0]!r} to {LETTERS[min(len(options), 26) - 1]!r}"
        )
    return reading


def _place(value: dict[str, Any], name: str, where: str) -> float | None:
    field = value.get(name)
    if field is not None and (isinstance(field, bool) or not isinstance(field, int | float) or not 0 <= field < 1e300):
        raise UserError(f"{where}: {name} is {field!r}, expected a number from 0 on, or null")
    return None if field is None else float(field)


def _about(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict | None) or not all(isinstance(text, str) for text in (value or {}).values()):
        raise UserError(f"{where}: about is {value!r:.80}, expected an object of texts, or null")
    return tuple((value or {}).items())


def _is_score(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and _fits(value))


def _fits(value: float) -> bool:
    """Not a whole number that is too large for a floating-point one; these may be infinite, or none."""
    return isinstance(value, float) or abs(value) < 1e300


def _is_index(value: Any, stop: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < stop
