"""What a run folder holds, as a report shows it: stages with their curves, rows of the table, answers, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.config.rooms import OF_A_MODEL
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.scores import ALL_TRIES
from hvlm.io import foreign
from hvlm.io.files import read_metrics

BLIND = "blind"
MEANS = ("accuracy", "reward_accuracy", "normalised", "exact", "f1")  # metrics that are shares, and their parts
_TEXT = ("text", lambda value: isinstance(value, str))
_TEXT_OR_NOT = ("text or null", lambda value: value is None or isinstance(value, str))
_PLACE = ("a whole number or null", lambda value: value is None or foreign.whole(value))
# {field: (what is expected, whether a value is that)} of files that a run's folder holds
OF_PICTURES: Mapping[str, tuple[str, Any]] = {
    **dict.fromkeys(("question", "answer"), _TEXT),
    **dict.fromkeys(("prediction", "key", "task", "split"), _TEXT_OR_NOT),
    **dict.fromkeys(("sheet", "gaze", "gaze_path", "merged", "budget"), _TEXT_OR_NOT), "step": _PLACE,
    "options": ("a list or null", lambda value: value is None or isinstance(value, list)),
}  # fmt: skip
OF_FINISHED: Mapping[str, tuple[str, Any]] = {
    "steps": _PLACE, "weights_sha256": _TEXT_OR_NOT,
    "seconds": ("a finite number or null", lambda value: value is None or foreign.number(value)),
    "start": ("an object or null", lambda value: value is None or isinstance(value, dict)),
}  # fmt: skip
Series = list[tuple[int, float]]  # (step, value), ascending


class Stage(NamedTuple):
    """A stage's folder. steps, seconds, weights: None while it is not finished. rooms: {group: word}. curves: all that
    was logged. best: (step, value) of the lowest val/loss, where there is one. kept: names of its checkpoints."""

    name: str
    steps: int | None
    seconds: float | None
    weights: str | None
    rooms: dict[str, str]
    order: Any
    seed: Any
    curves: dict[str, Series]
    best: tuple[int, float] | None
    kept: list[str]


class Row(NamedTuple):
    """A record beside the others that the table shows in its line: the blind control, the 4-of-4 score."""

    record: results.Record
    blind: results.Record | None
    all_tries: results.Record | None

    @property
    def variant(self) -> str:
        further = [f"{k}={v}" for k, v in self.record.items() if k not in results.FIXED]
        return " ".join([self.record["variant"], *further])


def stages_of(run_dir: Path) -> list[Stage]:
    """The stages of a run in the order in which they came one after the other."""
    return [_stage(folder) for folder in in_order([path.parent for path in sorted(run_dir.glob("*/config.yaml"))])]


def rows_of(records: Sequence[results.Record], blind: str = BLIND) -> list[Row]:
    """One row per variant and metric; the blind control and the 4-of-4 score stand beside what they belong to."""
    by_place = {_place(r): r for r in records}
    rows = []
    for r in [r for r in records if r["variant"] != blind] or records:
        if r["metric"].startswith(ALL_TRIES) and _place(r, metric=_each_try(r["metric"])) in by_place:
            continue  # stands in the row of the same task
        control = by_place.get(_place(r, variant=blind)) if r["variant"] != blind else None
        all_tries = by_place.get(_place(r, metric=_all_tries(r["metric"])))
        rows.append(Row(r, control, None if all_tries is r else all_tries))  # itself: no accuracy, so no such score
    return rows


def is_share(metric: str) -> bool:
    """Whether a metric is a share between 0 and 1, which is shown in percent."""
    name = metric.split("/")[0]
    return "accuracy" in name or any(name == m or name.startswith(f"{m}_") for m in MEANS)


def number(record: Mapping[str, Any]) -> str:
    """``97.5 ± 0.8 %`` for accuracies, four significant digits for everything else."""
    value, error = record["value"], record["stderr"]
    if is_share(record["metric"]):
        return f"{100 * value:.1f}" + (f" ± {100 * error:.1f} %" if error is not None else " %")
    return f"{value:.4g}" + (f" ± {error:.2g}" if error is not None else "")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.01 else f"{100 * share:.2g} %"


def with_chance(record: Mapping[str, Any] | None) -> str:
    """``90.0 ± 1.0 % (6.2 %)``; "" of none."""
    if record is None:
        return ""
    return number(record) + ("" if record["chance"] is None else f" ({percent(record['chance'])})")


def read_curves(folder: Path) -> dict[str, Series]:
    """All logged numbers of a stage: {name: [(step, value), ...]}. Of a step that was done twice the later value
    counts; what is not finite is left out."""
    values: dict[str, dict[int, float]] = {}
    for line in read_metrics(folder):
        for name, value in line.items():
            if name != "step" and foreign.number(value):
                values.setdefault(name, {})[line["step"]] = value
    return {name: sorted(series.items()) for name, series in values.items()}


def best(stage: Stage) -> str:
    """Where val/loss was lowest, and which checkpoints there are; "" where nothing was validated."""
    if stage.best is None:
        return ""
    step, value = stage.best
    times = len(stage.curves["val/loss"])
    kept = f"; checkpoints: {', '.join(stage.kept)}" if stage.kept else ""
    if times == 1:
        return f"Validated once, at step {step}: val/loss {value:.4g} (trainer.val_every=N validates on the way){kept}."
    follows = "what follows starts from the last step"
    return f"Lowest val/loss: {value:.4g} at step {step}, of {times} validations; {follows}{kept}."


def pictures(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``folder/clips.jsonl``, [] without one. UserError for a line that says nothing of a picture."""
    path = folder / "clips.jsonl"
    found: list[dict[str, Any]] = []
    if not path.exists():
        return found
    for number, text in enumerate(foreign.text_of(path).split("\n"), start=1):
        if text.strip():
            try:
                line = foreign.plain(json.loads(text), None)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not valid JSON ({error})") from error
            if not isinstance(line, dict):
                raise UserError(f"{path}, line {number}: no object, expected one about a picture")
            if wrong := foreign.wrong(line, OF_PICTURES):
                raise UserError(f"{path}, line {number}: {wrong}")
            found.append({"key": "", "step": 0, "prediction": "", **line})
    return found


