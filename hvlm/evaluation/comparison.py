"""What ``hvlm compare`` writes: one table of runs, plots of what they are worth against what they cost, and how far
they are ahead of one of them on the same questions. Markdown for a terminal, and one page that needs no other file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.config.schema import did_you_mean
from hvlm.errors import UserError
from hvlm.evaluation import html
from hvlm.evaluation.ahead import compared
from hvlm.evaluation.leaderboard import COSTS, Line, lines_of, machines, missing_costs
from hvlm.evaluation.markdown import aligned, code, plain
from hvlm.evaluation.paired import Difference
from hvlm.evaluation.report_data import is_share, number, percent
from hvlm.evaluation.runs import Run
from hvlm.io.files import write_text
from hvlm.viz.plots import Bar, bars
from hvlm.viz.scatter import Point, scatter, short

NAME = "compare"  # of the files
ON_FRONT = "*"
HEAD = ("#", "run", "seeds", "score", "chance", "blind", "n", *(cost.title for cost in COSTS))
PAIRED = ("run", "minus", "difference", "95 % interval", "questions", "asked of one only", "seeds")
ALONE = (
    "<style>.grid{stroke:#ddd}.title{font-weight:bold}text{font-family:sans-serif}</style>"  # of a picture by itself
)


class Comparison(NamedTuple):
    """lines: best first. baseline: that the differences are against. notes: what must be known to read it."""

    lines: list[Line]
    baseline: Line
    differences: list[Difference]
    notes: list[str]

    @property
    def metric(self) -> str:
        return str(self.lines[0].score["metric"])


def compare(runs: Sequence[Run], metric: str | None = None, baseline: str | None = None) -> Comparison:
    """Put runs side by side.

    Args:
        runs: that were evaluated.
        metric: see ``lines_of``.
        baseline: name of a run or a line that the others are held against; None: the first of ``runs``.

    Raises:
        UserError: no figure in common, or no such baseline.
    """
    lines = lines_of(runs, metric)
    names = {run.name: line for line in reversed(lines) for run in line.runs.values()} | {x.name: x for x in lines}
    wanted = runs[0].name if baseline is None else baseline
    if wanted not in names:
        hint = did_you_mean(wanted, list(names)) or f" the runs are {', '.join(x.name for x in lines)}"
        raise UserError(f"baseline={wanted}: none of the runs;{hint}")
    against = names[wanted]
    differences, notes = compared(lines, against) if len(lines) > 1 else ([], [])
    notes += missing_costs(lines)
    if len(cpus := machines(lines)) > 1:
        notes.append(f"times were taken on different processors ({'; '.join(cpus)}): measure=true takes them here anew")
    return Comparison(lines, against, differences, notes)


def write(found: Comparison, out: Path, command: str) -> Path:
    """compare.md, compare.html and compare.json in ``out``, and the plots as files beside them. Returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    title = f"{len(found.lines)} runs compared" if len(found.lines) != 1 else found.lines[0].name
    plots = pareto(found.lines)
    files = {f"{NAME}-{metric}.svg": _alone(picture) for metric, picture in plots.items()}
    files[f"{NAME}.html"] = html.document(title, [f"<h1>{escape(title)}</h1>", *sections(found), *made_by(command)])
    files[f"{NAME}.md"] = (
        "\n".join([f"# {plain(title)}", "", *markdown(found, list(files)[: len(plots)], command)]) + "\n"
    )
    files[f"{NAME}.json"] = json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n"
    for stale in out.glob(f"{NAME}-*.svg"):
        if stale.name not in files:
            stale.unlink()
    for name, text in files.items():
        write_text(out / name, text)
    return out / f"{NAME}.html"


# --------------------------------------------------------------------------------------------------------------- parts


def cells(found: Comparison) -> list[tuple[str, ...]]:
    """The rows of the table under ``HEAD``; costs of which a line is on the Pareto front are marked."""
    rows = []
    for rank, line in enumerate(found.lines, 1):
        score = line.score
        seeds = ", ".join(map(str, score["seeds"]))
        costs = [
            cost.said(line.costs[cost.metric]) + (f" {ON_FRONT}" if cost.metric in line.on_front else "")
            if cost.metric in line.costs
            else ""
            for cost in COSTS
        ]
        chance = "" if score["chance"] is None else percent(score["chance"])
        blind = number(line.blind) if line.blind else ""
        rows.append((str(rank), line.name, seeds, number(score), chance, blind, f"{score['n']:,}", *costs))
    return rows


def paired_cells(differences: Sequence[Difference]) -> list[tuple[str, ...]]:
    """The rows of the table under ``PAIRED``."""
    rows: list[tuple[str, ...]] = []
    for d in differences:
        share = is_share(d.metric) or d.metric.startswith("share")
        scale, unit = (100, " points") if share else (1, "")
        digits = digits_of(d) if share else ".3g"
        error = "" if d.stderr is None else f" ± {scale * d.stderr:{digits}}"
        interval = "" if d.interval is None else " to ".join(f"{scale * end:+{digits}}" for end in d.interval)
        same = all(a == b for a, b in d.seeds)
        seeds = ", ".join(str(a) if same else f"{a} with {b}" for a, b in d.seeds if (a, b) != (-1, -1))
        value = f"{scale * d.value:+{digits}}{error}{unit}"
        rows.append((d.first, d.second, value, interval, f"{d.n:,}", str(d.other) if d.other else "", seeds))
    return rows


