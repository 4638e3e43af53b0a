"""Records of the experiments, and how their figures are written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
Record = dict[str, Any]


@cache
def read(file: str) -> tuple[Record, ...]:
    """All records of ``experiments/<file>``; none where it has not been written yet."""
    path = HERE / file
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ()


def one(file: str, **where: Any) -> Record:
    """The record whose fields are those.

    Raises:
        LookupError: there is none, or more than one.
    """
    found = some(file, **where)
    if len(found) != 1:
        raise LookupError(f"experiments/{file}: {len(found)} records with {where}, expected one")
    return found[0]


def some(file: str, **where: Any) -> list[Record]:
    """The records whose fields are those."""
    return [r for r in read(file) if all(r.get(key) == value for key, value in where.items())]


def percent(record: Record, digits: int = 1) -> str:
    """``97.5 ± 0.8``."""
    error = "" if record["stderr"] is None else f" ± {100 * record['stderr']:.{digits}f}"
    return f"{100 * record['value']:.{digits}f}{error}"


def mean(records: Iterable[Record]) -> str:
    """The mean of the values in percent, without an error: those of the tasks are not independent."""
    values = [record["value"] for record in records]
    return f"{100 * sum(values) / len(values):.1f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def provenance(file: str) -> list[str]:
    """One line: seeds, machines, torch and commits of a file's records."""

    def distinct(key: str) -> str:
        parts = [part for r in read(file) for part in str(r[key]).split(" ; ")]
        return ", ".join(dict.fromkeys(parts))

    seeds = sorted({seed for r in read(file) for seed in r["seeds"]})
    commits = ", ".join(dict.fromkeys(c[:7] for c in distinct("commit").split(", ")))
    dirty = " (some with uncommitted changes)" if any(r["dirty"] for r in read(file)) else ""
    return [
        f"`experiments/{file}`: seeds {', '.join(map(str, seeds))}; {distinct('cpu')}; torch {distinct('torch')}; "
        f"commits {commits}{dirty}."
    ]
