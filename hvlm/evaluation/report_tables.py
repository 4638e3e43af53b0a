"""What the report of several runs says beside the comparison: a summary, seeds with intervals, and the tasks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from hvlm.errors import UserError
from hvlm.evaluation import html, results
from hvlm.evaluation import report_summary as summary
from hvlm.evaluation.comparison import Comparison
from hvlm.evaluation.leaderboard import Line, columns_of
from hvlm.evaluation.report_data import Row, is_share, number, percent
from hvlm.evaluation.runs import Run

MOST = 8  # lines that have a column


def top(title: str, found: Comparison | None, runs: Sequence[Run], left_out: Sequence[str]) -> list[str]:
    """The title, the best line's figure beside the others, and how many runs there are."""
    parts = [f"<h1>{escape(title)}</h1>"]
    shown: list[html.Card] = []
    if found is not None:
        best = found.lines[0]
        row = Row(best.score, best.blind, None)
        text = summary.sentence(best.name, row)
        ahead = f" The best of {len(found.lines)} by the mean is {text}" if len(found.lines) > 1 else f" {text}"
        parts.append(f'<p class="lead">{escape(ahead.strip())}</p>')
        shown += summary.figures(row, None)
        shown += _ahead(found)
        shown += summary.price(best.costs)
    lines = len(found.lines) if found is not None else 0
    more = [f"{lines} line{'s' * (lines != 1)}, seeds put together"] if lines else []
    more += [f"{len(left_out)} left out, named below"] if left_out else []
    shown.append(html.Card("runs", str(len(runs)), "; ".join(more)))
    parts.append(html.cards(shown))
    return [*parts, html.CONTENTS]


def _ahead(found: Comparison) -> list[html.Card]:
    """The best line against the baseline, or, where it is the baseline, the best of the others against it."""
    differences = [d for line in found.lines for d in found.differences if d.first == line.name]
    if not differences or not (is_share(found.metric) or differences[0].metric.startswith("share")):
        return []
    d = differences[0]
    title = f"{d.first} minus {d.second}"
    return [html.Card(title, summary.points(d), f"same questions; 95 %: {summary.interval(d)}")]


def left_out_of_it(notes: Sequence[str]) -> list[str]:
    """Jobs and runs that are not in the table, and why."""
    if not notes:
        return []
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return [f'<h2>Not in the tables</h2><div class="bad"><ul>{items}</ul></div>']


def by_seed(lines: Sequence[Line]) -> list[str]:
    """The interval of every line, and what each of its seeds got."""
    rows = []
    for line in lines:
        score = line.score
        share = is_share(score["metric"])
        spread, band = "", ""
        values = {seed: own for seed, run in line.runs.items() if (own := _value(line, run)) is not None}
        if len(values) > 1:
            spread = _figure(statistics.stdev(values.values()), share)
        if score["stderr"] is not None:
            ends = (score["value"] - 1.96 * score["stderr"], score["value"] + 1.96 * score["stderr"])
            # No share is below nothing or above all.
            ends = (max(ends[0], 0.0), min(ends[1], 1.0)) if share else ends
            band = " to ".join(_figure(end, share) for end in ends)
        each = ", ".join(f"{seed}: {_figure(value, share)}" for seed, value in values.items() if seed != -1)
        rows.append((line.name, number(score), band, spread, each))
    head = ("run", "mean", "95 % interval", "standard deviation over seeds", "seed by seed")
    note = (
        "The interval is 1.96 standard errors to each side: of the questions, clustered by video, and, over several "
        "seeds, of their mean. With two or three seeds it is a rough one."
    )
    return ["<h3>Seeds and intervals</h3>", html.table(head, rows, 1), f'<p class="small">{note}</p>']


def by_task(lines: Sequence[Line]) -> list[str]:
    """The tasks that the main figure is made of, seeds put together; [] where there are no such."""
    found: dict[str, dict[str, str]] = {}
    shown = lines[:MOST]
    for line in shown:
        prefix = f"{str(line.score['metric']).split('_')[0]}/"
        own = [
            [{**r, "question": ""} for r in run.records if r["variant"] == line.variant and _is_of(r, line, prefix)]
            for run in line.runs.values()
        ]
        try:
            merged = results.merge_seeds(own)
        except UserError:  # seeds that were asked otherwise; their main figures are put together above
            continue
        for record in merged:
            found.setdefault(record["metric"].removeprefix(prefix), {})[line.name] = number(record)
    if len(found) < 2:
        return []
    rows = [(task, *(values.get(line.name, "") for line in shown)) for task, values in sorted(found.items())]
    more = f'<p class="small">The best {MOST}.</p>' if len(lines) > MOST else ""
    return ["<h3>Task by task</h3>", html.table(("task", *(line.name for line in shown)), rows, 1), more]


def _is_of(record: results.Record, line: Line, prefix: str) -> bool:
    return record["metric"].startswith(prefix) and columns_of(record) == columns_of(line.score)


def _value(line: Line, run: Run) -> float | None:
    wanted = (line.score["metric"], line.variant, columns_of(line.score))
    own = [r["value"] for r in run.records if (r["metric"], r["variant"], columns_of(r)) == wanted]
    return own[0] if len(own) == 1 else None


def _figure(value: float, share: bool) -> str:
    return percent(value) if share else f"{value:.4g}"
