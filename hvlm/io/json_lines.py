"""JSON Lines that any program can read back: one value a line, and the only line end is a line feed.

Texts may hold U+0085, U+2028 and U+2029, which ``str.splitlines`` and some editors take for line ends: they are written
as escapes, and lines are cut at line feeds alone. A byte order mark before the first line is no part of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hvlm.io.files import write_atomically
from hvlm.io.foreign import bytes_of

_ESCAPES = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def to_line(value: Any) -> str:
    """The value as one line with its line feed. Raises ValueError for numbers that JSON does not know (NaN)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).translate(_ESCAPES) + "\n"


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write the values, one a line; the file appears under its name only when complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path, lambda file: file.writelines(to_line(value).encode("utf-8", "backslashreplace") for value in values)
    )


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line that is not empty.

    Raises OSError where the file cannot be read, ValueError where it is not UTF-8.
    """
    for number, line in enumerate(bytes_of(Path(path)).decode("utf-8-sig").split("\n"), start=1):
        if line.strip():
            yield number, line


def read_lines(path: Path) -> list[Any]:
    """The values of a file that this program wrote."""
    return [json.loads(line) for _, line in numbered_lines(path)]
