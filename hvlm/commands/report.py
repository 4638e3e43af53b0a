"""Write the report of a run, a sweep or several runs as one page: ``hvlm report runs=runs/demo``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hvlm.commands._words import about_runs, command
from hvlm.console import harmless, setup_logging

USAGE = """usage: hvlm report runs=A,B,... [setting=value ...]

One page that needs no other file and no network: results with their errors, plots of accuracy against cost, learning
curves, where the model looked and what it merged, clips with questions, answers and blind answers, the machine and the
commands that make it again. Of one run it is what training ends with; of several, or of a sweep, all of them side by
side, seeds put together, with differences on the same questions. Written as report.html and report.md.

  runs=      folders of runs, of evaluations, of a sweep or of many runs, separated by commas
  out=       folder for the files; a run's own, a sweep's, or the one that holds the first run
  metric=    what decides (several runs); the first figure of the benchmark
  baseline=  the run against which the others are held; the first one
"""


@dataclass(frozen=True)
class Settings:
    """The settings of one command; USAGE says what they are."""

    runs: list[str]
    out: str | None = None
    metric: str | None = None
    baseline: str | None = None


def main(argv: Sequence[str]) -> None:
    command(argv, USAGE, lambda words: work(about_runs(words, Settings, "report")))


def work(settings: Settings) -> None:
    setup_logging()
    page = report(settings)
    print(harmless(f"written to {page} (and {page.stem}.md)"))


def report(settings: Settings) -> Path:
    """Write it; returns the page. Raises UserError."""
    from hvlm.commands.compare import place_of
    from hvlm.evaluation import report_runs
    from hvlm.evaluation.report import write_report
    from hvlm.evaluation.results import command_line
    from hvlm.evaluation.runs import find
    from hvlm.io.files import check_writable

    runs, notes = find(settings.runs, scored=False)
    if len(runs) == 1 and settings.out is None and runs[0].folder.is_dir() and not settings.metric:
        check_writable(runs[0].folder, "runs")
        return write_report(runs[0].folder).with_suffix(".html")
    out = place_of(settings.runs, runs, settings.out)
    check_writable(out, "out")
    return report_runs.write(runs, out, command_line(), notes, settings.metric, settings.baseline)
