"""Tables of questions as public benchmarks publish them: parquet, JSON, JSON Lines or CSV, one or several files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hvlm.data.question_file import values_of
from hvlm.errors import UserError
from hvlm.prompts import LETTERS, bare_options

PART = "_part"  # a column that every row has: its file's folder below ``path``, or the file's own name
_OPTION = re.compile(r"\s*(?:\(?([A-Z])[).:]|(?:Option|Caption|Sentence)\s+([A-Z]|\d+)\s*:)\s*(\S.*)")


def rows_of(path: Path, patterns: Sequence[str]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(file, number from 1, row) of all tables below ``path`` that the patterns name, in order.

    Raises:
        UserError: no such folder or file, or one that cannot be read.
    """
    if not path.is_dir():
        raise UserError(f"benchmark.path={path}: no such folder; name the local copy of the benchmark")
    files = list(dict.fromkeys(f for pattern in patterns for f in sorted(path.glob(pattern)) if f.is_file()))
    if not files:
        raise UserError(
            f"benchmark.path={path}: holds none of {', '.join(patterns)}; put the published files there, or say where "
            "they are with benchmark.tables=[...]"
        )
    for file in files:
        part = file.parent.name if file.parent != path else file.stem
        if file.suffix == ".parquet":
            found: Iterator[tuple[int, Any]] = enumerate(_parquet(file), start=1)
        else:
            found = values_of(file, f"benchmark.path={path}: {file.name}", "questions")
        for number, value in found:
            if not isinstance(value, dict):
                raise UserError(f"benchmark.path={path}: {file.name}: row {number} is no object")
            yield file.name, number, {**value, PART: part}


def _parquet(file: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"benchmark.path: {file.name} is read by pyarrow, which is not installed: pip install 'hvlm[data]'"
        ) from None
    try:
        return parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:
        raise UserError(f"benchmark.path: {file}: not a readable parquet file ({error})") from error


def cell(row: Mapping[str, Any], names: str | None) -> Any:
    """The value of the first column of ``a|b`` that the row has, None where it has none."""
    found = (row.get(name) for name in (names or "").split("|"))
    return next((value for value in found if value is not None and value != ""), None)


def options_of(row: Mapping[str, Any], columns: Sequence[str], absent: str | None, question: str) -> tuple[str, list]:
    """(the question alone, its options) from columns that hold one option, a list or a line for each; without
    such, from the lines of the question that begin with letters in order."""
    found: list[Any] = []
    for name in columns:
        value = cell(row, name)
        if value is None or (absent is not None and str(value).strip() == absent):
            continue
        if isinstance(value, str) and len(columns) == 1:
            value = [line for line in value.split("\n") if line.strip()]
        if isinstance(value, list) and value:
            found = list(value)
            break
        found.append(value)
    if found:
        texts = [" ".join(str(option).split()) for option in found]
        return question, list(bare_options(texts))
    return _inside(question)


def _inside(question: str) -> tuple[str, list[str]]:
    """A question whose last lines are its options."""
    lines = [line for line in question.split("\n") if line.strip()]
    options: list[str] = []
    while lines and (match := _OPTION.fullmatch(lines[-1])):
        options.insert(0, match[3].strip())
        lines.pop()
        mark = match[1] or match[2]
        if mark in (LETTERS[0], "1"):
            break
    return "\n".join(lines), options


def place_of(answer: Any, options: Sequence[str], counts: bool) -> int:
    """The place of the right option. counts: the answer is a place from 0, also written as text; else it is a letter
    (``B``, ``(B)``, ``B. red``, ``Option 2: red``) or the option's text. Raises ValueError."""
    text = str(answer).strip()
    if counts:
        place = int(float(text))
        if not 0 <= place < len(options):
            raise ValueError(f"the place {place} of {len(options)} options")
        return place
    folded = [" ".join(option.split()).casefold() for option in options]
    if folded.count(" ".join(text.split()).casefold()) == 1:
        return folded.index(" ".join(text.split()).casefold())
    if match := _OPTION.fullmatch(text):
        text, mark = match[3], match[1] or match[2]
        place = int(mark) - 1 if mark.isdecimal() else LETTERS.index(mark)
        if place < len(options) and folded[place].rstrip(".") == " ".join(text.split()).casefold().rstrip("."):
            return place
    bare = text.strip("(). ")
    if len(bare) == 1 and bare.upper() in LETTERS[: len(options)]:
        return LETTERS.index(bare.upper())
    raise ValueError(f"the answer {answer!r:.40}, which is none of {len(options)} options and no letter of theirs")