def stage_pictures(run_dir: Path, kind: str) -> tuple[Path, list[dict[str, Any]]]:
    """(folder, lines that have ``kind``: gaze, merged) of the newest pictures of the last stage that drew some; of
    held-out clips, where there are such."""
    for folder in reversed(in_order([path.parent for path in sorted(run_dir.glob("*/config.yaml"))])):
        lines = [line for line in pictures(folder / "clips") if line.get(kind) is not None]
        lines = [line for line in lines if line.get("split") == "val"] or lines
        if lines:
            last = max(line["step"] for line in lines)
            return folder / "clips", [line for line in lines if line["step"] == last]
    return run_dir, []


def in_order(stages: Sequence[Path]) -> list[Path]:
    """The folders of a run's stages as they came one after the other: each after the one whose weights it started from,
    and otherwise as their chain lists them. No clock is asked."""
    chain: list[str] = []
    for stage in stages:
        chain = chain or list(config_of(stage).get("chain") or [])
    listed = sorted(stages, key=lambda stage: chain.index(stage.name) if stage.name in chain else len(chain))
    finished = {stage: record for stage in listed if (record := finished_of(stage))}
    made = {record["weights_sha256"]: stage for stage, record in finished.items() if record.get("weights_sha256")}
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


def config_of(stage: Path) -> dict[str, Any]:
    """The configuration that a stage left. UserError where it is none."""
    config = foreign.yaml_of(stage / "config.yaml")
    if config is None:
        return {}
    if not isinstance(config, dict) or not isinstance(config.get("chain") or [], list | dict):
        raise UserError(f"{stage / 'config.yaml'}: holds no configuration of a stage; copy the run again")
    return config


def finished_of(stage: Path) -> dict[str, Any]:
    """What a finished stage left, {} of one that is not finished. UserError where it says something else."""
    path = stage / "finished.json"
    if not path.exists():
        return {}
    record = foreign.json_of(path)
    if not isinstance(record, dict):
        raise UserError(f"{path}: no object, expected what a finished stage leaves; copy the run again")
    if wrong := foreign.wrong(record, OF_FINISHED):
        raise UserError(f"{path}: {wrong}; copy the run again")
    return record


def _stage(folder: Path) -> Stage:
    config = config_of(folder)
    finished = finished_of(folder)
    curves = read_curves(folder)
    validated = curves.get("val/loss", [])
    return Stage(
        folder.name,
        finished.get("steps"),
        finished.get("seconds"),
        finished.get("weights_sha256"),
        {room: word_of(config[room]) for room in OF_A_MODEL if isinstance(config.get(room), Mapping)},
        config.get("order"),
        config.get("seed"),
        curves,
        min(validated, key=lambda point: point[1]) if validated else None,
        sorted(path.name for path in (folder / "checkpoints").glob("*.ckpt")),
    )


def word_of(node: Mapping[str, Any]) -> str:
    """The file a room was built from: ``hvlm.connector.mean.Mean`` -> ``mean``."""
    parts = str(node.get("_target_", "?")).split(".")
    return parts[-2] if len(parts) > 1 else parts[-1]


def _place(record: results.Record, **changed: str) -> tuple[tuple[str, Any], ...]:
    """The identity of the record that differs from this one in ``changed`` alone."""
    return results.identity({**record, **changed})


def _all_tries(metric: str) -> str:
    """``accuracy/count`` -> ``accuracy_4of4/count``, ``accuracy_mean`` -> ``accuracy_4of4``."""
    return ALL_TRIES if metric == "accuracy_mean" else metric.replace("accuracy/", f"{ALL_TRIES}/", 1)


def _each_try(metric: str) -> str:
    return "accuracy_mean" if metric == ALL_TRIES else metric.replace(f"{ALL_TRIES}/", "accuracy/", 1)
