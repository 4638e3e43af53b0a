"""What the command says: the columns that it took, what will be made, how far it is, what was left out."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from hvlm.console import size_in_words
from hvlm.data.shard_folder import TEXT
from hvlm.prepare.formats import Blob
from hvlm.prepare.plan import Bad, Plan, Sample
from hvlm.prepare.settings import ROLES, SPLITS, Settings
from hvlm.prepare.texts import together

EVERY_S = 30.0  # between two lines where there is no terminal


def console() -> Console:
    """On stdout, without cutting lines where it is no terminal."""
    how: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}
    found = Console(**how)
    return found if found.is_terminal else Console(**how, width=160)


def columns(plan: Plan, to: Console) -> None:
    """Which column was taken for what, with an example."""
    to.print(f"{plan.source.about}: {plan.rows:,} rows")
    table = Table("for", "column", "example")
    for role in ROLES:
        names = plan.taken.columns.get(role)
        if names is None:
            continue
        shown = " | ".join(_short(plan.example.get(name)) for name in names)
        name = ", ".join(names) if len(names) < 4 else f"{names[0]} … {names[-1]}"
        table.add_row(role, name + ("" if role in plan.taken.said else " (guessed)"), shown)
    to.print(table, soft_wrap=False)
    if plan.how is not None:
        ways = {"text": "their text", "letter": "their letter", "index0": "number, from 0", "index1": "number, from 1"}
        to.print(f"answers name options by {ways[plan.how]}")
    for note in plan.taken.notes:
        to.print(note)


def counts(samples: Sequence[Sample], shards: Counter[str], sizes: dict[str, int], to: Console) -> None:
    """A line for each split."""
    table = Table("split", "clips", "sources", "rows", "captions", "questions", "conversations", "shards", "size")
    for split in (*SPLITS, TEXT):
        mine = [sample for sample in samples if sample.split == split]
        if not mine:
            continue
        said = [[part for _, _, part in sample.parts] for sample in mine]
        numbers = [len(mine), len({s.group for s in mine}) if split != TEXT else 0, sum(map(len, said))]
        numbers += [sum(len(together(p, name)) for p in said) for name in ("captions", "questions", "conversations")]
        table.add_row(split, *(f"{n:,}" for n in numbers), f"{shards[split]:,}", size_in_words(sizes[split]))
    to.print(table, soft_wrap=False)


def left_out(bad: Sequence[Bad], to: Console) -> None:
    """How many rows of each kind."""
    for kind, number in Counter(b.kind for b in bad).most_common():
        one = next(b for b in bad if b.kind == kind)
        what = f"row {one.row} of {one.table}: {f'{one.file}: ' if one.file else ''}{one.reason}"
        to.print(f"left out: {number:,} × {kind}, e.g. {what}")


@contextmanager
def progress(plan: Plan, to: Console) -> Iterator[Any]:
    """A function (rows, bytes, bad rows) that shows how far the work is."""
    total = max(1, plan.size)
    if not to.is_terminal:
        started = last = time.monotonic()

        def line(rows: int, done: int, bad: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= EVERY_S:
                last = now
                left = (now - started) * (total - done) / max(done, 1)
                of = f"{size_in_words(done)} of {size_in_words(total)}"
                to.print(f"{rows:,} of {plan.rows:,} rows, {of}, {bad:,} bad, {left:.0f} s left")

        yield line
        return
    parts = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*parts, console=to) as bar:
        task = bar.add_task("", total=total)

        def show(rows: int, done: int, bad: int) -> None:
            bar.update(task, completed=done, description=f"{rows:,} of {plan.rows:,} rows, {bad:,} bad")

        yield show


def next_step(settings: Settings, kinds: set[str]) -> str:
    """The command that trains on what was made. kinds: the roles that columns fill, and the splits that hold clips."""
    stage = "dpo" if "rejected" in kinds else "sft" if "question" in kinds or "conversations" in kinds else "align"
    asked = "choices" if "options" in kinds else "open"
    measured = f"benchmark={asked}" if stage == "sft" and {"question", "test"} <= kinds else "evaluate=false"
    path = shlex.quote(str(settings.out))
    return f"hvlm train stage={stage} dataset=shards dataset.path={path} {measured} run=mine"


def _short(value: Any) -> str:
    text = f"{value.size:,} bytes {value.name}" if isinstance(value, Blob) else " ".join(str(value).split())
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 48 else f"{text[:47]}…"
