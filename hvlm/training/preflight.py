"""What would stop a stage after hours is looked at before its first step: room on the disk and in memory."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hvlm.errors import UserError
from hvlm.io.shards import SHARDS
from hvlm.stage._base import Stage

log = logging.getLogger(__name__)

MORE = 1.1  # of a checkpoint's tensors: what else it holds, and how the archive is laid out


def check_room(
    stage: Stage,
    folder: Path,
    trainer: Mapping[str, Any],
    keep: int,
    frames: int,
    side: int,
    most: int | None = None,
    beside: Sequence[Path] = (),
) -> None:
    """Compare what the stage will need with what there is, and say both in the log.

    Of memory only what is known beforehand is counted (weights are there already; gradients, the optimiser's two
    moments and the pixels of a step come): activations come on top. Processes share the pixels of a step, and with
    ``trainer.strategy=fsdp`` the rest; those of one machine have a GPU each, or its memory together.

    Args:
        stage: built, with what it does not train frozen.
        folder: where checkpoints go; it exists.
        trainer: that section of the configuration.
        keep: checkpoints kept beside the last one; -1: all.
        frames, side: of a clip, and pixels of a frame's side.
        most: frames of a step's batch (``dataset.batch``); None: no such limit.
        beside: further files, each a checkpoint, that the stage writes on the same disk; some may be there already.

    Raises:
        UserError: there is too little of one; the message says how much is needed, how much there is, and what to do.
    """
    one = checkpoint_bytes(stage)
    made = -(-stage.steps // trainer["checkpoint_every"])
    kept = made if keep < 0 else min(keep, made)
    there = sum(path.stat().st_size for kind in ("*.ckpt", f"*{SHARDS}/*") for path in folder.glob(kind))
    there += sum(file.stat().st_size for path in beside for file in _files(path))
    whole = kept + 2 + len(beside)  # last.ckpt, and the one that is being written
    needed = one * whole - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        fewer = "callback.keep, logger.artifacts" if beside else "callback.keep"
        raise UserError(
            f"{folder}: {whole} checkpoints of {_size(one)} have to lie there, which takes {_size(needed)} more, "
            f"and {_size(free)} are free; make room, keep fewer ({fewer}), "
            "or make runs/ a link to a larger disk"
        )
    clips = stage.batch_size if most is None else min(stage.batch_size, max(1, most // frames))
    on_gpus, here, world = processes(trainer)
    together = 1 if on_gpus else here  # processes whose memory is one
    more = together * optimiser_bytes(stage) // (world if trainer["strategy"] == "fsdp" else 1)
    pixels = together * step_bytes(-(-clips // (trainer["accumulate"] * world)), frames, side)
    device, available = available_bytes(trainer["accelerator"])
    said = f"gradients and optimiser take {_size(more)}, the pixels of a step {_size(pixels)}"
    if available is not None and more + pixels > available:
        raise UserError(
            f"{said}, and {_size(available)} of {device} are available; train fewer parts (stage.trainable, adapter=), "
            "use trainer.accumulate, or a smaller stage.batch_size or dataset.num_frames"
        )
    log.info(f"a checkpoint takes {_size(one)} ({_size(free)} free); {said}, activations not counted")


def _files(checkpoint: Path) -> list[Path]:
    """Those of a checkpoint that are there: itself, and its pieces."""
    pieces = checkpoint.with_name(checkpoint.name + SHARDS)
    return [path for path in (checkpoint, *pieces.glob("*")) if path.is_file()]


def processes(trainer: Mapping[str, Any]) -> tuple[bool, int, int]:
    """(whether each has a GPU, how many run on this machine, how many on all)."""
    on_gpus = trainer["accelerator"] != "cpu" and torch.cuda.is_available()
    devices = trainer["devices"]
    here = int(devices) if devices != "auto" else torch.cuda.device_count() if on_gpus else 1
    return on_gpus, here, here * int(trainer["num_nodes"])


def checkpoint_bytes(stage: Stage) -> int:
    """About what one checkpoint takes on the disk."""
    weights = sum(t.numel() * t.element_size() for t in stage.state_dict().values())
    return int(MORE * (weights + 2 * _learned(stage)))


def optimiser_bytes(stage: Stage) -> int:
    """Of the gradients and the two moments of AdamW."""
    return 3 * _learned(stage)


def step_bytes(clips: int, frames: int, side: int) -> int:
    """Of the frames of so many clips, as bytes and as the floating-point numbers that the encoder reads."""
    return 5 * 3 * clips * frames * side * side


def _learned(stage: Stage) -> int:
    return sum(p.numel() * p.element_size() for p in stage.parameters() if p.requires_grad)


def available_bytes(accelerator: str) -> tuple[str, int | None]:
    """(what it is, how much of it can still be had); None where nobody says so."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "the GPU's memory", torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return "memory", None
    found = {name: int(rest.split()[0]) << 10 for name, rest in (line.split(":", 1) for line in lines)}
    return "memory", found.get("MemAvailable")


def _size(count: float) -> str:
    return f"{count / (1 << 30):.1f} GB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MB"
