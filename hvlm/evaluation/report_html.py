"""report.html: the report of a run as one page that needs no other file, no script and no network.

What comes from data (questions, answers, names, command lines) is escaped; pictures are inside the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from hvlm.errors import UserError
from hvlm.evaluation import comparison, html, results, runs
from hvlm.evaluation import report_summary as summary
from hvlm.evaluation.html import document, image, table
from hvlm.evaluation.leaderboard import BEFORE
from hvlm.evaluation.needle_map import PICTURE
from hvlm.evaluation.report_answers import PREDICTIONS, answers
from hvlm.evaluation.report_data import (
    Row,
    Stage,
    best,
    config_of,
    is_share,
    number,
    percent,
    rows_of,
    with_chance,
    word_of,
)
from hvlm.evaluation.report_pictures import gates, gaze, merging
from hvlm.evaluation.report_summary import COSTS, cost, count
from hvlm.viz.plots import Bar, bars, curves

PLOTS = {  # title: the curves that share a picture
    "loss": ("train/loss", "val/loss"),
    "accuracy": (
        "train/token_accuracy", "val/token_accuracy", "train/object_accuracy", "val/object_accuracy",
        "train/reward_accuracy", "val/reward_accuracy",
    ),
}  # fmt: skip
BESIDE = 4  # variants whose costs stand in columns


def page(run_dir: Path, stages: Sequence[Stage], records: Sequence[results.Record], extra: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        run_dir: where predictions and pictures are.
        stages: of the run, in order. records: of its results.json. extra: lines under the title.
    """
    parts = _top(run_dir, stages, records, extra)
    if records:
        parts += ["<h2>Results</h2>", *_results(records), *_before(run_dir)]
    if (run_dir / PICTURE).exists():
        parts.append(f"<h3>Where the needle is, and how long the video</h3>{image(run_dir, PICTURE)}")
    parts += answers(run_dir)
    if stages:
        parts += ["<h2>Training</h2>", *_stages(stages)]
        parts += [part for stage in stages for part in _stage(run_dir, stage)]
    parts += [*gaze(run_dir), *merging(run_dir)]
    if records:
        parts += made(records, (), _precision(run_dir, stages))
    return document(run_dir.resolve().name, parts)


# --------------------------------------------------------------------------------------------------------------- top


def _top(run_dir: Path, stages: Sequence[Stage], records: Sequence[results.Record], extra: Sequence[str]) -> list[str]:
    """What was trained, the main figure, and what an answer costs."""
    parts = [f"<h1>{escape(run_dir.resolve().name)}</h1>", *(f"<p>{escape(line)}</p>" for line in extra)]
    row = summary.headline(records)
    shown: list[html.Card] = []
    if row is not None:
        parts.append(f'<p class="lead">{escape(summary.said(row))}</p>')
        ahead = summary.thanks_to_the_video(run_dir / PREDICTIONS, row) if is_share(row.record["metric"]) else None
        shown += summary.figures(row, ahead)
        shown += summary.price(summary.costs_of(records, row.record["variant"]))
    parts.append(html.cards([*shown, *summary.trained(stages)]))
    if stages and (rooms := stages[-1].rooms):
        config = config_of(run_dir / stages[-1].name)
        data = {k: word_of(config[k]) for k in ("dataset", "benchmark") if isinstance(config.get(k), Mapping)}
        said = ", ".join(f"{k}={v}" for k, v in {**rooms, **{k: v for k, v in data.items() if v != "?"}}.items())
        parts.append(f'<p class="small">Made of {escape(said)}.</p>')
    return [*parts, html.CONTENTS]


# ----------------------------------------------------------------------------------------------------------- results


def _results(records: Sequence[results.Record]) -> list[str]:
    rows = rows_of(records)
    shares = [row for row in rows if is_share(row.record["metric"])]
    after = [row for row in shares if row.record["variant"] != BEFORE]  # what changed is told below, pair by pair
    shares = after or shares
    several = len({row.variant for row in shares}) > 1
    parts = [html.plots([bars([_bar(row, several) for row in shares])])]
    head = ("variant", "metric", "value", "chance", "without video", "all tries right (chance)", "n")
    parts.append(table(head, [_cells(row) for row in rows if row.record["metric"] not in COSTS], numbers_from=2))
    notes = ["± is one standard error, clustered by video; n: questions."]
    if any(row.blind for row in shares):
        notes.append("What is right without the video (blind) is in the words of the questions.")
    left_out = sorted({str(r["left_out"]) for r in records if "left_out" in r})
    if left_out:
        notes.append(f"Means over tasks leave out {escape(', '.join(left_out))}, as benchmark.apart says.")
    if any(r["metric"].startswith("normalised") for r in records):
        notes.append("Chance of open questions: always giving the task's most common right answer.")
    parts.append(f'<p class="small">{" ".join(notes)}</p>')
    if costs := [row for row in rows if row.record["metric"] in COSTS]:
        parts += ["<h3>What an answer costs</h3>", _costs(costs)]
    return parts


