"""Set runs side by side, accuracy and costs, in a table and a page: ``hvlm compare runs=runs/a,runs/b``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hvlm.commands._words import about_runs, command
from hvlm.console import harmless, setup_logging
from hvlm.errors import UserError

if TYPE_CHECKING:
    from hvlm.evaluation.runs import Run

USAGE = """usage: hvlm compare runs=A,B,... [setting=value ...]

One table of runs, best first: score with its error, chance, blind control, tokens per frame, prefill milliseconds,
decode tokens a second, KV bytes, parameters, operations; plots with the Pareto fronts; and how far the runs are ahead
of one of them on the same questions. Written as compare.md, compare.html (needs no other file) and compare.json.

  runs=      folders of runs, of evaluations, of a sweep or of many runs, or results files, separated by commas
  out=       folder for the files; the folder that holds the first run, or the sweep's
  metric=    what decides; the first figure of the benchmark
  baseline=  the run against which the others are held; the first one
  measure=true  takes what answers cost anew, for all runs on this machine

Runs that differ in their seed alone are one line.
"""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The settings of one command; USAGE says what they are."""

    runs: list[str]
    out: str | None = None
    metric: str | None = None
    baseline: str | None = None
    measure: bool = False


def main(argv: Sequence[str]) -> None:
    command(argv, USAGE, lambda words: work(about_runs(words, Settings, "compare")))


def work(settings: Settings) -> None:
    setup_logging()
    compare(settings)


def compare(settings: Settings) -> Path:
    """Write the comparison; returns its page. Raises UserError before anything is written."""
    from hvlm.evaluation import comparison
    from hvlm.evaluation.results import command_line
    from hvlm.evaluation.runs import find
    from hvlm.io.files import check_writable

    runs, notes = find(settings.runs)
    out = place_of(settings.runs, runs, settings.out)
    check_writable(out, "out")
    if settings.measure:
        measure(runs)
        runs, notes = find(settings.runs)
    found = comparison.compare(runs, settings.metric, settings.baseline)
    found = found._replace(notes=[*notes, *found.notes])
    page = comparison.write(found, out, command_line())
    print("\n".join(comparison.markdown_table(comparison.HEAD, comparison.cells(found), words=3)))
    if found.differences:
        rows = comparison.paired_cells(found.differences)
        print("\n" + "\n".join(comparison.markdown_table(comparison.PAIRED, rows, words=2)))
    for note in found.notes:
        print(harmless(f"\n{note}"))
    print(harmless(f"\nwritten to {page} (and {page.stem}.md, {page.stem}.json)"))
    return page


def place_of(words: Sequence[str], runs: Sequence[Run], out: str | None) -> Path:
    """Where to write: what the command says, the folder that it names and that holds several runs, else the folder
    around the first run."""
    if out is not None:
        return Path(out)
    first = Path(words[0])
    if len(words) == 1 and len(runs) > 1 and first.is_dir():
        return first
    trained = runs[0].trained
    return trained.parent if trained.is_dir() or len(runs) == 1 else trained.parent.parent


def measure(runs: Sequence[Run]) -> None:
    """``task=cost`` of every run that has a model, one after the other."""
    from hvlm.commands.eval import evaluate

    measured = list(dict.fromkeys(run.trained for run in runs if run.stages))
    if not measured:
        raise UserError("measure=true: none of these are folders of trained models; name runs")
    for folder in measured:
        log.info(f"{folder}: what an answer costs")
        evaluate([f"checkpoint={folder}", "task=cost"])
