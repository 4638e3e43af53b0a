"""TextVQA (Singh et al. 2019): questions about what is written in a picture of OpenImages.

    TextVQA_0.5.1_val.json      {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data":
        [{"question_id", "question", "image_id": "003a8ae2ef43b901", "image_classes", "flickr_original_url",
        "flickr_300k_url", "image_width", "image_height", "answers": ["nous les gosses", ...], "question_tokens",
        "set_name": "val"}]}

Pictures are ``train_images/003a8ae2ef43b901.jpg``, those of the validation set, too. The test set holds no answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvlm.data import published
from hvlm.data.people import people, question
from hvlm.data.sample_fields import as_list, as_object, as_text
from hvlm.errors import UserError

TITLE = "TextVQA"


def is_one(head: str) -> bool:
    return '"data"' in head and '"flickr_300k_url"' in head and '"answers"' in head


def read(path: Path) -> Iterator[tuple[int, published.Entry | str]]:
    value = published.loaded(path)
    if not isinstance(value, dict) or "data" not in value:
        raise UserError(f'{path}: expected {{"data": [...]}}')
    yield from published.each(as_list(value["data"], "data"), lambda item, i: _entry(item, f"data[{i}]"))


def _entry(item: Any, where: str) -> published.Entry:
    item = as_object(item, where)
    name = as_text(item.get("question_id"), f"{where}.question_id")
    said = people(item.get("answers"), f"{where}.answers")
    asked = question(name, as_text(item.get("question"), f"{where}.question"), said, {"set": "textvqa"})
    split = item.get("set_name")
    return published.Entry(
        as_text(item.get("image_id"), f"{where}.image_id"), asked, split=split if split in ("train", "val") else ""
    )
