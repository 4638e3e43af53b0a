"""Tables of questions as benchmarks publish them: Parquet, JSON, JSON Lines, CSV and TSV, one file or several, with
names of columns of their own."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.benchmark._subtitles import ALONE, Where
from hvlm.data.question_file import listed, values_of
from hvlm.errors import UserError
from hvlm.prompts import LETTERS, bare_options

COLUMNS = (
    "id", "video", "picture", "question", "options", "answer", "task", "context", "start", "end", "subtitles",
    "subtitles_from", "duration",
)  # fmt: skip
# Columns that every row has: its file's folder below the root or else the file's name; the file's name; its place.
PART, FILE, PLACE = "_part", "_file", "_row"
KINDS = ("any", "letter", "index", "text")  # what a column of answers may hold
ABSENT = ("", "N/A")  # in place of an option that a question does not have
YES_NO = ["yes", "no"]
_OPTION = re.compile(r"\s*(?:\(?([A-Z])[).:]|(?:Option|Caption|Sentence)\s+([A-Z]|\d+)\s*:)\s*(\S.*)")


class Layout(NamedTuple):
    """How rows are read. columns: {ours: theirs}; ``a|b``: the first that a row has; ``a,b``: an option each. kept:
    their columns that are handed on. answer: one of ``KINDS``. context: what stands before the question, of
    ``{context}``. cut: whether start and end count."""

    columns: Mapping[str, str]
    kept: tuple[str, ...] = ()
    answer: str = "any"
    context: str = "{context}\n"
    cut: bool = True


class Item(NamedTuple):
    """A row that can be asked. question: as in a sample's JSON. video: its name in the table. section: of it, in
    seconds, or None: all of it. about: what the kept columns say. picture: its bytes, where the table holds it.
    subtitles: where they are."""

    file: Path
    number: int
    question: dict[str, Any]
    video: str
    section: tuple[float, float] | None
    about: Mapping[str, str]
    picture: bytes | None
    subtitles: Where = ALONE


@dataclass
class Table:
    """What some files hold. refused: {row: what is wrong with it}. unanswered: rows without a public answer. unclear:
    whose right option stands there twice. without_picture: of a table that has pictures."""

    items: list[Item] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    unanswered: int = 0
    unclear: int = 0
    without_picture: int = 0

    @cached_property
    def about(self) -> Mapping[str, Mapping[str, str]]:
        """{id: what the kept columns say}."""
        return {item.question["id"]: item.about for item in self.items}

    @cached_property
    def subtitles(self) -> Mapping[str, Where]:
        """{id: where its video's subtitles are}."""
        return {item.question["id"]: item.subtitles for item in self.items}


def files_of(root: Path, patterns: Sequence[str]) -> list[Path]:
    """The table itself, or those below a folder that the patterns name. UserError where there is none."""
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UserError(f"benchmark.path={root}: no such folder or file; name the local copy of the benchmark")
    files = list(dict.fromkeys(f for pattern in patterns for f in sorted(root.glob(pattern)) if f.is_file()))
    if not files:
        raise UserError(
            f"benchmark.path={root}: holds none of {', '.join(patterns)}; put the published files there, or say where "
            "they are with benchmark.tables=[...]"
        )
    return files


def read_table(root: Path, files: Sequence[Path], layout: Layout) -> Table:
    """All rows of the files. UserError for what cannot be read, and for an id that two rows have; a row at fault is
    ``refused``."""
    table = Table()
    seen: dict[str, str] = {}
    total = 0
    for file in files:
        name = file.name if file == root else file.relative_to(root).as_posix()
        part = file.parent.name if file.parent != root and file != root else file.stem
        for number, value in _rows(file):
            total += 1
            row = f"{name} row {number}"
            try:
                if not isinstance(value, Mapping):
                    raise ValueError("is no object")
                own = {PART: part, FILE: file.stem, PLACE: f"{file.stem}-{number}"}
                item = _item(file, number, {**value, **own}, str(total), layout, table)
            except ValueError as error:
                table.refused[row] = str(error)
                continue
            if item is None:
                continue
            known = item.question["id"]
            if seen.setdefault(known, row) != row:
                raise UserError(
                    f"benchmark.path={root}: the id {known!r} of {row} is that of {seen[known]}, too; say another "
                    "column with benchmark.columns.id"
                )
            table.items.append(item)
    return table


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) of one file."""
    if file.suffix.lower() == ".parquet":
        return iter(enumerate(_parquet(file), start=1))
    return values_of(file, f"benchmark.path: {file}", "questions")


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
        raise UserError(f"benchmark.path: {file}: not a readable Parquet file ({error})") from error


def _item(
    file: Path, number: int, value: Mapping[Any, Any], default: str, layout: Layout, table: Table
) -> Item | None:  # fmt: skip
    """The row; None where it is counted in ``table`` and not asked. Raises ValueError, which goes on after its number.

    default: its id, where no column says one.
    """
    columns = layout.columns
    if value.get(None) and any(map(str.strip, value[None])):
        raise ValueError("has more cells than the table has columns; put a text that holds a separator in quotes")
    given = {ours: cell(value, theirs) for ours, theirs in columns.items() if ours != "options"}
    if lacking := [columns[ours] for ours in ("question", "video") if ours in columns and given[ours] is None]:
        known = ", ".join(str(name) for name in list(value)[:16] if name not in (PART, FILE, PLACE))
        raise ValueError(f"lacks {', '.join(lacking)}; it has {known}; say their names in benchmark.columns")
    if given["answer"] is None:
        table.unanswered += 1
        return None
    picture = None
    if "picture" in columns:
        held = given["picture"]
        held = held.get("bytes") if isinstance(held, Mapping) else held
        picture = held if isinstance(held, bytes) else None
        if picture is None:
            table.without_picture += 1
            return None
    asked, options, gold = _choice(value, str(given["question"]).strip(), given["answer"], layout)
    if options.count(options[gold]) > 1:
        table.unclear += 1
        return None
    if not asked:
        raise ValueError("has an empty question")
    if context := str(given.get("context") or "").strip():
        asked = layout.context.replace("{context}", context) + asked
    task = given.get("task")
    question = {
        "id": str(default if given.get("id") is None else given["id"]).replace("/", "_"), "question": asked,
        "task": "question" if task is None else str(task[0] if isinstance(task, list) else task), "lettered": True,
        "tries": [{"options": options, "gold": gold}], "answer": options[gold],
    }  # fmt: skip
    section = _section(given) if layout.cut else None
    about = {name: str(said) for name in layout.kept if (said := cell(value, name)) is not None}
    video = str(given.get("video") or question["id"]).strip()
    return Item(file, number, question, video, section, about, picture, _subtitles(given))


def cell(row: Mapping[str, Any], names: str | None) -> Any:
    """The value of the first column of ``a|b`` that the row has, None where it has none."""
    found = (row.get(name) for name in (names or "").split("|"))
    return next((value for value in found if value is not None and value != "" and value != []), None)


def _subtitles(given: Mapping[str, Any]) -> Where:
    file, begin, duration = (given.get(name) for name in ("subtitles", "subtitles_from", "duration"))
    try:
        return Where(file and str(file), float(begin or 0), None if duration is None else float(duration))
    except (TypeError, ValueError):
        raise ValueError(f"has subtitles from {begin!r} and the duration {duration!r}, expected seconds") from None


def _section(given: Mapping[str, Any]) -> tuple[float, float] | None:
    if given.get("start") is None and given.get("end") is None:
        return None
    try:
        start, end = float(given.get("start") or 0.0), float(1e9 if given.get("end") is None else given["end"])
    except (TypeError, ValueError):
        raise ValueError(f"has start {given.get('start')!r} and end {given.get('end')!r}, expected seconds") from None
    if not 0 <= start < end:
        raise ValueError(f"starts at {start:g} s and ends at {end:g} s")
    return start, end


# -------------------------------------------------------------------------------------------- options and the right one


def _choice(value: Mapping[str, Any], question: str, answer: Any, layout: Layout) -> tuple[str, list[str], int]:
    """(the question alone, its options without letters of their own, the place of the right one)."""
    texts = _of_columns(value, layout.columns.get("options"))
    if not texts:
        question, texts = _inside(question)
    if not texts and str(answer).strip().lower().rstrip(".") in YES_NO:
        texts, answer = YES_NO, str(answer).strip().lower().rstrip(".")
    kept = [i for i, text in enumerate(texts) if text not in ABSENT]
    if not 2 <= len(kept) <= len(LETTERS):
        raise ValueError(f"has {len(kept)} options, expected 2 to {len(LETTERS)}")
    options = list(bare_options([texts[i] for i in kept]))
    if layout.answer == "any":
        return question, options, place_of(answer, options)
    place = _place(answer, texts, layout.answer)
    if place not in kept:
        raise ValueError(f"has the answer {answer!r:.60}, where it has no option")
    return question, options, kept.index(place)


def _of_columns(row: Mapping[str, Any], names: str | None) -> list[str]:
    """The options of columns with one each, or of one with all: a list, also as text, or a line each."""
    for either in (names or "").split("|"):
        columns = [name.strip() for name in either.split(",")]
        found: Any = [row.get(name) for name in columns]
        if all(one is None or one == "" or one == [] for one in found):
            continue
        if len(columns) == 1:
            (found,) = found
        if isinstance(found, str):
            found = _written(found.strip())
        if not isinstance(found, list | tuple):
            raise ValueError(f"has no options in {either}, but {found!r:.60}")
        return ["" if one is None else str(one).strip() for one in found]
    return []


def _written(text: str) -> list[Any]:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1:
        return lines
    try:
        found = ast.literal_eval(text) if text.startswith("[") else None  # VLMEvalKit's tables
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        found = None
    return found if isinstance(found, list) else listed(text)


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


def _place(answer: Any, options: Sequence[str], kind: str) -> int:
    said = str(answer).strip()
    if kind == "text":
        for offered in (list(options), list(bare_options(options))):
            if said in offered:
                return offered.index(said)
        raise ValueError(f"has the answer {said!r:.60}, which is none of its options")
    if kind == "index":
        try:
            place = float(said)
        except ValueError:
            place = math.nan
        if not place.is_integer() or not 0 <= place < len(options):
            raise ValueError(f"has the answer {said!r:.60}, expected a place from 0 to {len(options) - 1}")
        return int(place)
    letter = said.strip("().: ").upper()
    if len(letter) != 1 or letter not in LETTERS[: len(options)]:
        raise ValueError(f"has the answer {said!r:.60}, expected a letter from A to {LETTERS[len(options) - 1]}")
    return LETTERS.index(letter)


def place_of(answer: Any, options: Sequence[str]) -> int:
    """The place of the right option, of an answer that is its text, a letter (``B``, ``(B)``) or both (``B. red``,
    ``Option 2: red``). Raises ValueError."""
    text = str(answer).strip()
    folded = [" ".join(option.split()).casefold() for option in options]
    if " ".join(text.split()).casefold() in folded:
        return folded.index(" ".join(text.split()).casefold())
    if match := _OPTION.fullmatch(text):
        text, mark = match[3], match[1] or match[2]
        place = int(mark) - 1 if mark.isdecimal() else LETTERS.index(mark)
        if 0 <= place < len(options) and folded[place].rstrip(".") == " ".join(text.split()).casefold().rstrip("."):
            return place
    bare = text.strip("(). ")
    if len(bare) == 1 and bare.upper() in LETTERS[: len(options)]:
        return LETTERS.index(bare.upper())
    raise ValueError(f"has the answer {answer!r:.40}, which is none of {len(options)} options and no letter of theirs")
