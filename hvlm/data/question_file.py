"""Questions in a file beside a folder of videos: JSON Lines, JSON or CSV, one question a row.

    {"question": "What is cut?", "options": ["bread", "wood"], "answer": "A", "video": "a/1.mp4"}

``question``, ``video`` and ``answer`` (or ``gold``, the place of the right option; ``answers``, all that count as
right) are needed, ``options`` where there is something to choose. ``id``, ``task``, ``start`` and ``end`` (seconds: the
part of the video that is asked about) and ``fps`` (of a folder of stills) may be there; other columns are not looked
at. In CSV, with ``,`` or ``;`` between cells, ``options`` is a JSON list or has ``|`` between its parts, or every
option has a column: A, B, C, ..., or option_1, option_2, ... (also from 0, and option_a, option_b, ...).
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from hvlm.data.delimiter import delimiter
from hvlm.data.options import gold_of
from hvlm.data.sample_fields import each_once
from hvlm.errors import UserError, first_few
from hvlm.prompts import LETTERS

TABLES = (".csv", ".tsv")
NEEDED = ("question", "answer", "video")
Made = TypeVar("Made")
_DECIMAL = re.compile(r"\d*\.\d+|\d+\.")


class Row(NamedTuple):
    """One question. question: as in a sample's JSON (``data/sample_json.py``), None where ``about`` says all. video:
    its name in the folder. section: of the video, in seconds, or None: all of it. fps: of stills, or None. about: more
    fields of the clip's JSON."""

    number: int
    question: dict[str, Any] | None
    video: str
    section: tuple[float, float] | None
    fps: float | None
    about: Mapping[str, Any] = MappingProxyType({})


def read_questions(path: Path, setting: str, choices: bool) -> list[Row]:
    """All rows of the file.

    Args:
        path: of the file; its ending says the form (.jsonl, .json, .csv, .tsv).
        setting: whose value the path is, for messages.
        choices: whether every question needs options, 2 to 26.

    Raises:
        UserError: the file cannot be read, or some rows are malformed; the first of them are named by their number
            (of the line, in JSON of the place in its list, from 1) with what was found and expected.
    """
    numbers: dict[str, int] = {}

    def row_of(number: int, value: Any) -> Row:
        row = _row(number, value, choices)
        name = row.question["id"]
        if numbers.setdefault(name, number) != number:
            raise ValueError(f"has the id {name!r}, as row {numbers[name]}; give every question its own")
        return row

    return rows_of(path, setting, row_of, "question", NEEDED)


def rows_of(
    path: Path, setting: str, row_of: Callable[[int, Any], Row], holds: str, needed: Sequence[str]
) -> list[Row]:
    """All rows of a file.

    Args:
        path, setting: see ``read_questions``.
        row_of: of a row's number and its value as in JSON; its ValueError goes on after the number.
        holds, needed: what a row is, and what it must have, for messages.

    Raises:
        UserError: see ``read_questions``.
    """
    where, table = f"{setting}={path}", path.suffix.lower() in TABLES
    none = f"holds no {holds}; a row needs {', '.join(needed)}"
    values = values_of(path, where, f"{holds}s")
    return made_of(values, lambda number, value: row_of(number, of_columns(value) if table else value), where, none)


def made_of(values: Iterable[tuple[int, Any]], make: Callable[[int, Any], Made], where: str, none: str) -> list[Made]:
    """What ``make`` gives of every (number, value).

    Args:
        values: see ``values_of``.
        make: of a row's number and its value; its ValueError goes on after the number.
        where: what messages begin with.
        none: what is said where there is no row.

    Raises:
        UserError: names the rows that ``make`` refuses.
    """
    made: list[Made] = []
    wrong: list[str] = []
    for number, value in values:
        try:
            made.append(make(number, value))
        except ValueError as error:
            wrong.append(f"row {number} {error}")
    if wrong:
        raise UserError(f"{where}: {first_few(wrong, 'rows')}")
    if not made:
        raise UserError(f"{where}: {none}")
    return made


def values_of(path: Path, where: str, holds: str) -> Iterator[tuple[int, Any]]:
    """(number, value) of every row. UserError for a file that cannot be read; it begins with ``where``. holds: what the
    rows are, for messages."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}); name a .jsonl, .json or .csv file") from error
    except ValueError as error:
        raise UserError(f"{where}: not UTF-8 ({error}); write the file again in UTF-8") from error
    ending = path.suffix.lower()
    if ending in TABLES:
        try:
            mark = "\t" if ending == ".tsv" else delimiter(text.partition("\n")[0], text.splitlines(keepends=True))
        except csv.Error as error:
            raise UserError(f"{where}: is no CSV ({error})") from error
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        try:
            for value in reader:
                yield reader.line_num, value
        except csv.Error as error:
            raise UserError(f"{where}: line {reader.line_num} is no CSV ({error})") from error
    elif ending == ".json":
        value = _json(text, where)
        if isinstance(value, dict):
            lists = [field for field in value.values() if isinstance(field, list)]
            value = lists[0] if len(lists) == 1 else value
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list of {holds} (or an object that holds one)")
        yield from enumerate(value, start=1)
    elif ending in (".jsonl", ".ndjson"):
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, _json(line, f"{where}: row {number}")
    else:
        raise UserError(f"{where}: its ending says no form; name it .jsonl, .json, .csv or .tsv")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error


def of_columns(value: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of CSV with its texts as what they mean: numbers, lists, options in columns of their own.

    Raises ValueError, which goes on after the row's number.
    """
    if any(map(str.strip, value.get(None) or ())):  # type: ignore[call-overload]
        raise ValueError("has more cells than the table has columns; put a text that holds a separator in quotes")
    fields = {name.strip(): text.strip() for name, text in value.items() if isinstance(text, str) and text.strip()}
    if "options" in fields:
        fields["options"] = listed(fields["options"])
    elif own := _own_columns(fields):
        fields["options"] = list(own.values())
        answer = fields.get("answer", "")
        from_1 = next(iter(own)) == "option_1"
        if from_1 and answer.isdecimal() and answer not in own.values() and "gold" not in fields:
            raise ValueError(
                f"has answer {answer} beside columns that count from 1; write the option's letter or text, or its "
                "place from 0 as gold"
            )
    if "answers" in fields:
        fields["answers"] = listed(fields["answers"])
    numbers = ["gold", "start", "end", "fps"] + (["answer"] if "options" in fields else [])
    for name in (name for name in numbers if name in fields):
        text = fields[name]
        if text.isdecimal():
            fields[name] = int(text)
        elif name != "answer" and _DECIMAL.fullmatch(text):
            fields[name] = float(text)
    return fields


