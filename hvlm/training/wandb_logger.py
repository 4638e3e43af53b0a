"""Weights & Biases beside the files of a stage (``logger=wandb``), offline unless the configuration says otherwise."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from hvlm.config.chosen import words
from hvlm.config.search_path import CONF, folders
from hvlm.errors import UserError
from hvlm.evaluation.cost import Cost
from hvlm.evaluation.needle_map import PICTURE
from hvlm.evaluation.report_data import BLIND, pictures
from hvlm.training.wandb_media import answered
from hvlm.viz.media import keep_wandb_media_in

log = logging.getLogger(__name__)

ID = "wandb-id"
LONGEST_TAG = 64  # characters; W&B refuses a run with a longer one
UNTOLD = ("benchmark", "stage")  # the stage is the job type


def wandb_logger(cfg: Mapping[str, Any], folder: Path, fresh: bool = False) -> WandbLogger:
    """A started W&B run for the stage in ``folder`` (runs/<run>/<stage>), with the resolved ``cfg`` as its config.

    It is called <run>/<stage>, its job type is the stage; its group is the sweep's (``logger.group``), else the run's
    name; its tags are ``tags``. Everything W&B keeps lies in ``folder``: ``wandb/`` and, for the files of tables,
    ``wandb-data/``. A stage that continues (not ``fresh``) has the same W&B id as before, which stands in
    ``folder/wandb-id``, so that W&B shows one curve.
    Raises ``UserError`` when the folder is not writable or W&B cannot start (no login, no network).
    """
    keep_wandb_media_in(folder)
    return WandbLogger(save_dir=str(folder), experiment=_start(cfg, folder, fresh))


@rank_zero_only
def write_summary(cfg: Mapping[str, Any], folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Put the benchmark's results into the summary of the W&B run of the stage in ``folder``, which has ended:
    ``eval/<variant>/<metric>``, and ``.../stderr`` where a result has one; what is held against each other over runs
    (``summary``); the map of depth and length, if any; a table of the clips whose answers the evaluation shows.

    Raises UserError where W&B cannot start.
    """
    keep_wandb_media_in(folder)
    run = _start(cfg, folder, fresh=False)
    run.summary.update(summary(records))
    if (picture := folder.parent / PICTURE).exists():
        run.log({"eval/needles": wandb.Image(str(picture))})
    lines, most = pictures(folder.parent / "clips"), cfg["callback"]["media"]
    table = answered(lines, folder.parent / "clips", most, int(cfg["logger"]["media_mb"] * 1e6))
    if table is not None:
        run.log({"eval/clips": table})
    run.finish()


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{name in W&B: value} of a benchmark's records: each by its variant and metric; and, under names that all runs
    have, the first figure with the video (``eval/score``; ``eval/metric`` says which), the same without
    (``eval/blind``) and what an answer costs (``cost/<measure>``)."""
    found: dict[str, Any] = {}
    for record in records:
        name = f"eval/{record['variant']}/{record['metric']}"
        found[name] = record["value"]
        if record["stderr"] is not None:
            found[f"{name}/stderr"] = record["stderr"]
        if record["variant"] != BLIND and record["metric"] in Cost._fields:
            found[f"cost/{record['metric']}"] = record["value"]
    scores = [r for r in records if r["variant"] != BLIND and r["metric"] not in Cost._fields]
    if scores:
        first = scores[0]
        found |= {"eval/score": first["value"], "eval/metric": first["metric"]}
        if first["stderr"] is not None:
            found["eval/score/stderr"] = first["stderr"]
        blind = [r["value"] for r in records if r["variant"] == BLIND and r["metric"] == first["metric"]]
        found |= {"eval/blind": blind[0]} if blind else {}
    return found


def tags(cfg: Mapping[str, Any]) -> list[str]:
    """``logger.tags``, else ``connector=mean`` and so on of what a run is told apart by: rooms that change nothing and
    the benchmark are left out. Cut to what W&B takes."""
    given = cfg["logger"]["tags"]
    if not given:
        chosen = words(cfg, (CONF, *folders()))
        given = [f"{group}={word}" for group, word in chosen.items() if word != "none" and group not in UNTOLD]
    return list(dict.fromkeys(shortened(tag) for tag in given if tag))


def shortened(tag: str, most: int = LONGEST_TAG) -> str:
    """The same text where it has at most ``most`` characters; else its beginning and eight digits that stand for it."""
    if len(tag) <= most:
        return tag
    return f"{tag[: most - 9]}-{hashlib.sha256(tag.encode()).hexdigest()[:8]}"


@rank_zero_only
def _start(cfg: Mapping[str, Any], folder: Path, fresh: bool) -> wandb.Run:
    settings = cfg["logger"]
    try:
        run = wandb.init(
            mode="offline" if settings["offline"] else "online",
            dir=str(folder),
            id=_id(folder, fresh),
            resume="allow",
            name=f"{folder.parent.name}/{folder.name}",
            project=settings["project"],
            entity=settings["entity"],
            group=settings["group"] or folder.parent.name,
            job_type=folder.name,
            tags=tags(cfg),
            config=dict(cfg),
            settings=wandb.Settings(silent=True),  # what is worth saying is said below, in one line
        )
    except wandb.Error as error:
        raise UserError(
            f"logger=wandb: {str(error).splitlines()[0]}; log in with `wandb login` (or set WANDB_API_KEY), or use "
            "logger.offline=true"
        ) from error
    # As Lightning does for the runs that it starts: the training step is the axis of everything.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    if run.offline:
        log.info(f"W&B is offline; to upload this stage: wandb sync {Path(run.dir).parent}")
    else:
        log.info(f"W&B: {run.url}")
    return run


def _id(folder: Path, fresh: bool) -> str:
    path = folder / ID
    if fresh or not path.exists():
        path.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
