"""Lines of ``head.jsonl`` that are to be scored: whether a head can have written them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

from hvlm.data.sample_fields import FieldError, as_number, as_text, shown
from hvlm.errors import UserError, first_few
from hvlm.head._labels import Labels

Line = Mapping[str, Any]


def check_each(lines: Mapping[int, Line], path: Path, name_of: Callable[[Line], str | None]) -> None:
    """Look at each line.

    Args:
        lines: by their number in the file.
        path: of the file, for messages.
        name_of: what is wrong with a line is its FieldError; else it gives a name that no two lines share, or None.

    Raises:
        UserError: one line, with the first of those that are wrong.
    """
    wrong: list[str] = []
    numbers: dict[str, int] = {}
    for number, line in lines.items():
        try:
            name = name_of(line)
            if name is not None and numbers.setdefault(name, number) != number:
                raise FieldError(f"is about {shown(name)}, as line {numbers[name]} is")
        except FieldError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        raise UserError(f"predictions={path}: {first_few(wrong, 'lines')}")


def listed(line: Line, name: str) -> list[Any]:
    """A list that a line must have."""
    value = line.get(name)
    if not isinstance(value, list):
        raise FieldError(f"{name} is {shown(value)}, expected a list")
    return value


def clip_of(line: Line) -> str:
    """The one name of the clip that a line is about."""
    return as_text(line.get("uid") or line.get("key"), "uid")


def label_in(labels: Labels, name: Any, where: str) -> str:
    """A label, one of those of the head."""
    if as_text(name, where) not in labels.place:
        raise FieldError(f"{where}: {labels.unknown(str(name))}")
    return str(name)


def vector(value: Any, where: str, width: int | None = None) -> SequenceOf[float]:
    """Numbers, ``width`` of them."""
    if not isinstance(value, list) or not value or (width is not None and len(value) != width):
        expected = "numbers" if width is None else f"{width} numbers, as in the first line"
        raise FieldError(f"{where} is {shown(value)}, expected a list of {expected}")
    return [as_number(one, where) for one in value]
