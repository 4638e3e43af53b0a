"""Questions with answers of many people, as ``head=classify`` is scored on them: VQA's files, or rows of questions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvlm.data.question_file import Row, read_questions
from hvlm.data.sample_fields import FieldError, as_list, as_object, as_text, each_once, shown
from hvlm.errors import UserError, first_few

ENOUGH = 3  # people who must agree for an answer to be wholly right


def soft(answers: list[str]) -> dict[str, float]:
    """{answer: how right it is} of what many people said: a third for each who said it, at most 1 (VQA's rule for
    learning). Of fewer than three people each answer counts as right."""
    counts = Counter(answers)
    if len(answers) < ENOUGH:
        return dict.fromkeys(counts, 1.0)
    return {answer: min(1.0, count / ENOUGH) for answer, count in counts.most_common()}


def read_answers(path: Path, setting: str) -> list[Row]:
    """What people answered: VQA's annotations, or a file of questions in any form of ``benchmark.questions``, in which
    ``answers`` may be a list of what many people said.

        {"annotations": [{"question_id": 1, "question": "how many ?", "video": "a.mp4", "answers": [{"answer": "2"}]}]}

    ``image_id`` may stand for ``video``.

    Questions that stand in a file of their own, as VQA publishes them, are looked for beside it: the same name with
    ``annotations`` replaced by ``questions``, or ``questions.json``.

    Raises:
        UserError: one line that names what is at fault.
    """
    where = f"{setting}={path}"
    value = _json(path, where) if path.suffix.lower() == ".json" else None
    if not isinstance(value, dict) or "annotations" not in value:
        return [row._replace(question=_with_people(row.question)) for row in read_questions(path, setting, False)]
    items = as_list(value["annotations"], "annotations") if value["annotations"] else []
    without = any(isinstance(item, dict) and "question" not in item for item in items)
    texts = _questions_beside(path, where) if without else {}
    rows: dict[str, Row] = {}
    wrong: list[str] = []
    for number, item in enumerate(items, start=1):
        try:
            row = _annotation(item, number, texts)
            name = row.question["id"]
            if rows.setdefault(name, row) is not row:
                raise FieldError(f"annotations[{number - 1}].question_id {name} stands there twice")
        except FieldError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError(f"{where}: {first_few(wrong)}")
    if not rows:
        raise UserError(f"{where}: its annotations are empty")
    return list(rows.values())


def _with_people(question: Mapping[str, Any]) -> dict[str, Any]:
    """A question whose ``answers`` are what enough people said, with the weights of each."""
    people = question.get("answers")
    if not isinstance(people, list) or len(people) < ENOUGH:
        return dict(question)
    return {**question, "answers": soft(people), "people": people}


def _annotation(item: Any, number: int, texts: Mapping[str, str]) -> Row:
    where = f"annotations[{number - 1}]"
    item = as_object(item, where)
    name = as_text(item.get("question_id", number - 1), f"{where}.question_id")
    text = item.get("question", texts.get(name))
    if text is None:
        raise FieldError(f"{where}.question is missing, and no file of questions beside it has the id {name}")
    video = item.get("video", item.get("image_id"))
    answers = [
        as_text(one.get("answer") if isinstance(one, dict) else one, f"{where}.answers[{n}]")
        for n, one in enumerate(as_list(item.get("answers"), f"{where}.answers"))
    ]
    if not answers:
        raise FieldError(f"{where}.answers is {shown(item.get('answers'))}, expected what people answered")
    question = _with_people({"id": name, "question": as_text(text, f"{where}.question"), "answers": answers})
    task = item.get("question_type")
    question |= {"task": task} if isinstance(task, str) and task.strip() else {}
    return Row(number, question, as_text(video, f"{where}.video"), None, None)


def _questions_beside(path: Path, where: str) -> dict[str, str]:
    """{question_id: question} of the file beside VQA's annotations; {} where there is none."""
    for other in (path.with_name(path.name.replace("annotations", "questions")), path.with_name("questions.json")):
        if other == path or not other.is_file():
            continue
        value = _json(other, f"{where}, the questions beside it, {other.name}")
        try:
            return {str(one["question_id"]): one["question"] for one in value["questions"]}
        except (LookupError, TypeError) as error:
            raise UserError(
                f"{where}: {other.name} beside it is not of VQA's form, "
                '{"questions": [{"question_id": 1, "question": "how many ?"}]}'
            ) from error
    return {}


def _json(path: Path, where: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=each_once)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
