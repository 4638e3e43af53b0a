"""VQAv2 (Goyal et al. 2017): annotations, with the questions in a file of their own beside them.

    v2_mscoco_train2014_annotations.json       {"info", "license", "data_subtype", "annotations": [{"question_type",
        "multiple_choice_answer", "answers": [{"answer", "answer_confidence", "answer_id"}], "image_id", "answer_type",
        "question_id"}], "data_type"}
    v2_OpenEnded_mscoco_train2014_questions.json      {..., "questions": [{"image_id", "question", "question_id"}]}

Pictures are ``COCO_train2014_000000458752.jpg``. Files of one's own in this form may hold ``question`` and ``video`` in
the annotations themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hvlm.data import published
from hvlm.data.people import people, question
from hvlm.data.sample_fields import FieldError, as_list, as_object, as_text, shown
from hvlm.errors import UserError

TITLE = "VQAv2"
KEY = "annotations"


def is_one(head: str) -> bool:
    return f'"{KEY}"' in head and '"answers"' in head and '"question_id"' in head


def read(path: Path) -> Iterator[tuple[int, published.Entry | str]]:
    return rows_of(published.loaded(path), path)


def rows_of(value: Any, path: Path) -> Iterator[tuple[int, published.Entry | str]]:
    """The same of a file that is read already."""
    if not isinstance(value, dict) or KEY not in value:
        found = (
            f"one with {', '.join(map(shown, list(value)[:3])) or 'nothing'}"
            if isinstance(value, dict)
            else shown(value)
        )
        raise UserError(f"{path}: expected one object that holds {KEY}, found {found}")
    items = as_list(value[KEY], KEY) if value[KEY] else []
    without = any(isinstance(item, dict) and "question" not in item for item in items)
    texts, names = _questions_beside(path) if without else {}, set[str]()
    for i, item in enumerate(items):
        try:
            entry = _entry(item, i, texts, value.get("data_type"), value.get("data_subtype"))
            name = entry.question["id"] if entry.question else ""
            if name in names:
                raise FieldError(f"{KEY}[{i}].question_id {name} stands there twice")
            names.add(name)
            yield i + 1, entry
        except FieldError as error:
            yield i + 1, str(error)


def _entry(item: Any, i: int, texts: Mapping[str, str], kind: Any, subset: Any) -> published.Entry:
    where = f"{KEY}[{i}]"
    item = as_object(item, where)
    name = as_text(item.get("question_id", i), f"{where}.question_id")
    text = item.get("question", texts.get(name))
    if text is None:
        raise FieldError(f"{where}.question is missing, and no file of questions beside it has the id {name}")
    said = people(item.get("answers"), f"{where}.answers")
    of = {"set": "vqav2", "kind": item["answer_type"]} if isinstance(item.get("answer_type"), str) else {}
    asked = question(name, as_text(text, f"{where}.question"), said, of, item.get("multiple_choice_answer"))
    task = item.get("question_type")
    asked |= {"task": task} if isinstance(task, str) and task.strip() else {}
    picture = as_text(item.get("video", item.get("image_id")), f"{where}.video")
    split = ""
    if isinstance(subset, str) and "video" not in item:
        picture, split = _picture(picture, kind, subset), subset.rstrip("0123456789").partition("-")[0]
    return published.Entry(picture, asked, split=split if split in ("train", "val", "test") else "")


def _picture(name: str, kind: Any, subset: str) -> str:
    """COCO's name of a picture; of test-dev2015 and test2015 it is the same."""
    subset = "test2015" if subset == "test-dev2015" else subset
    if not name.isdecimal():
        return name
    return f"{'COCO' if kind in (None, 'mscoco') else kind}_{subset}_{name.zfill(12)}"


def _questions_beside(path: Path) -> dict[str, str]:
    """{question_id: question} of the file beside the annotations; {} where there is none. UserError where it cannot be
    read."""
    plain = path.name.replace(KEY, "questions")
    names = [plain, plain.replace("v2_", "v2_OpenEnded_", 1), f"OpenEnded_{plain}", "questions.json"]
    for other in (path.with_name(name) for name in names):
        if other == path or not other.is_file():
            continue
        value = published.loaded(other, f"{path}, the questions beside it, {other.name}")
        try:
            return {str(one["question_id"]): one["question"] for one in value["questions"]}
        except (LookupError, TypeError) as error:
            raise UserError(
                f"{path}: {other.name} beside it is not of VQA's form, "
                '{"questions": [{"question_id": 1, "question": "how many ?"}]}'
            ) from error
    return {}
