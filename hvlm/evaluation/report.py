"""report.md of a run: what was run, how the losses fell, what the benchmark says.

``python -m hvlm.evaluation.report runs/demo`` writes it again.

Everything is read from the run folder, so the report can be written again at any time:
<stage>/{config.yaml, metrics.jsonl, finished.json}, results.json, clips/.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hvlm.config.rooms import OF_A_MODEL
from hvlm.console import duration
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.io.files import read_metrics
from hvlm.io.json_lines import read_lines

BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 48
CURVES = ("train/loss", "val/loss", "train/object_accuracy", "train/reward_accuracy", "val/reward_accuracy")
NUMBERS = ("samples_per_s", "grad_norm")
ALL_TRIES = "accuracy_4of4"

Series = list[tuple[int, float]]  # (step, value), ascending


def write_report(run_dir: Path, extra: Sequence[str] = ()) -> Path:
    """Write ``run_dir/report.md`` and return its path. ``extra``: lines to put under the title.

    Raises UserError when the folder holds neither results nor a stage.
    """
    run_dir = Path(run_dir)
    stages = _in_order([path.parent for path in sorted(run_dir.glob("*/config.yaml"))])
    records = results.read(run_dir / "results.json") if (run_dir / "results.json").exists() else []
    if not stages and not records:
        raise UserError(f"{run_dir}: neither results.json nor a stage folder with config.yaml; give a run folder")
    lines = [f"# {run_dir.name}", "", *extra, *([""] if extra else [])]
    if records:
        lines += ["## Results", "", *table(records), "", *_provenance(records), ""]
    if stages:
        lines += ["## Training", ""]
        for stage in stages:
            lines += _stage(stage)
    lines += _clips(run_dir / "clips")
    path = run_dir / "report.md"
    part = path.with_name("report.md.part")
    part.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    os.replace(part, path)
    return path


def table(records: Sequence[results.Record], blind: str = "blind") -> list[str]:
    """Markdown: one row per variant and metric, accuracies in percent with their standard error, and beside them the
    chance level, the blind control and the 4-of-4 score with its own chance level. Reads in a terminal too."""
    by_place = {_place(r): r for r in records}
    compared = [r for r in records if r["variant"] != blind] or records
    rows = [("variant", "metric", "value", "chance", "blind", "4 of 4 (chance)", "n", "seconds")]
    for r in compared:
        if r["metric"].startswith(ALL_TRIES) and _place(r, metric=_each_try(r["metric"])) in by_place:
            continue  # stands in the row of the same task
        control = by_place.get(_place(r, variant=blind)) if r["variant"] != blind else None
        all_tries = by_place.get(_place(r, metric=_all_tries(r["metric"])))
        if all_tries is r:  # no accuracy, so without such a score
            all_tries = None
        further = [f"{k}={v}" for k, v in r.items() if k not in results.FIXED]
        rows.append(
            (
                " ".join([r["variant"], *further]),
                r["metric"],
                number(r),
                "" if r["chance"] is None else percent(r["chance"]),
                number(control) if control else "",
                f"{number(all_tries)} ({percent(all_tries['chance'])})" if all_tries else "",
                str(r["n"]),
                f"{r['seconds']:.1f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    words = 2  # the first columns; the others are numbers, aligned right
    pads = ["<" if i < words else ">" for i in range(len(widths))]
    text = [
        "| " + " | ".join(f"{cell:{pad}{w}}" for cell, pad, w in zip(row, pads, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|".join("-" * (w + 2) if pad == "<" else "-" * (w + 1) + ":" for pad, w in zip(pads, widths, strict=True))
    return [text[0], f"|{rule}|", *text[1:]]


def _place(record: results.Record, **changed: str) -> tuple[tuple[str, Any], ...]:
    """The identity of the record that differs from this one in ``changed`` alone."""
    return results.identity({**record, **changed})


def _all_tries(metric: str) -> str:
    """``accuracy/count`` -> ``accuracy_4of4/count``, ``accuracy_mean`` -> ``accuracy_4of4``."""
    return ALL_TRIES if metric == "accuracy_mean" else metric.replace("accuracy/", f"{ALL_TRIES}/", 1)


def _each_try(metric: str) -> str:
    return "accuracy_mean" if metric == ALL_TRIES else metric.replace(f"{ALL_TRIES}/", "accuracy/", 1)


def number(record: Mapping[str, Any]) -> str:
    """``97.5 ± 0.8 %`` for accuracies, four significant digits for everything else."""
    value, error = record["value"], record["stderr"]
    if "accuracy" in record["metric"]:
        return f"{100 * value:.1f}" + (f" ± {100 * error:.1f} %" if error is not None else " %")
    return f"{value:.4g}" + (f" ± {error:.2g}" if error is not None else "")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.01 else f"{100 * share:.2g} %"


# ------------------------------------------------------------------------------------------------------------ curves


def read_curves(folder: Path) -> dict[str, Series]:
    """All logged numbers of a stage: {name: [(step, value), ...]}. Of a step that was done twice the later value
    counts; what is not finite is left out."""
    values: dict[str, dict[int, float]] = {}
    for line in read_metrics(folder):
        for name, value in line.items():
            if name != "step" and value is not None:
                values.setdefault(name, {})[line["step"]] = value
    return {name: sorted(series.items()) for name, series in values.items()}


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
        f"`{distinct('command')}` · commit {distinct('commit')}{dirty} · {distinct('cpu')} · torch {distinct('torch')}",
    ]


def _in_order(stages: Sequence[Path]) -> list[Path]:
    """The folders of a run's stages as they came one after the other: each after the one whose weights it started from,
    and otherwise as their chain lists them. No clock is asked."""
    chain: list[str] = []
    for stage in stages:
        chain = chain or list(
            (yaml.safe_load((stage / "config.yaml").read_text(encoding="utf-8")) or {}).get("chain") or []
        )
    listed = sorted(stages, key=lambda stage: chain.index(stage.name) if stage.name in chain else len(chain))
    finished = {
        stage: json.loads((stage / "finished.json").read_text())
        for stage in listed
        if (stage / "finished.json").exists()
    }
    made = {record["weights_sha256"]: stage for stage, record in finished.items()}
    order: list[Path] = []

    def place(stage: Path, way: tuple[Path, ...] = ()) -> None:
        before = made.get((finished.get(stage, {}).get("start") or {}).get("weights_sha256"))
        if before is not None and before not in (stage, *way):
            place(before, (*way, stage))
        if stage not in order:
            order.append(stage)

    for stage in listed:
        place(stage)
    return order


def _stage(folder: Path) -> list[str]:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
    metrics = read_curves(folder)
    finished = json.loads((folder / "finished.json").read_text()) if (folder / "finished.json").exists() else None
    lines = [f"### {folder.name}", ""]
    if finished is None:
        lines.append("Not finished.")
    else:
        weights = finished["weights_sha256"][:12]
        lines.append(f"{finished['steps']} steps in {duration(finished['seconds'])}, weights `{weights}`.")
    rooms = [f"{room}={_word(config[room])}" for room in OF_A_MODEL if isinstance(config.get(room), Mapping)]
    if rooms:
        lines.append(f"Rooms: {', '.join(rooms)}; order={config.get('order')}, seed={config.get('seed')}.")
    for name in NUMBERS:
        if name in metrics:
            values = sorted(value for _, value in metrics[name])
            lines.append(f"Median {name}: {values[len(values) // 2]:.4g}.")
    lines.append("")
    curves = [(name, metrics[name]) for name in CURVES if name in metrics]
    if curves:
        pad = max(len(name) for name, _ in curves)
        lines.append("```")
        for name, series in curves:
            (first, start), (last, end) = series[0], series[-1]
            lines.append(f"{name:<{pad}}  {sparkline(series)}  {start:.4g} (step {first}) -> {end:.4g} (step {last})")
        lines += ["```", ""]
    return lines


def _word(node: Mapping[str, Any]) -> str:
    """The file a room was built from: ``hvlm.connector.mean.Mean`` -> ``mean``."""
    parts = str(node.get("_target_", "?")).split(".")
    return parts[-2] if len(parts) > 1 else parts[-1]


def _clips(folder: Path) -> list[str]:
    """Contact sheets with what was asked about them."""
    if not (folder / "clips.jsonl").exists():
        return []
    sheets: dict[str, list[dict[str, Any]]] = {}
    for row in read_lines(folder / "clips.jsonl"):
        sheets.setdefault(row["sheet"], []).append(row)
    lines = ["## Some of the clips", ""]
    for sheet, rows in sheets.items():
        lines += [f"![{rows[0]['key']}]({folder.name}/{sheet})", ""]
        lines += ["| question | answer | prediction |", "|---|---|---|"]
        for row in rows:
            cells = [str(row[k]).replace("|", "\\|").replace("\n", " / ") for k in ("question", "answer", "prediction")]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return lines


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m hvlm.evaluation.report RUN_FOLDER", file=sys.stderr)
        return 2
    try:
        print(write_report(Path(arguments[0])))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
