"""VizWiz-VQA (Gurari et al. 2018): a list of questions that blind people asked about their own pictures.

    train.json, val.json    [{"image": "VizWiz_val_00000000.jpg", "question", "answers": [{"answer",
        "answer_confidence"}, ...], "answer_type": "other", "answerable": 1}]

A picture has one question. test.json holds no answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvlm.data import published
from hvlm.data.people import people, question
from hvlm.data.sample_fields import FieldError, as_object, as_text, shown
from hvlm.errors import UserError

TITLE = "VizWiz"


def is_one(head: str) -> bool:
    return '"answerable"' in head and '"answer_confidence"' in head and '"image"' in head


def read(path: Path) -> Iterator[tuple[int, published.Entry | str]]:
    value = published.loaded(path)
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a list of questions")
    yield from published.each(value, lambda item, i: _entry(item, f"[{i}]", path.stem))


def _entry(item: Any, where: str, stem: str) -> published.Entry:
    item = as_object(item, where)
    picture = as_text(item.get("image"), f"{where}.image")
    of = {"set": "vizwiz", "kind": as_text(item.get("answer_type"), f"{where}.answer_type")}
    able = item.get("answerable")
    if able not in (0, 1):
        raise FieldError(f"{where}.answerable is {shown(able)}, expected 0 or 1")
    of |= {"answerable": bool(able)}
    said = people(item.get("answers"), f"{where}.answers")
    asked = question(Path(picture).stem, as_text(item.get("question"), f"{where}.question"), said, of)
    said_by = [*Path(picture).stem.lower().split("_"), *stem.lower().split("_")]  # VizWiz_val_00000000
    split = next((word for word in said_by if word in ("train", "val", "test")), "")
    return published.Entry(picture, asked | {"task": of["kind"]}, split=split)
