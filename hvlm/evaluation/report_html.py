"""report.html: the report of a run as one page that needs no other file, no script and no network.

What comes from data (questions, answers, names, command lines) is escaped; pictures are inside the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hvlm.console import duration
from hvlm.evaluation import results
from hvlm.evaluation.html import document, image, table
from hvlm.evaluation.needle_map import PICTURE
from hvlm.evaluation.open_scores import is_right
from hvlm.evaluation.predictions import read_predictions
from hvlm.evaluation.report_data import (
    BLIND,
    Row,
    Stage,
    best,
    gaze_pictures,
    is_share,
    number,
    percent,
    pictures,
    rows_of,
)
from hvlm.evaluation.scores import Prediction
from hvlm.viz.gate_map import PICTURE as GATES
from hvlm.viz.plots import Bar, bars, curves

WRONG = 50  # wrong answers that are listed, beside those with pictures
GAZES = 6  # pictures of the gaze
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
    parts += _answers(run_dir)
    if stages:
        parts += ["<h2>Training</h2>", *(part for stage in stages for part in _stage(run_dir, stage))]
    parts += _gaze(run_dir)
    if records:
        parts += _provenance(records)
    return document(run_dir.name, parts)


# ----------------------------------------------------------------------------------------------------------- results


def _results(records: Sequence[results.Record]) -> list[str]:
    rows = rows_of(records)
    shares = [row for row in rows if is_share(row.record["metric"])]
    several = len({row.variant for row in shares}) > 1
    parts = [bars([_bar(row, several) for row in shares])]
    head = ("variant", "metric", "value", "chance", "without video", "all tries right (chance)", "n")
    parts.append(table(head, [_cells(row) for row in rows], numbers_from=2))
    notes = ["± is one standard error, clustered by video."]
    if any(row.blind for row in shares):
        notes.append("What is right without the video (blind) is in the words of the questions.")
    left_out = sorted({str(r["left_out"]) for r in records if "left_out" in r})
    if left_out:
        notes.append(f"Means over tasks leave out {escape(', '.join(left_out))}, as benchmark.apart says.")
    if any(r["metric"].startswith("normalised") for r in records):
        notes.append("Chance of open questions: always giving the task's most common right answer.")
    return [*parts, f'<p class="small">{" ".join(notes)}</p>']


def _bar(row: Row, several: bool) -> Bar:
    r = row.record
    name = f"{row.variant} {r['metric']}" if several else r["metric"]
    return Bar(name, r["value"], r["stderr"], r["chance"], row.blind["value"] if row.blind else None)


def _cells(row: Row) -> tuple[str, ...]:
    r, of_all = row.record, row.all_tries
    chance = "" if r["chance"] is None else percent(r["chance"])
    all_right = f"{number(of_all)} ({percent(of_all['chance'])})" if of_all else ""
    return (row.variant, r["metric"], number(r), chance, number(row.blind) if row.blind else "", all_right, str(r["n"]))


# ----------------------------------------------------------------------------------------------------------- answers


def _answers(run_dir: Path) -> list[str]:
    """Wrong answers first: those with a contact sheet, a list of more, then the sheets of right ones."""
    sheets: dict[str, list[dict[str, Any]]] = {}
    for line in pictures(run_dir / "clips"):
        sheets.setdefault(line["sheet"], []).append(line)
    wrong = {name: lines for name, lines in sheets.items() if any(line.get("right") is False for line in lines)}
    right = {name: lines for name, lines in sheets.items() if name not in wrong}
    parts = []
    listed = _wrong_answers(run_dir / "predictions.jsonl")
    if wrong or listed:
        parts.append("<h2>Wrong answers</h2>")
        parts += _sheets(run_dir / "clips", wrong, "wrong")
    if listed:
        head = ("task", "video", "question", "options", "right", "answered")
        shown = f"the first {WRONG} of them" if len(listed) > WRONG else "all of them"
        parts.append(f'<p class="small">{len(listed)} questions were answered wrongly with the video; {shown}:</p>')
        parts.append(table(head, [_told(p) for p in listed[:WRONG]]))
    if right:
        parts += ["<h2>Some clips with right answers</h2>", *_sheets(run_dir / "clips", right, "right")]
    return parts


def _wrong_answers(path: Path) -> list[Prediction]:
    """Of the model that saw the video: the first wrong try of each question."""
    if not path.exists():
        return []
    found: dict[tuple[str, str], Prediction] = {}
    for p in read_predictions(path):
        if p.variant != BLIND and not is_right(p):
            found.setdefault((p.variant, p.question_id), p)
    return list(found.values())


def _told(p: Prediction) -> tuple[str, ...]:
    right = p.options[p.gold] if p.options and p.gold is not None else " / ".join(p.answers)
    said = p.options[p.pred] if p.pred is not None else p.text or "(nothing)"
    return (p.task, p.key, p.question, " | ".join(p.options), right, said)


def _sheets(folder: Path, sheets: Mapping[str, list[dict[str, Any]]], kind: str) -> Iterable[str]:
    for name, lines in sheets.items():
        rows = []
        for line in sorted(lines, key=lambda line: line.get("right") is not False):
            mark = {True: "right", False: "WRONG"}.get(line.get("right"), "")
            options = " | ".join(map(str, line.get("options") or ()))
            rows.append((mark, line.get("task", ""), line["question"], options, line["answer"], line["prediction"]))
        head = ("", "task", "question", "options", "right answer", "answered")
        shown = f"<p>{escape(str(lines[0]['key']))}</p>{image(folder, name)}"
        yield f'<div class="{kind}">{shown}{table(head, rows)}</div>'


# ------------------------------------------------------------------------------------------------ training and gaze


def _stage(run_dir: Path, stage: Stage) -> list[str]:
    if stage.steps is None or stage.seconds is None:
        facts = ["Not finished."]
    else:
        weights = f"<code>{escape(str(stage.weights)[:12])}</code>"
        facts = [f"{stage.steps} steps in {duration(stage.seconds)}, weights {weights}."]
    facts += [escape(said)] if (said := best(stage)) else []
    rooms = escape(", ".join(f"{group}={word}" for group, word in stage.rooms.items()))
    parts = [f"<h3>{escape(stage.name)}</h3>", f"<p>{' '.join(facts)}</p>"]
    parts += [f'<p class="small">{rooms}; order={escape(str(stage.order))}, seed={stage.seed}</p>'] if rooms else []
    plots = []
    for title, names in PLOTS.items():
        found = {name: stage.curves[name] for name in names if name in stage.curves}
        mark = None
        if title == "loss" and stage.best is not None:
            mark = (*stage.best, f"{stage.best[1]:.3g} at step {stage.best[0]}")
        plots.append(curves(f"{stage.name}: {title}", found, mark))
    parts.append(f'<div class="plots">{"".join(plots)}</div>')
    if (run_dir / stage.name / GATES).exists():
        parts.append(f"<p>Which KV heads need everything that was read:</p>{image(run_dir / stage.name, GATES)}")
    return parts


def _gaze(run_dir: Path) -> list[str]:
    folder, lines = gaze_pictures(run_dir)
    if not lines:
        return []
    parts = ["<h2>Where it looked</h2>"]
    parts.append(
        f'<p class="small">After step {lines[0]["step"]} of {escape(folder.parent.name)}, clips of the split '
        f"{escape(str(lines[0].get('split', '')))}: the frames, below them lit by the attention of the query (mean "
        "over layers, then layer by layer). The second picture is the way of its middle, from black to white.</p>"
    )
    for line in lines[:GAZES]:
        said = f"{line['question']} — answered {line['prediction']!r}, right is {line['answer']!r}"
        path = image(folder, line["gaze_path"]) if "gaze_path" in line else ""
        parts.append(f"<p>{escape(said)}</p>{image(folder, line['gaze'])}{path}")
    return parts


# ------------------------------------------------------------------------------------------------------------- parts


def _provenance(records: Sequence[results.Record]) -> list[str]:
    def distinct(key: str) -> str:
        return escape(", ".join(dict.fromkeys("none" if r[key] is None else str(r[key]) for r in records)))

    dirty = " (with uncommitted changes)" if any(r["dirty"] for r in records) else ""
    seeds = ", ".join(map(str, sorted({seed for r in records for seed in r["seeds"]})))
    memory = max(r["peak_rss_mb"] for r in records)
    return [
        "<h2>How it was made</h2>",
        f"<p><code>{distinct('command')}</code><br>commit {distinct('commit')}{dirty} · {distinct('cpu')} · torch "
        f"{distinct('torch')} · seeds {seeds} · peak memory {memory:.0f} MB</p>",
    ]
