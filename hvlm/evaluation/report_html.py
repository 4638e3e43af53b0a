"""report.html: the report of a run as one page that needs no other file, no script and no network.

What comes from data (questions, answers, names, command lines) is escaped; pictures are inside the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from hvlm.console import duration
from hvlm.evaluation import results
from hvlm.evaluation.html import document, image, table
from hvlm.evaluation.needle_map import PICTURE
from hvlm.evaluation.report_answers import answers
from hvlm.evaluation.report_data import Row, Stage, best, is_share, number, percent, rows_of, with_chance
from hvlm.evaluation.report_pictures import gates, gaze, merging
from hvlm.viz.plots import Bar, bars, curves
from hvlm.viz.scatter import short

COSTS = {  # metric: what it is
    "prefill_flops": "operations from the pixels to the answer's first token",
    "latency_ms": "milliseconds for that",
    "decode_tokens_per_s": "tokens a second after it",
    "kv_bytes": "bytes of keys and values that are kept",
    "visual_tokens": "tokens of the video",
    "frames": "frames that are read",
    "parameters": "parameters of the model",
    "fusion_parameters": "of these the fusion's",
    "fusion_flops": "operations of the fusion",
}
PLOTS = {  # title: the curves that share a picture
    "loss": ("train/loss", "val/loss"),
    "accuracy": (
        "train/token_accuracy", "val/token_accuracy", "train/object_accuracy", "val/object_accuracy",
        "train/reward_accuracy", "val/reward_accuracy",
    ),
}  # fmt: skip


def page(run_dir: Path, stages: Sequence[Stage], records: Sequence[results.Record], extra: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        run_dir: where predictions and pictures are.
        stages: of the run, in order. records: of its results.json. extra: lines under the title.
    """
    title = escape(run_dir.name)
    parts = [f"<h1>{title}</h1>", *(f"<p>{escape(line)}</p>" for line in extra)]
    if records:
        parts += ["<h2>Results</h2>", *_results(records)]
    if (run_dir / PICTURE).exists():
        parts.append(f"<h3>Where the needle is, and how long the video</h3>{image(run_dir, PICTURE)}")
    parts += answers(run_dir)
    if stages:
        parts += ["<h2>Training</h2>", *(part for stage in stages for part in _stage(run_dir, stage))]
    parts += [*gaze(run_dir), *merging(run_dir)]
    if records:
        parts += made(records)
    return document(run_dir.name, parts)


# ----------------------------------------------------------------------------------------------------------- results


def _results(records: Sequence[results.Record]) -> list[str]:
    rows = rows_of(records)
    shares = [row for row in rows if is_share(row.record["metric"])]
    several = len({row.variant for row in shares}) > 1
    parts = [bars([_bar(row, several) for row in shares])]
    head = ("variant", "metric", "value", "chance", "without video", "all tries right (chance)", "n")
    parts.append(table(head, [_cells(row) for row in rows if row.record["metric"] not in COSTS], numbers_from=2))
    notes = ["± is one standard error, clustered by video."]
    if any(row.blind for row in shares):
        notes.append("What is right without the video (blind) is in the words of the questions.")
    left_out = sorted({str(r["left_out"]) for r in records if "left_out" in r})
    if left_out:
        notes.append(f"Means over tasks leave out {escape(', '.join(left_out))}, as benchmark.apart says.")
    if any(r["metric"].startswith("normalised") for r in records):
        notes.append("Chance of open questions: always giving the task's most common right answer.")
    parts.append(f'<p class="small">{" ".join(notes)}</p>')
    if costs := [row for row in rows if row.record["metric"] in COSTS]:
        said = [(row.variant, COSTS[row.record["metric"]], short(row.record["value"])) for row in costs]
        parts += ["<h3>What an answer costs</h3>", table(("variant", "of one clip with one question", ""), said, 2)]
    return parts


def _bar(row: Row, several: bool) -> Bar:
    r = row.record
    name = f"{row.variant} {r['metric']}" if several else r["metric"]
    return Bar(name, r["value"], r["stderr"], r["chance"], row.blind["value"] if row.blind else None)


def _cells(row: Row) -> tuple[str, ...]:
    r = row.record
    chance = "" if r["chance"] is None else percent(r["chance"])
    blind = number(row.blind) if row.blind else ""
    return (row.variant, r["metric"], number(r), chance, blind, with_chance(row.all_tries), str(r["n"]))


# ---------------------------------------------------------------------------------------------------------- training


def _stage(run_dir: Path, stage: Stage) -> list[str]:
    if stage.steps is None or stage.seconds is None:
        facts = ["Not finished."]
    else:
        weights = f"<code>{escape(str(stage.weights)[:12])}</code>"
        facts = [f"{stage.steps} steps in {duration(stage.seconds)}, weights {weights}."]
    facts += [escape(said)] if (said := best(stage)) else []
    rooms = escape(", ".join(f"{group}={word}" for group, word in stage.rooms.items()))
    parts = [f"<h3>{escape(stage.name)}</h3>", f"<p>{' '.join(facts)}</p>"]
    order, seed = escape(str(stage.order)), escape(str(stage.seed))
    parts += [f'<p class="small">{rooms}; order={order}, seed={seed}</p>'] if rooms else []
    plots = []
    for title, names in PLOTS.items():
        found = {name: stage.curves[name] for name in names if name in stage.curves}
        mark = None
        if title == "loss" and stage.best is not None:
            mark = (*stage.best, f"{stage.best[1]:.3g} at step {stage.best[0]}")
        plots.append(curves(f"{stage.name}: {title}", found, mark))
    parts.append(f'<div class="plots">{"".join(plots)}</div>')
    parts += gates(run_dir / stage.name)
    config = run_dir / stage.name / "config.yaml"
    text = escape(config.read_text(encoding="utf-8", errors="replace"))
    return [*parts, f"<details><summary>all its settings</summary><pre>{text}</pre></details>"]


# ------------------------------------------------------------------------------------------------------------- parts


def made(records: Sequence[results.Record], more: Sequence[str] = ()) -> list[str]:
    """Commands that make it again, and where it was made. more: commands that come after those of the records."""

    def distinct(key: str) -> list[str]:
        return list(dict.fromkeys("unknown" if r[key] is None else str(r[key]) for r in records))

    dirty = " (with uncommitted changes)" if any(r["dirty"] for r in records) else ""
    seeds = ", ".join(map(str, sorted({seed for r in records for seed in r["seeds"]})))
    memory = max(r["peak_rss_mb"] for r in records)
    commands = escape("\n".join([*distinct("command"), *more]))
    where = [f"commit {', '.join(distinct('commit'))}{dirty}", ", ".join(distinct("cpu"))]
    where += [f"torch {', '.join(distinct('torch'))}", f"seeds {seeds}", f"peak memory {memory:.0f} MB"]
    return ["<h2>How it was made</h2>", f"<pre>{commands}</pre>", f"<p>{escape(' · '.join(where))}</p>"]
