"""The trainer section of a configuration as arguments of ``lightning.Trainer``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from hvlm.errors import UserError
from hvlm.io.checkpoint import AtomicCheckpointIO
from hvlm.precision import choose_precision

log = logging.getLogger(__name__)


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
    validate = trainer["val_every"] > 0
    limit = trainer["max_steps"]
    return {
        "accelerator": trainer["accelerator"],
        "devices": trainer["devices"],
        "num_nodes": trainer["num_nodes"],
        "strategy": trainer["strategy"],
        "precision": precision,
        "max_steps": steps if limit is None else min(steps, limit),
        "max_epochs": -1,
        "max_time": trainer["max_time"],
        "accumulate_grad_batches": trainer["accumulate"],
        "gradient_clip_val": trainer["gradient_clip_val"],
        "log_every_n_steps": min(trainer["log_every"], steps),
        "val_check_interval": trainer["val_every"] * trainer["accumulate"] if validate else None,
        "check_val_every_n_epoch": None if validate else 1,
        "limit_val_batches": 1.0 if validate else 0,
        "num_sanity_val_steps": 0,
        "deterministic": trainer["deterministic"],
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "plugins": [AtomicCheckpointIO()],
    }
