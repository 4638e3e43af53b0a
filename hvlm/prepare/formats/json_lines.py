"""JSON Lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from hvlm.errors import UserError
from hvlm.prepare.formats import Malformed, Row


class Table:
    about = "JSON Lines, one object a line"
    endings = (".jsonl", ".ndjson")

    def __init__(self, path: Path) -> None:
        self.path = path
        columns: dict[str, None] = {}
        broken = total = 0
        for _, _, row in self.rows():
            total += 1
            if isinstance(row, Malformed):
                broken += 1
            else:
                columns.update(dict.fromkeys(row))
        if not columns:
            raise UserError(f"{path}: none of its {total} lines is a JSON object; expected one object a line")
        self.columns = list(columns)

    @staticmethod
    def takes(folder: Path) -> bool:
        return False

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield self.path.name, number, row_of(line.removeprefix(b"\xef\xbb\xbf"))


def row_of(line: bytes) -> Row:
    """The object that a line of JSON holds."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return Malformed("not UTF-8")
    except RecursionError:
        return Malformed("lists or objects stand in each other too deeply")
    except ValueError as error:
        return Malformed(f"not valid JSON ({error})")
    return value if isinstance(value, dict) else Malformed("not an object")
