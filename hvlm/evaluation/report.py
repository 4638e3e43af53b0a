"""The report of a run: what was run, how the losses fell, what the benchmark says, what was answered wrongly.

``hvlm report runs=runs/demo`` writes it again: ``report.md``, which reads in a terminal, and
``report.html``, one page with plots and pictures that needs no other file and no network.

Everything is read from the run folder, so the report can be written again at any time:
<stage>/{config.yaml, metrics.jsonl, finished.json, clips/}, results.json, clips/.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hvlm.console import duration
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.markdown import aligned, code, plain
from hvlm.evaluation.needle_map import PICTURE
from hvlm.evaluation.report_data import (
    BLIND,
    Series,
    Stage,
    best,
    number,
    percent,
    pictures,
    read_curves,
    rows_of,
    stages_of,
    with_chance,
)
from hvlm.evaluation.report_html import page
from hvlm.io.files import write_text
from hvlm.viz.gate_map import PICTURE as GATES

__all__ = ["number", "percent", "read_curves", "sparkline", "table", "write_report"]

BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 48
CURVES = ("train/loss", "val/loss", "train/object_accuracy", "train/reward_accuracy", "val/reward_accuracy")
NUMBERS = ("samples_per_s", "grad_norm")


def write_report(run_dir: Path, extra: Sequence[str] = ()) -> Path:
    """Write ``run_dir/report.md`` and ``report.html``, and return the path of the first. ``extra``: lines to put under
    the title.

    Raises UserError when the folder holds neither results nor a stage.
    """
    run_dir = Path(run_dir)
    stages = stages_of(run_dir)
    records = results.read(run_dir / "results.json") if (run_dir / "results.json").exists() else []
    if not stages and not records:
        raise UserError(f"{run_dir}: neither results.json nor a stage folder with config.yaml; give a run folder")
    lines = [f"# {plain(run_dir.name)}", "", *extra, *([""] if extra else [])]
    if records:
        lines += ["## Results", "", *table(records), "", *_provenance(records), ""]
    if (run_dir / PICTURE).exists():
        lines += [f"![right answers by depth of the needle and length of the video]({PICTURE})", ""]
    if stages:
        lines += ["## Training", ""]
        for stage in stages:
            lines += _stage(stage)
            if (run_dir / stage.name / GATES).exists():
                lines += [f"![which KV heads need everything that was read]({quote(stage.name)}/{GATES})", ""]
    lines += _clips(run_dir / "clips")
    path = run_dir / "report.md"
    html = page(run_dir, stages, records, extra)
    write_text(path, "\n".join(lines).rstrip() + "\n")
    write_text(path.with_suffix(".html"), html)
    return path


def table(records: Sequence[results.Record], blind: str = BLIND) -> list[str]:
    """Markdown: one row per variant and metric, accuracies in percent with their standard error, and beside them the
    chance level, the blind control and the 4-of-4 score with its own chance level. Reads in a terminal too."""
    rows = [("variant", "metric", "value", "chance", "blind", "4 of 4 (chance)", "n", "seconds")]
    for row in rows_of(records, blind):
        r = row.record
        rows.append(
            (
                plain(row.variant),
                plain(r["metric"]),
                number(r),
                "" if r["chance"] is None else percent(r["chance"]),
                number(row.blind) if row.blind else "",
                with_chance(row.all_tries),
                str(r["n"]),
                f"{r['seconds']:.1f}",
            )
        )
    return aligned(rows, words=2)


def sparkline(series: Series, width: int = CURVE_WIDTH) -> str:
    """The curve in ``width`` block characters: means of equal spans of steps, from lowest to highest value.

    A span without a value repeats the one before it.
    """
    if not series:
        return ""
    first, last = series[0][0], series[-1][0]
    width = min(width, len(series))
    spans: list[list[float]] = [[] for _ in range(width)]
    for step, value in series:
        spans[min(width - 1, (step - first) * width // max(1, last - first))].append(value)
    means: list[float] = []
    for span in spans:
        means.append(sum(span) / len(span) if span else means[-1])
    low, high = min(means), max(means)
    if high == low:
        return BARS[0] * width
    return "".join(BARS[round((m - low) / (high - low) * (len(BARS) - 1))] for m in means)


# ---------------------------------------------------------------------------------------------------------- sections


def _provenance(records: Sequence[results.Record]) -> list[str]:
    def distinct(key: str) -> str:
        return ", ".join(dict.fromkeys("none" if r[key] is None else str(r[key]) for r in records))

    seeds = sorted({seed for r in records for seed in r["seeds"]})
    dirty = " (with uncommitted changes)" if any(r["dirty"] for r in records) else ""
    return [
        f"± is one standard error, clustered by video. Seeds {', '.join(map(str, seeds))}. "
        f"Peak memory {max(r['peak_rss_mb'] for r in records):.0f} MB.",
        "",
        f"{code(distinct('command'))} · commit {plain(distinct('commit'))}{dirty} · {plain(distinct('cpu'))} · "
        f"torch {plain(distinct('torch'))}",
    ]


def _stage(stage: Stage) -> list[str]:
    lines = [f"### {plain(stage.name)}", ""]
    if stage.steps is None or stage.seconds is None:
        lines.append("Not finished.")
    else:
        weights = code(str(stage.weights)[:12])
        lines.append(f"{stage.steps} steps in {duration(stage.seconds)}, weights {weights}.")
    if stage.rooms:
        rooms = ", ".join(f"{group}={word}" for group, word in stage.rooms.items())
        lines.append(plain(f"Rooms: {rooms}; order={stage.order}, seed={stage.seed}."))
    for name in NUMBERS:
        if name in stage.curves:
            values = sorted(value for _, value in stage.curves[name])
            lines.append(f"Median {name}: {values[len(values) // 2]:.4g}.")
    lines += [plain(said)] if (said := best(stage)) else []
    lines.append("")
    curves = [(name, stage.curves[name]) for name in CURVES if name in stage.curves]
    if curves:
        pad = max(len(name) for name, _ in curves)
        lines.append("```")
        for name, series in curves:
            (first, start), (last, end) = series[0], series[-1]
            lines.append(f"{name:<{pad}}  {sparkline(series)}  {start:.4g} (step {first}) -> {end:.4g} (step {last})")
        lines += ["```", ""]
    return lines


def _clips(folder: Path) -> list[str]:
    """Contact sheets with what was asked about them."""
    sheets: dict[str, list[dict[str, Any]]] = {}
    for row in pictures(folder):
        if row.get("sheet") is not None:
            sheets.setdefault(row["sheet"], []).append(row)
    lines = ["## Some of the clips", ""] if sheets else []
    for sheet, rows in sheets.items():
        picture = f"![{plain(rows[0]['key'])}]({folder.name}/{quote(sheet)})"
        lines += [picture if Path(sheet).name == sheet else f"(no picture {plain(sheet)})", ""]
        lines += ["| | question | answer | prediction |", "|---|---|---|---|"]
        for row in rows:
            cells = [plain(row[k]) for k in ("question", "answer", "prediction")]
            mark = "" if row.get("right") is None else "right" if row["right"] else "**wrong**"
            lines.append(f"| {' | '.join([mark, *cells])} |")
        lines.append("")
    return lines
