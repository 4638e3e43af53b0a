"""The report of several runs, of a sweep's for one: the comparison, how they learned, what they saw, and clips with the
answers of all. ``report.html`` needs no other file; ``report.md`` reads in a terminal.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from hvlm.evaluation import comparison, html
from hvlm.evaluation import report_tables as tables
from hvlm.evaluation.comparison import Comparison
from hvlm.evaluation.leaderboard import Line
from hvlm.evaluation.markdown import plain
from hvlm.evaluation.needle_map import PICTURE
from hvlm.evaluation.predictions import read_predictions
from hvlm.evaluation.report_answers import PREDICTIONS, Shown, shown, side_by_side
from hvlm.evaluation.report_data import BLIND, Series, read_curves
from hvlm.evaluation.report_html import PLOTS, made
from hvlm.evaluation.report_pictures import gates, gaze, merging
from hvlm.evaluation.runs import Run
from hvlm.io.files import write_text
from hvlm.viz.plots import COLOURS, Band, curves

NAME = "report"
MOST = len(COLOURS)  # lines whose curves share a picture
PICTURED = 6  # lines with pictures and answers
SHEETS = 6  # clips with the answers of all
GAZES = 2  # pictures of a kind of one line


class Group(NamedTuple):
    """What is drawn in one colour: a line of the table with its runs, or a run without results."""

    name: str
    runs: list[Run]


def write(
    runs: Sequence[Run], out: Path, command: str, notes: Sequence[str] = (), metric: str | None = None,
    baseline: str | None = None,
) -> Path:  # fmt: skip
    """report.html and report.md in ``out``. Returns the page.

    Args:
        runs: with results or, as long as they are not evaluated, stages.
        out: a folder.
        command: that makes the report again.
        notes: lines to put below the table.
        metric, baseline: see ``comparison.compare``.

    Raises:
        UserError: see ``comparison.compare``.
    """
    out.mkdir(parents=True, exist_ok=True)
    scored = [run for run in runs if run.records]
    found = comparison.compare(scored, metric, baseline) if scored else None
    groups = [] if found is None else [Group(line.name, list(line.runs.values())) for line in found.lines]
    groups += [Group(run.name, [run]) for run in runs if not run.records]
    notes = [*notes, *(f"{run.name} has no results yet" for run in runs if not run.records)]
    title = out.resolve().name
    parts = tables.top(title, found, runs, notes)
    lines = [f"# {plain(title)}", ""]
    if found is not None:
        parts += comparison.sections(found, [*tables.by_seed(found.lines), *tables.by_task(found.lines)])
        lines += comparison.markdown(found._replace(notes=[*notes, *found.notes]), [], command)
    else:
        lines += [f"{plain(note)}." for note in notes]
    parts += tables.left_out_of_it(notes)
    parts += _learning(groups)
    parts += _seen(groups)
    if found is not None:
        parts += _clips(found)
    parts += _made([run for group in groups for run in group.runs], command)
    write_text(out / f"{NAME}.md", "\n".join(lines) + "\n")
    write_text(out / f"{NAME}.html", html.document(title, parts))
    return out / f"{NAME}.html"


# ------------------------------------------------------------------------------------------------------------ learning


def _learning(groups: Sequence[Group]) -> list[str]:
    """The curves of all lines, stage by stage, over the seeds of a line their mean and its standard error."""
    drawn = [group for group in groups if any(run.stages for run in group.runs)][:MOST]
    if not drawn:
        return []
    parts = ["<h2>How they learned</h2>", _legend([group.name for group in drawn])]
    stages = dict.fromkeys(stage for group in drawn for run in group.runs for stage in run.stages)
    several = False
    for stage in stages:
        logged = {g.name: [read_curves(run.trained / stage) for run in g.runs if stage in run.stages] for g in drawn}
        pictures = []
        for name in dict.fromkeys(name for names in PLOTS.values() for name in names):
            series: dict[str, list[tuple[float, float]]] = {}
            bands: dict[str, Band] = {}
            for group, of in logged.items():
                series[group], band = over_seeds([one[name] for one in of if name in one])
                bands |= {group: band} if band else {}
            several = several or bool(bands)
            pictures.append(curves(f"{stage}: {name}", series, bands=bands, legend=False))
        parts.append(html.plots(pictures))
    said = ["Shaded: one standard error of the mean over seeds."] if several else []
    left = len([g for g in groups if any(run.stages for run in g.runs)]) - len(drawn)
    said += [f"The best {MOST} are drawn; {left} more are in the table."] if left > 0 else []
    return parts + ([f'<p class="small">{" ".join(said)}</p>'] if said else [])


def over_seeds(curves_of: Sequence[Series]) -> tuple[list[tuple[float, float]], Band]:
    """The mean of curves at the steps that all have, and one standard error around it (of one curve: none)."""
    if not curves_of:
        return [], []
    by_step = [dict(one) for one in curves_of]
    steps = sorted(set.intersection(*map(set, by_step)))
    values = {step: [one[step] for one in by_step] for step in steps}
    mean = [(float(step), statistics.fmean(of)) for step, of in values.items()]
    if len(by_step) < 2:
        return mean, []
    error = {step: statistics.stdev(of) / math.sqrt(len(of)) for step, of in values.items()}
    return mean, [(x, y - error[step], y + error[step]) for (x, y), step in zip(mean, steps, strict=True)]


def _legend(names: Sequence[str]) -> str:
    words = [f'<span class="c{i % len(COLOURS)}">■ {escape(name)}</span>' for i, name in enumerate(names)]
    return f"<p>{' &nbsp; '.join(words)}</p>"


# ------------------------------------------------------------------------------------------------- pictures and answers


def _seen(groups: Sequence[Group]) -> list[str]:
    """What each line's first run drew: needles by depth and length, gaze, merging, gates."""
    parts = []
    for group in groups[:PICTURED]:
        run = group.runs[0]
        drawn = [html.image(run.folder, PICTURE)] if run.folder.is_dir() and (run.folder / PICTURE).exists() else []
        if run.stages:
            drawn += [*gaze(run.trained, GAZES), *merging(run.trained, GAZES)]
            drawn += [part for stage in run.stages for part in gates(run.trained / stage)]
        if drawn:
            inside = "".join(drawn).replace("<h2>", "<h3>").replace("</h2>", "</h3>")
            parts.append(f"<details><summary>{escape(group.name)}</summary>{inside}</details>")
    return ["<h2>What they looked at</h2>", *parts] if parts else []


