"""Tables of questions as benchmarks publish them: JSON lists, JSON lines, CSV, TSV and Parquet, with names of columns
of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.data.question_file import Row, rows_of
from hvlm.errors import UserError
from hvlm.prompts import LETTERS, bare_options

ENDINGS = (".parquet", ".json", ".jsonl", ".csv", ".tsv")
COLUMNS = ("id", "video", "picture", "question", "options", "answer", "task", "context", "start", "end")
NEEDED = ("question", "options", "answer")
ABSENT = ("", "N/A")  # in place of an option that a question does not have


class Item(NamedTuple):
    """A row with a question. groups: {column: value} of the breakdowns. picture: its bytes, where the table holds it.
    refused: why it is not asked, or ""."""

    row: Row
    groups: Mapping[str, str]
    picture: bytes | None = None
    refused: str = ""


class Layout(NamedTuple):
    """How a table is read. columns: {ours: theirs}; options may be several, with commas between. answer: what its
    column holds. context: what stands before the question, of ``{context}``. cut: whether start and end count. folder:
    of its videos. fps: of its folders of frames. task: of rows without such a column."""

    columns: Mapping[str, str]
    groups: tuple[str, ...] = ()
    answer: str = "letter"
    context: str = "{context}\n"
    cut: bool = True
    folder: str = ""
    fps: float | None = None
    task: str = "question"


def files_of(path: Path, split: str) -> list[Path]:
    """The table itself, or those of a folder whose names begin with the split. UserError where there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"benchmark.annotations={path}: no such file or folder; name the published table of questions")
    found = sorted(f for f in path.rglob("*") if f.suffix in ENDINGS and f.name.startswith(split))
    if not found:
        raise UserError(
            f"benchmark.annotations={path}: no table in it begins with {split!r} ({', '.join(ENDINGS)}); name a file, "
            "or its beginning with benchmark.split"
        )
    return found


def read_table(path: Path, layout: Layout) -> list[Item]:
    """All rows of one file. UserError for a file that is no table or lacks columns; a row at fault is ``refused``."""

    def item_of(number: int, value: Any) -> Item:
        if not isinstance(value, Mapping):
            raise ValueError("is no object")
        # What CSV leaves out is an empty cell, so only what no row could do without is looked for.
        wanted = [layout.columns[name] for name in NEEDED if name != "options"]
        if lacking := [name for name in wanted if name not in value]:
            raise ValueError(
                f"lacks {', '.join(lacking)}; it has {', '.join(map(str, list(value)[:16]))}; say the names of its "
                "columns in benchmark.columns"
            )
        try:
            return _item(number, value, layout)
        except ValueError as error:
            return Item(Row(number, None, "", None, None), {}, refused=f"{path.name} row {number} {error}")

    if path.suffix == ".parquet":
        rows = _parquet(path)
        try:
            return [item_of(number, value) for number, value in enumerate(rows, start=1)]
        except ValueError as error:
            raise UserError(f"benchmark.annotations={path}: row {error}") from error
    return rows_of(path, "benchmark.annotations", item_of, "question", NEEDED)  # type: ignore[arg-type,return-value]


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"benchmark.annotations={path}: Parquet is read by pyarrow, which is not installed; "
            "pip install 'hvlm[data]'"
        ) from None
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise UserError(f"benchmark.annotations={path}: cannot be read as Parquet ({error})") from error


def _item(number: int, value: Mapping[str, Any], layout: Layout) -> Item:
    """Raises ValueError, which goes on after the row's number."""
    columns = layout.columns
    given = {ours: value.get(theirs) for ours, theirs in columns.items() if ours != "options"}
    options, gold = _options(value, given["answer"], layout)
    asked = str(given["question"]).strip()
    if not asked:
        raise ValueError("has an empty question")
    if context := str(given.get("context") or "").strip():
        asked = layout.context.replace("{context}", context) + asked
    task = str(given["task"]) if given.get("task") not in (None, "") else layout.task
    name = str(given["id"]) if given.get("id") not in (None, "") else f"{layout.task}-{number}"
    question = {
        "id": name.replace("/", "_"), "question": asked, "task": task, "lettered": True,
        "tries": [{"options": options, "gold": gold}], "answer": options[gold],
    }  # fmt: skip
    groups = {column: str(value[column]) for column in layout.groups if value.get(column) is not None}
    picture = None
    if "picture" in columns:
        held = given["picture"]
        picture = held.get("bytes") if isinstance(held, Mapping) else held if isinstance(held, bytes) else None
        if picture is None:
            raise ValueError("has no picture")
        return Item(Row(number, question, name.replace("/", "_"), None, None), groups, picture)
    video = str(given.get("video") or "").strip()
    if not video:
        raise ValueError("names no video")
    section = _section(given) if layout.cut else None
    return Item(Row(number, question, layout.folder + video, section, layout.fps), groups)


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


def _options(value: Mapping[str, Any], answer: Any, layout: Layout) -> tuple[list[str], int]:
    """(the options without letters of their own, the place of the right one)."""
    names = [name.strip() for name in layout.columns["options"].split(",")]
    found = value.get(names[0]) if len(names) == 1 else [value.get(name) for name in names]
    if isinstance(found, str):
        found = found.strip().split("\n")
    if not isinstance(found, list | tuple):
        raise ValueError(f"has no options in {', '.join(names)}")
    texts = ["" if one is None else str(one).strip() for one in found]
    gold = _gold(answer, texts, layout.answer)
    kept = [i for i, text in enumerate(texts) if text not in ABSENT]
    if gold not in kept or not 2 <= len(kept) <= len(LETTERS):
        raise ValueError(f"has {len(kept)} options and the answer {answer!r}; expected 2 to 26, and one of them right")
    return list(bare_options([texts[i] for i in kept])), kept.index(gold)


def _gold(answer: Any, options: list[str], kind: str) -> int:
    said = str(answer).strip()
    if kind == "text":
        places = [i for i, option in enumerate(options) if option == said]
        if not places:
            raise ValueError(f"has the answer {said!r:.60}, which is none of its options")
        return places[0]
    if kind == "index":
        if not said.isdecimal() or int(said) >= len(options):
            raise ValueError(f"has the answer {said!r:.60}, expected a place from 0 to {len(options) - 1}")
        return int(said)
    letter = said.strip("().: ").upper()
    if len(letter) != 1 or letter not in LETTERS[: len(options)]:
        raise ValueError(f"has the answer {said!r:.60}, expected a letter from A to {LETTERS[len(options) - 1]}")
    return LETTERS.index(letter)
