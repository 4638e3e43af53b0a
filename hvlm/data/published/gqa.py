"""GQA (Hudson and Manning 2019): one object of questions by their ids.

    val_balanced_questions.json     {"05515938": {"semantic": [...], "entailed": ["05515937"], "equivalent": [...],
        "question", "imageId": "2405722", "isBalanced": true, "groups", "answer", "semanticStr", "annotations",
        "types": {"detailed": "existAttrC", "semantic": "attr", "structural": "verify"}, "fullAnswer"}}

Pictures are ``images/2405722.jpg``. Accuracy is that of balanced questions; consistency also looks at the others, so it
needs ``val_all_questions.json``. The split is that of the file's name; testdev is the test split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hvlm.data import published
from hvlm.data.sample_fields import as_flag, as_list, as_object, as_text
from hvlm.errors import UserError

TITLE = "GQA"
BALANCED = "_balanced_"
SPLITS = {"train": "train", "val": "val", "testdev": "test", "test": "test"}


def is_one(head: str) -> bool:
    return '"imageId"' in head and '"isBalanced"' in head and '"answer"' in head


def chosen(paths: Sequence[Path]) -> list[Path]:
    """Those with balanced questions alone, where there are some: the others hold them once more."""
    return [path for path in paths if BALANCED in path.name] or list(paths)


def read(path: Path) -> Iterator[tuple[int, published.Entry | str]]:
    value = published.loaded(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object of questions by their ids")
    split = SPLITS.get(path.name.partition("_")[0], "")
    yield from published.each(value.items(), lambda item, _: _entry(*item, split))


def _entry(name: str, item: Any, split: str) -> published.Entry:
    item = as_object(item, name)
    answer = as_text(item.get("answer"), f"{name}.answer")
    types = as_object(item.get("types") or {}, f"{name}.types")
    of: dict[str, Any] = {"set": "gqa", "kind": "open" if types.get("structural") == "query" else "binary"}
    of["balanced"] = as_flag(item.get("isBalanced", True), f"{name}.isBalanced")
    others = [as_text(one, f"{name}.entailed") for one in as_list(item.get("entailed") or [], f"{name}.entailed")]
    of["entailed"] = [one for one in others if one != name]
    question = {"id": name, "question": as_text(item.get("question"), f"{name}.question"), "answer": answer}
    question |= {"answers": {answer: 1.0}, "published": of}
    question |= {"task": types["structural"]} if isinstance(types.get("structural"), str) else {}
    return published.Entry(as_text(item.get("imageId"), f"{name}.imageId"), question, split=split)
