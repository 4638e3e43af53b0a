"""A JSON file: a list of objects (LLaVA, ShareGPT), one such list in an object, or an object of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvlm.errors import UserError
from hvlm.prepare.formats import Malformed, Row

KEY = "key"  # the column that holds the names of an object of objects


class Table:
    about = "JSON: a list of objects (LLaVA, ShareGPT, messages), or objects by name"
    endings = (".json",)

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            value = json.loads(path.read_bytes().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason})") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON ({error}); with one object a line, call it .jsonl") from error
        self._items = _list_of(value, path)
        columns: dict[str, None] = {}
        for item in self._items:
            if isinstance(item, dict):
                columns.update(dict.fromkeys(item))
        if not columns:
            raise UserError(f"{path}: no object in it; expected a list of objects")
        self.columns = list(columns)

    @staticmethod
    def takes(folder: Path) -> bool:
        return False

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        for number, item in enumerate(self._items, start=1):
            yield self.path.name, number, item if isinstance(item, dict) else Malformed("not an object")


def _list_of(value: Any, path: Path) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        lists = {k: v for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
        if len(lists) == 1:
            return next(iter(lists.values()))
        if len(lists) > 1:
            raise UserError(f"{path}: lists of objects under {', '.join(lists)}; keep the one that is meant")
        if value and all(isinstance(v, dict) for v in value.values()):
            return [{KEY: key, **item} for key, item in value.items()]
    raise UserError(
        f"{path}: expected a list of objects, found {'an object' if isinstance(value, dict) else 'a value'}"
    )