def _own_columns(fields: Mapping[str, str]) -> dict[str, str]:
    """{column: option} of a row whose table has a column for each, from the first on; empty where it has none."""
    kinds = [list(LETTERS), [f"option_{letter.lower()}" for letter in LETTERS]]
    kinds += [[f"option_{i}" for i in range(first, first + len(LETTERS))] for first in (0, 1)]
    for names in kinds:
        given = {name: text for name in names for column, text in fields.items() if column in (name, name.capitalize())}
        if given and list(given) == names[: len(given)]:
            return given
    return {}


def listed(text: str) -> list[Any]:
    if text.startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, list):
            return found
    return [part.strip() for part in text.split("|")]


def _row(number: int, value: Any, choices: bool) -> Row:
    """Raises ValueError, which goes on after the row's number."""
    if not isinstance(value, dict):
        raise ValueError(f"is no object; expected one with {', '.join(NEEDED)}")
    value = {name: field for name, field in value.items() if field is not None}
    options = _options(value.get("options"))
    needed = {"question": ("question",), "answer": ("answer", "gold") if options else ("answer", "answers")}
    needed |= {"video": ("video",)} | ({"options": ("options",)} if choices else {})
    missing = [name for name, either in needed.items() if not any(one in value for one in either)]
    if missing:
        hint = "; questions without options are asked by benchmark=open" if missing == ["options"] else ""
        found = ", ".join(map(str, list(value)[:12])) or "nothing"
        raise ValueError(f"lacks {', '.join(missing)}; it has {found}, expected {', '.join(needed)}{hint}")
    name = text_of(value, "id") if "id" in value else f"row{number}"
    question = {"id": name, "question": text_of(value, "question")}
    question |= {"task": text_of(value, "task")} if "task" in value else {}
    if options:
        if not 2 <= len(options) <= len(LETTERS):
            raise ValueError(f"has {len(options)} options, expected 2 to {len(LETTERS)}")
        if len({str(option).strip() for option in options}) < len(options):
            raise ValueError("has two equal options; each must be another answer")
        question |= {"options": [whole(str(option), "options") for option in options], "gold": _gold(value, options)}
    elif "answers" in value:
        given = value["answers"] if isinstance(value["answers"], list) else [value["answers"]]
        question["answers"] = [text_of({"answers": one}, "answers") for one in given]
        if not given:
            raise ValueError("has no answers in answers")
    else:
        question["answer"] = text_of(value, "answer")
    return Row(number, question, text_of(value, "video"), section_of(value), seconds_of(value, "fps"))


def _options(value: Any) -> list[Any]:
    """A list, or an object whose keys are the letters; [] where there are none."""
    if isinstance(value, dict) and [str(k).strip().upper() for k in value] == list(LETTERS[: len(value)]):
        value = list(value.values())
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(o, str | int | float) and str(o).strip() for o in value):
        raise ValueError(f"has options {value!r:.60}, expected a list of texts")
    return value


def _gold(value: Mapping[str, Any], options: list[Any]) -> int:
    if "gold" in value:
        gold = value["gold"]
        if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(options):
            raise ValueError(f"has gold {gold!r}, expected the place of an option, 0 to {len(options) - 1}")
        return gold
    try:
        return gold_of(value["answer"], options)
    except ValueError as error:
        raise ValueError(f"has answer {value['answer']!r:.60}, expected {error}") from None


def text_of(value: Mapping[str, Any], name: str) -> str:
    field = value[name]
    if isinstance(field, bool) or not isinstance(field, str | int | float) or not str(field).strip():
        raise ValueError(f"has {name} {field!r:.60}, expected text")
    return whole(str(field), name) if isinstance(field, str) else _digits(field, name)


def whole(text: str, name: str) -> str:
    """The text, which can be written down: ValueError where it holds half a character."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"has half a character (a lone surrogate) in {name}")
    return text


def _digits(number: float, name: str) -> str:
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"has {name} {number}, expected text")
    return str(number)


def seconds_of(value: Mapping[str, Any], name: str) -> float | None:
    field = value.get(name)
    if field is None:
        return None
    if isinstance(field, bool) or not isinstance(field, int | float) or not 0 <= field < 1e9:
        raise ValueError(f"has {name} {field!r:.60}, expected a number from 0 on")
    return float(field)


def section_of(value: Mapping[str, Any]) -> tuple[float, float] | None:
    start, end = seconds_of(value, "start"), seconds_of(value, "end")
    if start is None and end is None:
        return None
    start, end = start or 0.0, 1e9 if end is None else end
    if end <= start:
        raise ValueError(f"ends at {end:g} s, before it starts at {start:g} s")
    return start, end
