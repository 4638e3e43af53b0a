"""The one table that a sweep ends with: on the screen, and as Markdown, CSV and JSON beside the sweep."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hvlm.io.files import write_atomically

COLUMNS = ("overrides", "status", "accuracy", "time", "note")
COLOURS = {"done": "green", "failed": "red", "killed": "red", "busy": "yellow", "running": "cyan", "waiting": "dim"}


def read_accuracy(results: Path) -> float | None:
    """``accuracy_mean`` of the model itself (not of its blind control) from a results.json, or None without one."""
    if not results.exists():
        return None
    for record in json.loads(results.read_text(encoding="utf-8")):
        if record["metric"] == "accuracy_mean" and record["variant"] != "blind":
            return record["value"]
    return None


def row(job: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """A job's record as the words of ``COLUMNS``."""
    accuracy = "" if job["accuracy"] is None else f"{job['accuracy']:.3f}"
    minutes, seconds = divmod(round(job["seconds"]), 60)
    return " ".join(job["overrides"]), job["status"], accuracy, f"{minutes}:{seconds:02d}", job["error"]


def table(title: str, jobs: Sequence[Mapping[str, Any]]) -> Table:
    """For the screen: one line per job, with the overrides that differ between them; the common ones stand below."""
    common = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
    shown = Table(*COLUMNS, title=title)
    for job in jobs:
        own = [o for o in job["overrides"] if o not in common]
        overrides, status, *rest = (cell.replace("[", r"\[") for cell in row({**job, "overrides": own}))
        shown.add_row(overrides, f"[{COLOURS[status]}]{status}[/]", *rest)
    if common:
        same = " ".join(o for o in jobs[0]["overrides"] if o in common)
        shown.caption = f"all: {same}".replace("[", r"\[")
    return shown


def write_table(folder: Path, jobs: Sequence[Mapping[str, Any]]) -> None:
    """sweep.md, sweep.csv and sweep.json (the whole records) in ``folder``."""
    lines = [f"# {folder.name}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row(job)) + " |" for job in jobs]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row(job) for job in jobs)
    files = {
        "sweep.md": "\n".join(lines) + "\n",
        "sweep.csv": text.getvalue(),
        "sweep.json": json.dumps(list(jobs), indent=1) + "\n",
    }
    for name, content in files.items():
        write_atomically(folder / name, lambda f, content=content: f.write(content.encode()))
