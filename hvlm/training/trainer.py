"""The trainer section of a configuration as arguments of ``lightning.Trainer``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from hvlm.errors import UserError
from hvlm.precision import choose_precision
from hvlm.training.checkpoint_io import AtomicCheckpointIO
from hvlm.training.sharded import Sharded

log = logging.getLogger(__name__)


# Plain DDP stops at the first batch that leaves a parameter without a gradient, as frozen parts and text alone do.
DDP = "ddp_find_unused_parameters_true"


def max_seconds(trainer: Mapping[str, Any]) -> float | None:
    """``trainer.max_time`` (dd:hh:mm:ss) in seconds; None: no limit. UserError for another form."""
    asked = trainer["max_time"]
    if asked is None:
        return None
    if not re.fullmatch(r"\d+:\d+:\d+:\d+", str(asked)):
        raise UserError(
            f"trainer.max_time={asked}: expected days:hours:minutes:seconds, e.g. trainer.max_time=00:02:30:00"
        )
    days, hours, minutes, seconds = map(int, asked.split(":"))
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def make_strategy(word: str, checkpoint: Literal["whole", "sharded"]) -> Any:
    """What ``lightning.Trainer`` takes for ``trainer.strategy`` and ``trainer.checkpoint``."""
    if word == "fsdp":
        return Sharded(checkpoint)
    return DDP if word == "ddp" else word


def refuse_pieces_of_nothing(trainer: Mapping[str, Any]) -> None:
    """``UserError`` for checkpoints in pieces where every process has everything."""
    if trainer["checkpoint"] == "sharded" and trainer["strategy"] != "fsdp":
        raise UserError(
            f"trainer.checkpoint=sharded with trainer.strategy={trainer['strategy']}: nothing is divided among "
            "processes there; use trainer=fsdp, or trainer.checkpoint=whole"
        )


def refuse_processes_without_a_strategy(trainer: Mapping[str, Any]) -> None:
    """``UserError`` for several processes on CPUs under Lightning's own choice of strategy, which stops at the first
    batch that leaves a parameter without a gradient."""
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    several = nodes > 1 or (devices != "auto" and int(devices) > 1)
    if several and trainer["accelerator"] == "cpu" and trainer["strategy"] == "auto":
        asked = f"trainer.num_nodes={nodes}" if nodes > 1 else f"trainer.devices={devices}"
        raise UserError(f"{asked} with trainer.strategy=auto: add trainer=ddp, which trains with several processes")


@contextmanager
def no_group_of_one_is_left() -> Iterator[None]:
    """A strategy such as FSDP makes a process group for a single process, too, and Lightning leaves it there: what the
    same Python does next would take itself for a part of it."""
    before = torch.distributed.is_available() and torch.distributed.is_initialized()
    try:
        yield
    finally:
        left = torch.distributed.is_available() and torch.distributed.is_initialized() and not before
        if left and torch.distributed.get_world_size() == 1:
            torch.distributed.destroy_process_group()


def val_batches(trainer: Mapping[str, Any]) -> int | float:
    """How many batches a validation has, as Lightning says it: 1.0 is all."""
    return trainer["limit_val_batches"] or 1.0


def make_trainer(arguments: Mapping[str, Any]) -> lightning.Trainer:
    """``lightning.Trainer``, whose refusals are a ``UserError`` of one line.

    Lightning compares devices and nodes with what torchrun or SLURM started only where it starts processes itself; here
    it is done always, for processes that wait for others which nobody starts wait long.
    """
    try:
        made = lightning.Trainer(**arguments)
        place = getattr(made.strategy, "cluster_environment", None)
        if place is not None:
            place.validate_settings(num_devices=made.num_devices, num_nodes=made.num_nodes)
        return made
    except (ValueError, RuntimeError, TypeError, MisconfigurationException) as e:
        reason = " ".join(str(e).split())
        raise UserError(f"trainer.strategy, trainer.devices, trainer.num_nodes, trainer.accelerator: {reason}") from e


def make_trainer_kwargs(trainer: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Arguments of ``lightning.Trainer`` for a stage of ``steps`` optimiser steps; the caller adds folder, loggers and
    callbacks. Sets torch's threads when the configuration asks for it and logs the precision with its reason.

    The samplers are our own (``use_distributed_sampler=False``) and one "epoch" is the whole stage, so validation
    counts batches, not epochs.
    """
    if trainer["accelerator"] == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserError("trainer.accelerator=gpu: torch sees no GPU; use trainer=cpu, or install a GPU build of torch")
    if trainer["threads"] is not None:
        torch.set_num_threads(trainer["threads"])
    precision, why = choose_precision(trainer["precision"], trainer["accelerator"])
    log.info(f"precision {precision}: {why}; {torch.get_num_threads()} threads")
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():  # its own checkpoints when SLURM warns are not ours: see GracefulStop
        plugins.append(SLURMEnvironment(auto_requeue=False))
    validate = trainer["val_every"] > 0
    limit = trainer["max_steps"]
    return {
        "accelerator": trainer["accelerator"],
        "devices": trainer["devices"],
        "num_nodes": trainer["num_nodes"],
        "strategy": make_strategy(trainer["strategy"], trainer["checkpoint"]),
        "precision": precision,
        "max_steps": steps if limit is None else min(steps, limit),
        "max_epochs": -1,
        "accumulate_grad_batches": trainer["accumulate"],
        "gradient_clip_val": trainer["gradient_clip_val"],
        "gradient_clip_algorithm": trainer["gradient_clip_algorithm"],
        "detect_anomaly": trainer["detect_anomaly"],
        "log_every_n_steps": min(trainer["log_every"], steps),
        "val_check_interval": trainer["val_every"] * trainer["accumulate"] if validate else None,
        "check_val_every_n_epoch": None if validate else 1,
        "limit_val_batches": trainer["limit_val_batches"] if validate else 0,  # null: all
        "num_sanity_val_steps": 0,
        "deterministic": trainer["deterministic"],
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "plugins": plugins,
    }
