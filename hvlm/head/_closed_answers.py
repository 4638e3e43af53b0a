"""Questions with answers of many people, as ``head=classify`` is scored on them: VQA's files, or rows of questions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvlm.data.question_file import read_questions
from hvlm.data.sample_fields import FieldError, as_list, as_object, as_text, shown
from hvlm.errors import UserError

ENOUGH = 3  # people who must agree for an answer to be wholly right
NAMED = 3  # questions at fault that a message names


def soft(answers: list[str]) -> dict[str, float]:
    """{answer: how right it is} of what many people said: a third for each who said it, at most 1 (VQA's rule for
    learning). Of fewer than three people each answer counts as right."""
    counts = Counter(answers)
    if len(answers) < ENOUGH:
        return dict.fromkeys(counts, 1.0)
    return {answer: min(1.0, count / ENOUGH) for answer, count in counts.most_common()}


def read_answers(path: Path, setting: str) -> list[tuple[str, dict[str, Any]]]:
    """What people answered: VQA's annotations, or a file of questions in any form of ``benchmark.questions``, in which
    ``answers`` may be a list of what many people said.

        {"annotations": [{"question_id": 1, "question": "how many ?", "video": "a.mp4", "answers": [{"answer": "2"}]}]}

    ``image_id`` may stand for ``video``.

    Questions that stand in a file of their own, as VQA publishes them, are looked for beside it: ``questions.json`` or
    the same name with ``annotations`` replaced by ``questions``.
    """
    where = f"{setting}={path}"
    value = None
    if path.suffix.lower() == ".json":
        try:
            value = json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict) or "annotations" not in value:
        rows = read_questions(path, setting, choices=False)
        found: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            question = row.question or {}
            if isinstance(question.get("answers"), list) and len(question["answers"]) >= ENOUGH:
                question = question | {"answers": soft(question["answers"]), "people": question["answers"]}
            found.setdefault(row.video, []).append(question)
        return [(video, {"questions": questions}) for video, questions in found.items()]
    texts = _questions_beside(path)
    by_video: dict[str, list[dict[str, Any]]] = {}
    wrong: list[str] = []
    for i, item in enumerate(as_list(value["annotations"], "annotations")):
        try:
            video, question = _annotation(item, i, texts)
            by_video.setdefault(video, []).append(question)
        except FieldError as error:
            wrong.append(str(error))
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise UserError(f"{where}: {'; '.join(wrong[:NAMED])}{more}")
    if not by_video:
        raise UserError(f"{where}: its annotations are empty")
    return [(video, {"questions": questions}) for video, questions in by_video.items()]


def _annotation(item: Any, i: int, texts: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    where = f"annotations[{i}]"
    item = as_object(item, where)
    name = as_text(item.get("question_id", i), f"{where}.question_id")
    text = item.get("question", texts.get(name))
    if text is None:
        raise FieldError(f"{where}.question is missing, and no file of questions beside it has the id {name}")
    video = item.get("video", item.get("image_id"))
    said = as_list(item.get("answers"), f"{where}.answers")
    answers = [
        as_text(one.get("answer") if isinstance(one, dict) else one, f"{where}.answers[{n}]")
        for n, one in enumerate(said)
    ]
    if not answers:
        raise FieldError(f"{where}.answers is {shown(item.get('answers'))}, expected what people answered")
    asked = as_text(text, f"{where}.question")
    question = {"id": name, "question": asked, "answers": soft(answers), "people": answers}
    task = item.get("question_type")
    return as_text(video, f"{where}.video"), question | ({"task": task} if isinstance(task, str) and task else {})


def _questions_beside(path: Path) -> dict[str, str]:
    """{question_id: question} of the file beside VQA's annotations; {} where there is none that can be read."""
    for other in (path.with_name(path.name.replace("annotations", "questions")), path.with_name("questions.json")):
        if other == path or not other.is_file():
            continue
        try:
            items = json.loads(other.read_text(encoding="utf-8-sig"))["questions"]
            return {str(one["question_id"]): one["question"] for one in items}
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return {}
