"""What of a stage goes to W&B beside its numbers: the table of its clips, and its checkpoint as an artifact."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from hvlm.evaluation.open_scores import normalised
from hvlm.io.shards import folder_of

log = logging.getLogger(__name__)

COLUMNS = ("clip", "question", "answer", "gold", "right", "gaze")
PICTURES = ("gaze", "merged", "budget")
LONGEST_NAME = 128  # characters of an artifact's


def clips(rows: Sequence[Mapping[str, str]], videos: Sequence[Path], folder: Path, most_bytes: int) -> dict[str, Any]:
    """What is logged of a few clips: the table ``clips``, the videos and pictures also on their own.

    W&B copies those into the run's own media folder, while a table's files lie in its staging folder
    (see ``hvlm.viz.media.keep_wandb_media_in``) under absolute paths.

    Args:
        rows: {"question", "answer": the right one, "prediction", and of pictures that there are: file names}.
        videos: one file for each.
        folder: where the pictures are.
        most_bytes: of videos and pictures in the table together; clips that find no room any more have their text
            alone.
    """
    table = wandb.Table(columns=list(COLUMNS))
    media, shown, left = [], [], most_bytes
    for row, video in zip(rows, videos, strict=True):
        gaze = folder / row["gaze"] if "gaze" in row else None
        size = video.stat().st_size + (gaze.stat().st_size if gaze else 0)
        fits = size <= left
        left -= size if fits else 0
        gold, answer = row["answer"], row["prediction"]
        right = bool(normalised(answer, [gold])) if gold else None
        clip = wandb.Video(str(video), format="mp4") if fits else None
        table.add_data(clip, row["question"], answer, gold, right, wandb.Image(str(gaze)) if gaze and fits else None)
        if fits:
            caption = f"{row['question']} {gold} | model: {answer}"
            media.append(wandb.Video(str(video), format="mp4", caption=caption))
            shown.append(row)
    if len(shown) < len(rows):
        log.info(f"W&B: {len(rows) - len(shown)} of {len(rows)} clips without video, logger.media_mb is full")
    found: dict[str, Any] = {"clips": table} | ({"clip_videos": media} if media else {})
    for kind in PICTURES:
        pictures = [wandb.Image(str(folder / row[kind]), caption=row["question"]) for row in shown if kind in row]
        found |= {kind: pictures} if pictures else {}
    return found


def answered(lines: Sequence[Mapping[str, Any]], folder: Path, most: int, most_bytes: int) -> wandb.Table | None:
    """A table of a benchmark's clips (``clips.jsonl`` of an evaluation), frames as one picture; None without clips."""
    table = wandb.Table(columns=["frames", "question", "answer", "gold", "right"])
    left = most_bytes
    for line in lines[:most]:
        sheet = folder / line["sheet"] if line.get("sheet") else None
        size = sheet.stat().st_size if sheet is not None and sheet.is_file() else None
        fits = size is not None and size <= left
        left -= size if fits and size else 0
        picture = wandb.Image(str(sheet)) if fits else None
        table.add_data(picture, line["question"], line["prediction"], line["answer"], line.get("right"))
    return table if lines[:most] else None


def log_checkpoint(run: wandb.Run, path: Path, name: str, alias: str, metadata: Mapping[str, Any]) -> None:
    """Log a checkpoint, with its pieces where it has some, as a model artifact. Offline it is copied into the run's
    folder (``wandb-data``)."""
    artifact = wandb.Artifact(artifact_name(name), type="model", metadata=dict(metadata))
    artifact.add_file(str(path), name=path.name, skip_cache=True)
    if (pieces := folder_of(path)).is_dir():
        artifact.add_dir(str(pieces), name=pieces.name, skip_cache=True)
    run.log_artifact(artifact, aliases=[alias])


def artifact_name(name: str) -> str:
    """In the letters that W&B takes, its end where it is too long."""
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[-LONGEST_NAME:]