def digits_of(d: Difference) -> str:
    """How a difference of shares is written in points: with a second digit where its error has one."""
    return ".1f" if d.stderr is None or d.stderr >= 0.005 else ".2f"


def pareto(lines: Sequence[Line]) -> dict[str, str]:
    """{metric of a cost: the plot}, of those that two lines or more have."""
    plots = {}
    metric = str(lines[0].score["metric"])
    for cost in COSTS:
        points = [
            Point(line.name, line.costs[cost.metric], line.score["value"], line.score["stderr"])
            for line in lines
            if cost.metric in line.costs
        ]
        if len({short(p.x) for p in points}) > 1:  # what is the same to three digits is no choice
            better = "less is better" if cost.less else "more is better"
            said = f"{cost.title} ({better})"
            plots[cost.metric] = scatter(metric, said, points, cost.less, percent=is_share(metric))
    return plots


def sections(found: Comparison, more: Sequence[str] = ()) -> list[str]:
    """The parts of the page: table, bars, plots, differences. more: parts behind the table and the bars."""
    metric, lines = escape(found.metric), found.lines
    parts = [f"<h2>{metric}</h2>", html.table(HEAD, cells(found), numbers_from=2)]
    parts.append(f'<p class="small">{" ".join(map(escape, legend(found)))}</p>')
    if is_share(found.metric):
        parts.append(html.plots([bars([bar(line) for line in lines])]))
    parts += more
    if any(line.settings for line in lines):
        parts += ["<h3>What differs</h3>", html.table(("run", "settings"), settings(lines))]
    if plots := pareto(lines):
        parts += ["<h2>Worth and cost</h2>", html.plots(list(plots.values()))]
        parts.append(
            '<p class="small">Filled: no other run is as good and as cheap, and better in one (by the means, whatever '
            "their errors).</p>"
        )
    if found.differences:
        parts += [f"<h2>Against {escape(found.baseline.name)}, question by question</h2>"]
        parts.append(html.table(PAIRED, paired_cells(found.differences), numbers_from=2))
        parts.append(f'<p class="small">{escape(about_differences(found))}</p>')
    parts += [f'<p class="small">{escape(note)}.</p>' for note in found.notes]
    return parts


def made_by(command: str) -> list[str]:
    return ["<h2>How it was made</h2>", html.command(command)]


def markdown(found: Comparison, pictures: Sequence[str], command: str) -> list[str]:
    """The same for a terminal; ``pictures`` are files beside it."""
    lines = [f"## {plain(found.metric)}", "", *markdown_table(HEAD, cells(found), words=3), "", " ".join(legend(found))]
    if any(line.settings for line in found.lines):
        lines += ["", "## What differs", "", *markdown_table(("run", "settings"), settings(found.lines), words=2)]
    if pictures:
        lines += ["", "## Worth and cost", "", *(f"![{name}]({name})" for name in pictures)]
    if found.differences:
        lines += ["", f"## Against {plain(found.baseline.name)}, question by question", ""]
        lines += [*markdown_table(PAIRED, paired_cells(found.differences), words=2), "", about_differences(found)]
    for note in found.notes:
        lines += ["", f"{plain(note)}."]
    return [*lines, "", code(command)]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Columns that are empty in every row are left out."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    text = [[plain(row[i]) for i in kept] for row in (head, *rows)]
    return aligned(text, sum(i < words for i in kept))


def legend(found: Comparison) -> list[str]:
    said = ["± is one standard error, clustered by video."]
    if any(len(line.score["seeds"]) > 1 for line in found.lines):
        said.append("Over several seeds it holds the error of their mean, too.")
    if any(line.on_front for line in found.lines):
        said.append(f"{ON_FRONT}: on the Pareto front of score and this cost.")
    if any("latency_ms" in line.costs for line in found.lines):
        said.append("Costs are those of one clip with one question.")
    return said


def about_differences(found: Comparison) -> str:
    of = found.differences[0].metric
    return (
        f"Differences of {of}, question by question where both were asked the same: ± and the interval are those of "
        "the difference, clustered by video. An interval that holds 0 says that the two are not told apart."
    )


def settings(lines: Sequence[Line]) -> list[tuple[str, str]]:
    return [(line.name, " ".join(line.settings)) for line in lines]


def bar(line: Line) -> Bar:
    score, blind = line.score, line.blind
    return Bar(line.name, score["value"], score["stderr"], score["chance"], None if blind is None else blind["value"])


def as_json(found: Comparison) -> dict[str, Any]:
    """Everything with all its digits."""
    return {
        "metric": found.metric,
        "baseline": found.baseline.name,
        "runs": [
            {
                "name": line.name, "folders": [str(run.folder) for run in line.runs.values()],
                "settings": list(line.settings), "variant": line.variant,
                "score": {k: line.score[k] for k in ("value", "stderr", "n", "chance", "seeds")},
                "blind": None if line.blind is None else line.blind["value"], "costs": line.costs,
                "on_front": [cost.metric for cost in COSTS if cost.metric in line.on_front],
            }
            for line in found.lines
        ],
        "differences": [{**d._asdict(), "interval": d.interval} for d in found.differences],
        "notes": found.notes,
    }  # fmt: skip


def _alone(picture: str) -> str:
    return picture.replace(">", f">{ALONE}", 1) + "\n"
