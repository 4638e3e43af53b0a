"""A folder of videos or pictures with a text of the same name beside each: ``a.mp4`` with ``a.txt`` (a caption) or
``a.json`` (an object, or a list of them). A folder of stills ``a/`` counts as a video where ``a.txt`` or ``a.json``
stands beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvlm.data.samples import natural
from hvlm.data.tar import STILL_FIELDS, TEXT_FIELDS, VIDEO_FIELDS
from hvlm.errors import UserError
from hvlm.prepare.formats import Malformed, Row

MEDIUM, CAPTION = "video", "caption"


class Table:
    about = "a folder of videos or pictures with a .txt or .json of the same name beside each"
    endings = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        columns: dict[str, None] = {MEDIUM: None}
        for _, _, row in self.rows():
            if not isinstance(row, Malformed):
                columns.update(dict.fromkeys(row))
        self.columns = list(columns)
        if len(self.columns) == 1:
            raise UserError(
                f"{path}: no texts. Expected a table in it (.csv, .tsv, .jsonl, .json, .parquet), or a .txt or .json "
                "of the same name beside each video"
            )

    @staticmethod
    def takes(folder: Path) -> bool:
        return any(True for _ in media_below(folder))

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        for number, (medium, texts) in enumerate(media_below(self.path), start=1):
            name = medium.relative_to(self.path).as_posix()
            items: list[Any] = [{}]
            for text in texts:
                items = _items(text)
            for item in items:
                if not isinstance(item, dict):
                    item = Malformed(
                        f"{texts[0].name}: {item.reason if isinstance(item, Malformed) else 'not an object'}"
                    )
                yield self.path.name, number, item if isinstance(item, Malformed) else item | {MEDIUM: name}


def media_below(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """(video, picture or folder of stills; the files with its texts, the JSON last) in natural order."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural)
        texts: dict[str, list[Path]] = {}
        for name in sorted(files, reverse=True):
            stem, _, ending = name.rpartition(".")
            if ending.lower() in TEXT_FIELDS and stem and not name.startswith("."):
                texts.setdefault(stem, []).append(here / name)
        stills = [name for name in folders if name in texts]
        for name in stills:
            yield here / name, texts[name]
        folders[:] = [name for name in folders if name not in stills]
        for name in sorted(files, key=natural):
            stem, _, ending = name.rpartition(".")
            if ending.lower() in VIDEO_FIELDS + STILL_FIELDS and stem and not name.startswith("."):
                yield here / name, texts.get(stem, [])


def _items(text: Path) -> list[Any]:
    try:
        words = text.read_bytes().decode("utf-8-sig")
        if text.suffix.lower() == ".txt":
            return [{CAPTION: words.strip()}]
        value = json.loads(words)
    except UnicodeDecodeError:
        return [Malformed("not UTF-8")]
    except (ValueError, RecursionError) as error:
        return [Malformed(f"not valid JSON ({error})")]
    return value if isinstance(value, list) else [value]
