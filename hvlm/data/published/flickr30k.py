"""Flickr30K (Young et al. 2014): five captions of each picture.

    dataset_flickr30k.json      Karpathy's: {"images": [{"sentids", "imgid", "sentences": [{"tokens", "raw", "imgid",
        "sentid"}], "split": "train", "filename": "1000092795.jpg"}], "dataset": "flickr30k"}
    results_20130124.token      a caption a line: 1000092795.jpg#0<tab>Two young guys with shaggy hair ...
    results.csv                 the same with ``|`` between the cells: image_name| comment_number| comment

Only Karpathy's file says the splits (29,000 to train, 1,014 and 1,000). Its COCO file has the same form, with the
picture's folder in ``filepath``, and some of its pictures for training called restval.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hvlm.data import published
from hvlm.data.sample_fields import FieldError, as_list, as_object, as_text
from hvlm.errors import UserError

TITLE = "Flickr30K"
_TOKEN = re.compile(r"(\S+\.(?:jpg|jpeg|png))#(\d+)\t(.*)", re.IGNORECASE)
# Of the published results.csv one row lacks the second mark: "2199200615.jpg| 4   A dog runs across the grass ."
_CELLS = re.compile(r"([^|]+\.(?:jpg|jpeg|png))\s*\|\s*(\d+)\s*(?:\||\s)\s*(.*)", re.IGNORECASE)
_TITLE = re.compile(r"image_name\s*\|\s*comment_number\s*\|\s*comment\s*")


def is_one(head: str) -> bool:
    first = head.split("\n", 1)[0].rstrip("\r")
    return ('"sentids"' in head and '"filename"' in head) or bool(_TITLE.fullmatch(first) or _TOKEN.fullmatch(first))


def chosen(paths: Sequence[Path]) -> list[Path]:
    """The file that says the splits, where it is there; else the first: the others say the same."""
    return [path for path in paths if path.suffix.lower() == ".json"] or list(paths)[:1]


def read(path: Path) -> Iterator[tuple[int, published.Entry | str]]:
    if path.suffix.lower() != ".json":
        yield from _lines(path)
        return
    value = published.loaded(path)
    if not isinstance(value, dict) or "images" not in value:
        raise UserError(f'{path}: expected {{"images": [...]}}')
    yield from published.each(as_list(value["images"], "images"), lambda item, i: _entry(item, f"images[{i}]"))


def _entry(item: Any, where: str) -> published.Entry:
    item = as_object(item, where)
    name = as_text(item.get("filename"), f"{where}.filename")
    folder = item.get("filepath")
    said = [
        as_text(as_object(one, f"{where}.sentences[{n}]").get("raw"), f"{where}.sentences[{n}].raw").strip()
        for n, one in enumerate(as_list(item.get("sentences"), f"{where}.sentences"))
    ]
    if not said:
        raise FieldError(f"{where}.sentences is empty")
    split = item.get("split")
    split = "train" if split == "restval" else split
    if split not in ("train", "val", "test"):
        raise FieldError(f"{where}.split is {split!r:.40}, expected train, val, test or restval")
    return published.Entry(f"{folder}/{name}" if folder else name, captions=tuple(said), split=split)


def _lines(path: Path) -> Iterator[tuple[int, published.Entry | str]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})") from error
    found: dict[str, list[tuple[int, str]]] = {}
    first: dict[str, int] = {}
    wrong: list[tuple[int, str]] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip() or (number == 1 and _TITLE.fullmatch(line)):
            continue
        parts = (_CELLS if path.suffix.lower() == ".csv" else _TOKEN).fullmatch(line)
        if parts is None or not parts[3].strip():
            wrong.append((number, "expected PICTURE#NUMBER, a tab and a caption" if parts is None else "no caption"))
            continue
        first.setdefault(parts[1], number)
        found.setdefault(parts[1], []).append((int(parts[2]), parts[3].strip()))
    yield from wrong
    for name, said in found.items():
        yield first[name], published.Entry(name, captions=tuple(text for _, text in sorted(said)))