def _costs(rows: Sequence[Row]) -> str:
    """A column for each variant, or, of many, a line for each figure."""
    variants = list(dict.fromkeys(row.variant for row in rows))
    said = {(row.record["metric"], row.variant): cost(row.record["metric"], row.record["value"]) for row in rows}
    what = "of one clip with one question"
    if len(variants) > BESIDE:
        lines = [(v, COSTS[metric].what, value) for (metric, v), value in said.items()]
        return table(("variant", what, ""), lines, 2)
    metrics = dict.fromkeys(metric for metric, _ in said)
    cells = [(COSTS[metric].what, *(said.get((metric, v), "") for v in variants)) for metric in metrics]
    return table((what, *variants), cells, 1)


def _before(run_dir: Path) -> list[str]:
    """What the stage of preferences changed, question by question."""
    own, before = runs.of_folder(run_dir), runs.of_folder(run_dir / BEFORE)
    if own is None or before is None or not own.records or not before.records:
        return []
    try:
        found = comparison.compare([before, own])
    except UserError:  # no figure in common; a folder that says so is named by hvlm compare
        return []
    if not found.differences:
        return []
    lines = comparison.paired_cells(found.differences)
    note = escape(comparison.about_differences(found))
    return [
        "<h3>What the stage of preferences changed</h3>",
        table(comparison.PAIRED, lines, numbers_from=2),
        f'<p class="small">{note}</p>',
    ]


def _bar(row: Row, several: bool) -> Bar:
    r = row.record
    name = f"{row.variant} {r['metric']}" if several else r["metric"]
    return Bar(name, r["value"], r["stderr"], r["chance"], row.blind["value"] if row.blind else None)


def _cells(row: Row) -> tuple[str, ...]:
    r = row.record
    chance = "" if r["chance"] is None else percent(r["chance"])
    blind = number(row.blind) if row.blind else ""
    return (row.variant, r["metric"], number(r), chance, blind, with_chance(row.all_tries), count(r["n"]))


# ---------------------------------------------------------------------------------------------------------- training


def _stages(stages: Sequence[Stage]) -> list[str]:
    """One line for each."""
    rows = []
    for stage in stages:
        done = stage.steps is not None and stage.seconds is not None
        lowest = "" if stage.best is None else f"{stage.best[1]:.4g} at step {count(stage.best[0])}"
        rows.append(
            (
                stage.name,
                count(stage.steps or 0) if done else "not finished",
                summary.clock(stage.seconds or 0.0) if done else "",
                summary.median(stage, "samples_per_s"),
                lowest,
                str(stage.weights)[:12] if done else "",
            )
        )
    head = ("stage", "steps", "time", "samples/s (median)", "lowest val/loss", "weights (SHA-256)")
    return [table(head, rows, numbers_from=1)]


def _stage(run_dir: Path, stage: Stage) -> list[str]:
    if stage.steps is None or stage.seconds is None:
        facts = ["Not finished."]
    else:
        weights = f"<code>{escape(str(stage.weights)[:12])}</code>"
        facts = [f"{count(stage.steps)} steps in {summary.clock(stage.seconds)}, weights {weights}."]
    facts += [escape(said)] if (said := best(stage)) else []
    rooms = escape(", ".join(f"{group}={word}" for group, word in stage.rooms.items()))
    parts = [f"<h3>{escape(stage.name)}</h3>", f"<p>{' '.join(facts)}</p>"]
    order, seed = escape(str(stage.order)), escape(str(stage.seed))
    parts += [f'<p class="small">{rooms}; order={order}, seed={seed}</p>'] if rooms else []
    drawn = []
    for title, names in PLOTS.items():
        found = {name: stage.curves[name] for name in names if name in stage.curves}
        mark = None
        if title == "loss" and stage.best is not None:
            mark = (*stage.best, f"{stage.best[1]:.3g} at step {stage.best[0]}")
        drawn.append(curves(f"{stage.name}: {title}", found, mark))
    parts.append(html.plots(drawn))
    parts += gates(run_dir / stage.name)
    config = run_dir / stage.name / "config.yaml"
    text = escape(config.read_text(encoding="utf-8", errors="replace"))
    return [*parts, f"<details><summary>all its settings</summary><pre>{text}</pre></details>"]


# ------------------------------------------------------------------------------------------------------------- parts


def made(
    records: Sequence[results.Record], more: Sequence[str] = (), further: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """Commands that make it again, and where it was made. more: commands that come after those of the records.
    further: (what, value) about where it was made."""

    def distinct(key: str) -> list[str]:
        return list(dict.fromkeys("unknown" if r[key] is None else str(r[key]) for r in records))

    dirty = " (with uncommitted changes)" if any(r["dirty"] for r in records) else ""
    seeds = ", ".join(map(str, sorted({seed for r in records for seed in r["seeds"]})))
    memory = max(r["peak_rss_mb"] for r in records)
    where = [
        ("commit", f"{', '.join(distinct('commit'))}{dirty}"),
        ("processor", ", ".join(distinct("cpu"))),
        ("torch", ", ".join(distinct("torch"))),
        *further,
        ("seeds", seeds),
        ("peak memory", f"{count(round(memory))} MB"),
    ]
    commands = html.command("\n".join([*distinct("command"), *more]))
    return ["<h2>How it was made</h2>", commands, "<h3>Environment</h3>", table(("", ""), where)]


def _precision(run_dir: Path, stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """Of the last stage's trainer."""
    trainer = config_of(run_dir / stages[-1].name).get("trainer") if stages else None
    if not isinstance(trainer, Mapping):
        return []
    return [(name, str(trainer[name])) for name in ("precision", "devices") if trainer.get(name) is not None]
