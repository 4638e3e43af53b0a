"""The panels of a W&B workspace over many runs, as one list; W&B's own package makes the workspace of it.

Names are those that training and evaluation log (docs/metrics.md, "What a run logs").
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hvlm.errors import UserError
from hvlm.io.files import write_atomically

STEP = "trainer/global_step"
SCORE, ERROR, BLIND = "eval/score", "eval/score/stderr", "eval/blind"


@dataclass(frozen=True)
class Panel:
    """One panel.

    names: ``curves`` over the training step; ``bars`` of the runs' last values; ``media`` shows pictures and videos;
    ``scatter`` has the x and the y axis, each run a point. pattern: a regular expression in place of names that differ
    from run to run (curves). over: a setting, the runs of each of whose values are one bar: their mean, and its
    standard error over the runs. log: the scale of x. front: best y so far, as a line.
    """

    title: str
    kind: Literal["curves", "bars", "scatter", "media"]
    names: tuple[str, ...] = ()
    pattern: str = ""
    over: str = ""
    log: bool = False
    front: bool = False


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Learning": (
        Panel("Training loss", "curves", ("train/loss",)),
        Panel("Validation loss", "curves", ("val/loss",)),
        Panel("Validation accuracy", "curves", pattern=r"val/.*accuracy.*"),
    ),
    "Results": (
        Panel("Score and the same without the video", "bars", (SCORE, BLIND)),
        Panel("Standard error of the score", "bars", (ERROR,)),
        Panel("Score by connector, ± over runs", "bars", (SCORE,), over="connector._target_"),
        Panel("Score by merger, ± over runs", "bars", (SCORE,), over="merger._target_"),
    ),
    "Accuracy against cost (Pareto)": (
        Panel("Prefill FLOPs", "scatter", ("cost/prefill_flops", SCORE), log=True, front=True),
        Panel("KV bytes", "scatter", ("cost/kv_bytes", SCORE), log=True, front=True),
        Panel("Milliseconds to the first token", "scatter", ("cost/latency_ms", SCORE), log=True, front=True),
    ),
    "Speed and health": (
        Panel("Clips per second", "curves", ("samples_per_s",)),
        Panel("Gradient norm, before clipping", "curves", ("grad_norm",)),
        Panel("Learning rates", "curves", pattern=r"lr/.*"),
    ),
    "Where the model looks": (
        Panel("Entropy of the gaze", "curves", ("gaze/entropy_fine", "gaze/entropy_coarse")),
        Panel("Gaze", "media", ("gaze",)),
        Panel("Gates of the KV cache", "media", ("gates",)),
    ),
    "What is merged": (
        Panel("Merged tokens", "media", ("merged",)),
        Panel("Tokens left of each frame", "media", ("budget",)),
    ),
    "Clips": (
        Panel("Questions, answers and videos", "media", ("clip_videos",)),
        Panel("Needles by depth and length", "media", ("eval/needles",)),
    ),
}


def names(sections: dict[str, tuple[Panel, ...]] = SECTIONS) -> Iterator[tuple[str, bool]]:
    """(name or pattern, whether it is a pattern) of everything that a panel shows."""
    for panel in (panel for panels in sections.values() for panel in panels):
        yield from ((name, False) for name in panel.names)
        if panel.pattern:
            yield panel.pattern, True


def workspace(entity: str, project: str, name: str) -> Any:
    """wandb-workspaces' ``Workspace`` with all sections; nothing is sent. UserError where the package is absent, and
    where it does not take a name (signs such as ``<`` and emojis)."""
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError(
            f"hvlm dashboard: wandb-workspaces is missing ({error}); pip install 'hvlm[dashboard]'"
        ) from error
    sections = [
        workspaces.Section(name=title, panels=[_made(reports, panel) for panel in panels], is_open=True)
        for title, panels in SECTIONS.items()
    ]
    settings = workspaces.WorkspaceSettings(x_axis=STEP, max_runs=50)
    try:
        return workspaces.Workspace(entity=entity, project=project, name=name, sections=sections, settings=settings)
    except ValueError as error:  # pydantic's has the package's own words in its list
        why = next((str(e["msg"]) for e in getattr(error, "errors", list)()), str(error)).splitlines()[0]
        raise UserError(f"hvlm dashboard: entity={entity} project={project} name={name}: {why}; use letters") from error


def _made(reports: Any, panel: Panel) -> Any:
    if panel.kind == "curves":
        shown = {"metric_regex": panel.pattern} if panel.pattern else {"y": list(panel.names)}
        return reports.LinePlot(title=panel.title, x=STEP, **shown)
    if panel.kind == "scatter":
        x, y = (reports.SummaryMetric(name) for name in panel.names)
        return reports.ScatterPlot(title=panel.title, x=x, y=y, log_x=panel.log, running_ymax=panel.front)
    if panel.kind == "media":
        return reports.MediaBrowser(title=panel.title, media_keys=list(panel.names))
    metrics = [reports.SummaryMetric(name) for name in panel.names]
    if not panel.over:
        return reports.BarPlot(title=panel.title, metrics=metrics)
    over = {"groupby": reports.Config(panel.over), "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    return reports.BarPlot(title=panel.title, metrics=metrics, **over)


def write(made: Any, path: Path) -> None:
    """What ``Workspace.save`` would send, as JSON in a file."""
    view = json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True))
    text = json.dumps(view, indent=1, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda f: f.write(text.encode()))
    except OSError as error:
        raise UserError(f"offline={path}: cannot be written ({error.strerror}); name another file") from error


def titles(sections: dict[str, tuple[Panel, ...]] = SECTIONS) -> Sequence[str]:
    return [panel.title for panels in sections.values() for panel in panels]