def _clips(found: Comparison) -> list[str]:
    """Clips of the baseline's evaluation with the answers of the first lines, each of its first seed."""
    baseline = next(iter(found.baseline.runs.values()))
    lines = [found.baseline, *(line for line in found.lines if line is not found.baseline)][:PICTURED]
    answered: dict[str, Shown] = {}
    blind: Shown = {}
    for line in lines:
        own, without = _answers_of(line)
        if own:
            answered[line.name] = own
            blind = {**without, **blind}
    if not answered or not baseline.folder.is_dir():
        return []
    parts = side_by_side(baseline.folder, answered, blind, SHEETS)
    if not parts:
        return []
    said = "Contact sheets of what was asked, with what each answered; of several tries a wrong one."
    return ["<h2>Clips</h2>", f'<p class="small">{said}</p>', *parts]


def _answers_of(line: Line) -> tuple[Shown, Shown]:
    run = next(iter(line.runs.values()))
    if run.predictions is None:
        return {}, {}
    predictions = read_predictions(run.folder / PREDICTIONS)
    own = shown(p for p in predictions if p.variant == line.variant)
    return own, shown(p for p in predictions if p.variant in (BLIND, f"{line.variant}_{BLIND}"))


def _made(runs: Sequence[Run], command: str) -> list[str]:
    records = [record for run in runs for record in (*run.records, *run.costs)]
    if not records:
        return comparison.made_by(command)
    settings = [_settings(run) for run in runs if run.stages]
    return [*made(records, [command]), *settings]


def _settings(run: Run) -> str:
    texts: Mapping[str, str] = {
        stage: (run.trained / stage / "config.yaml").read_text(encoding="utf-8", errors="replace")
        for stage in list(run.stages)[-1:]
    }
    inside = "".join(f"<pre>{escape(text)}</pre>" for text in texts.values())
    stage = ", ".join(texts)
    return f"<details><summary>all settings of {escape(run.name)}, {escape(stage)}</summary>{inside}</details>"
