"""What a training run shows of itself: a bar or lines, and its speed, gradients and learning rates as numbers.

Metric names: ``train/loss``, ``val/loss``, ... come from the stages; here ``samples_per_s`` (clips per second over all
processes), ``grad_norm`` (before clipping) and ``lr/<part>`` are added. Files:
``hvlm.training.file_logger``; clips with answers: ``hvlm.training.clip_table``.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.tensor import DTensor

from hvlm.console import duration
from hvlm.types import Batch

PROGRESS_EVERY_S = 10.0


class Throughput(Callback):
    """Logs ``samples_per_s``: clips of all processes per second since the last logging step.

    Waiting for data counts, validation does not; what is not training must not look like slow training.
    """

    def __init__(self) -> None:
        self._samples = 0
        self._seconds = 0.0
        self._mark: float | None = None  # when the batch before this one ended

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if self._mark is None:
            self._mark = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._seconds += now - (self._mark or now)
        self._mark = now
        self._samples += batch.num_clips * trainer.world_size
        pl_module.log("samples_per_s", self._samples / max(self._seconds, 1e-9), prog_bar=True)
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self._samples, self._seconds = 0, 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = None


class Norms(Callback):
    """Logs ``grad_norm``, the 2-norm of all gradients before clipping, and ``lr/<part>``, on logging steps.

    (Lightning's LearningRateMonitor refuses parameter groups of one name; a part has two, decayed and not.)
    """

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps:  # global_step counts finished steps
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            norm = torch.nn.utils.get_total_norm(gradients)
            pl_module.log("grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)
        pl_module.log_dict({f"lr/{group['name']}": float(group["lr"]) for group in optimizer.param_groups})


class PlainProgress(Callback):
    """For logs and pipes: one line with step, loss, samples/s and the time left about every ``every_s`` seconds."""

    def __init__(self, label: str, every_s: float = PROGRESS_EVERY_S):
        self.label, self.every_s = label, every_s
        self._start = self._last = 0.0
        self._first_step = 0

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = self._last = time.monotonic()
        self._first_step = trainer.global_step

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.monotonic()
        step, steps = trainer.global_step, trainer.max_steps
        if now - self._last < self.every_s and step != steps:
            return
        self._last = now
        done = step - self._first_step
        left = duration((now - self._start) / done * (steps - step)) if done and steps > 0 else "unknown"
        found = trainer.callback_metrics
        numbers = [
            f"{short} {float(found[name]):.4g}"
            for name, short in (("train/loss", "loss"), ("val/loss", "val loss"), ("samples_per_s", "samples/s"))
            if name in found
        ]
        print(", ".join([f"{self.label}: step {step}/{steps}", *numbers, f"time left {left}"]), flush=True)


def progress(label: str) -> Callback:
    """The bar where somebody watches (elapsed and remaining time, loss, samples/s), plain lines where nobody does."""
    return RichProgressBar(leave=True) if sys.stdout.isatty() else PlainProgress(label)
