"""The one table that a sweep ends with: on the screen, and as Markdown, CSV and JSON beside the sweep."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from hvlm.errors import UserError
from hvlm.io.files import FINISHED, write_atomically
from hvlm.io.foreign import json_of, number, shown, wrong
from hvlm.sweep.job import FIELDS

COLUMNS = ("overrides", "status", "accuracy", "±", "val/loss", "time", "note")
SEEDS = ("overrides", "seeds", "accuracy", "±", "val/loss", "±")
MEANS = ("accuracy_mean", "accuracy_macro", "normalised_macro", "cider_d_macro")  # of benchmarks; may go on _without_x
COLOURS = {
    "done": "green", "failed": "red", "killed": "red", "pruned": "yellow", "busy": "yellow", "running": "cyan",
    "waiting": "dim",
}  # fmt: skip


class Numbers(NamedTuple):
    """What a job came to: the benchmark's mean with its standard error, and the last stage's validation loss."""

    accuracy: float | None = None
    stderr: float | None = None
    val_loss: float | None = None


def read_numbers(folder: Path) -> Numbers:
    """Of the job in ``folder``: the mean of the model itself (not of its blind control) in its results.json, and
    the validation at the end of the stage that was finished last. None where there is none."""
    found = Numbers()
    if (folder / "results.json").exists():
        for record in _records(folder / "results.json"):
            if record["metric"].startswith(MEANS) and record["variant"] != "blind":
                found = Numbers(record["value"], record.get("stderr"))
                break
    stages = [_finished(path) for path in folder.glob(f"*/{FINISHED}")]
    last: dict[str, Any] = max(stages, key=lambda stage: stage["finished_at"], default={})
    return found._replace(val_loss=last.get("metrics", {}).get("val/loss"))


def _records(path: Path) -> list[dict[str, Any]]:
    """Of results.json. UserError where it is none."""
    found = json_of(path)
    is_number = ("a number or null", lambda value: value is None or isinstance(value, int | float))
    fields = {name: ("a text", lambda value: isinstance(value, str)) for name in ("variant", "metric")}
    fields |= {"value": is_number, "stderr": is_number}
    for record in found if isinstance(found, list) else [found]:
        why = wrong(record, fields) if isinstance(record, dict) else f"{shown(record)} is no object"
        if why or not isinstance(found, list):
            raise UserError(f"{path}: no results of an evaluation ({why or 'expected a list'}); evaluate the run again")
    return found


def _finished(path: Path) -> dict[str, Any]:
    """Of a stage that was finished. UserError where it is none."""
    found = json_of(path)
    metrics = found.get("metrics", {}) if isinstance(found, dict) else None
    loss = metrics.get("val/loss") if isinstance(metrics, dict) else ""
    if not (loss is None or isinstance(loss, int | float)) or not number(found.get("finished_at")):
        raise UserError(f"{path}: not what a finished stage leaves; delete it, and the same command writes it again")
    return found


def read_values(folder: Path, names: Sequence[str]) -> dict[str, float]:
    """Of the finished job in ``folder``: ``accuracy`` and ``val/loss`` as in ``read_numbers``, any other name as the
    metric of results.json that the model itself has (prefill_flops, kv_bytes, latency_ms).

    Raises:
        UserError: there is no such number.
    """
    numbers = read_numbers(folder)
    path = folder / "results.json"
    records = _records(path) if path.exists() else []
    known = {r["metric"]: r["value"] for r in reversed(records) if r["variant"] != "blind"}
    known |= {"accuracy": numbers.accuracy, "val/loss": numbers.val_loss}
    found = {name: known.get(name) for name in names}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        there = ", ".join(sorted(name for name, value in known.items() if value is not None)) or "nothing"
        raise UserError(f"hydra.sweeper.objectives: {folder} has no {missing[0]}; it has {there}")
    return {name: float(value) for name, value in found.items() if value is not None}


def read_rows(folder: Path, jobs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of ``jobs``, after those of earlier calls for the same folder that had other jobs."""
    path, names = folder / "sweep.json", {job["name"] for job in jobs}
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except (ValueError, RecursionError):  # a file of somebody else's; it is written anew
        earlier = []
    earlier = (
        [job for job in earlier if isinstance(job, dict) and not wrong(job, FIELDS)]
        if isinstance(earlier, list)
        else []
    )
    kept = [job for job in earlier if job["name"] not in names and (folder / job["name"]).is_dir()]
    return [*({"stderr": None, "val_loss": None, **job} for job in kept), *jobs]


def row(job: Mapping[str, Any]) -> tuple[str, ...]:
    """A job's record as the words of ``COLUMNS``."""
    minutes, seconds = divmod(round(job["seconds"]), 60)
    numbers = (_number(job["accuracy"]), _number(job["stderr"]), _number(job["val_loss"], 4))
    return " ".join(job["overrides"]), job["status"], *numbers, f"{minutes}:{seconds:02d}", job["error"]


def over_seeds(jobs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The words of ``SEEDS``: finished jobs that differ in their seed alone together, the mean of each number with its
    standard error over the seeds. Empty where no two jobs differ so."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for job in jobs:
        if job["status"] == "done":
            groups.setdefault(tuple(o for o in job["overrides"] if not o.startswith("seed=")), []).append(job)
    rows: list[tuple[str, ...]] = []
    for overrides, same in groups.items():
        seeds = [o.removeprefix("seed=") for job in same for o in job["overrides"] if o.startswith("seed=")]
        accuracy, loss = (_mean([job[key] for job in same]) for key in ("accuracy", "val_loss"))
        numbers = (_number(accuracy[0]), _number(accuracy[1]), _number(loss[0], 4), _number(loss[1], 4))
        rows.append((" ".join(overrides), " ".join(seeds), *numbers))
    return rows if any(len(same) > 1 for same in groups.values()) else []


def _mean(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    found = [value for value in values if value is not None]
    if not found:
        return None, None
    return statistics.fmean(found), statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def seeds_table(jobs: Sequence[Mapping[str, Any]]) -> Table | None:
    """``over_seeds`` for the screen; None where there is nothing to put together."""
    rows = over_seeds(jobs)
    if not rows:
        return None
    shown = Table(*SEEDS, title="over seeds (±: standard error of their mean)")
    common = set.intersection(*(set(line[0].split(" ")) for line in rows)) if len(rows) > 1 else set()
    for overrides, *rest in rows:
        own = " ".join(o for o in overrides.split(" ") if o not in common)
        shown.add_row(*(cell.replace("[", r"\[") for cell in (own, *rest)))
    return shown


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
    """sweep.md (with the means over seeds), sweep.csv and sweep.json (the whole records) in ``folder``."""
    lines = [f"# {folder.name}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += [_line(row(job)) for job in jobs]
    if together := over_seeds(jobs):
        lines += ["", "Over seeds (±: standard error of their mean):", ""]
        lines += ["| " + " | ".join(SEEDS) + " |", "|" + "---|" * len(SEEDS), *map(_line, together)]
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
        write_text(folder / name, content)


def write_text(path: Path, text: str) -> None:
    """A small file, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
