"""Callbacks about going on: random states that survive a restart, steps cut into other parts than before, and a polite
end when asked for one."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist

from hvlm.errors import UserError

log = logging.getLogger(__name__)


def rng_state() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class RngState(L.Callback):
    """Dropout after a resume draws the numbers it would have drawn: Lightning alone does not restore them.

    The states of all ranks are stored. They are put back right before the first training batch, because setting up
    the loaders draws from the same generators.
    """

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        states = [rng_state()]
        if trainer.world_size > 1:
            states = [{}] * trainer.world_size
            dist.all_gather_object(states, rng_state())
        checkpoint["rng"] = states

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("rng")
        if states is not None and len(states) == trainer.world_size:
            self._pending = states[trainer.global_rank]
        else:
            saved = "no random states" if states is None else f"random states of {len(states)} processes"
            log.warning(f"the checkpoint holds {saved} and {trainer.world_size} run now: dropout will differ")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._pending is not None:
            set_rng_state(self._pending)
            self._pending = None


class OtherParts(L.Callback):
    """A run goes on in other parts of a step (``trainer.accumulate``) than it was stopped with.

    Lightning counts batches, which are these parts, and finds the end of a step and of the run by their number; what it
    has stored is therefore counted again in the parts of now.
    """

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":
            total = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
            if (
                total["completed"] < total["processed"]
            ):  # of a batch's end; else Lightning does not know it as such, and
                total["ready"] = total["started"]  # ends the next step a part too early: see GracefulStop
        now = trainer.accumulate_grad_batches
        before = checkpoint.get("DataModule", {}).get("accumulate", now)
        if before == now or trainer.state.fn != "fit":
            return
        log.warning(
            f"trainer.accumulate was {before} and is {now}: steps have the same samples, but what a part computes by "
            "itself (dropout, contrasts of retrieve and match) differs from here on"
        )
        further = checkpoint["global_step"] * (now - before)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            for name in ("ready", "started", "processed", "completed"):
                counts[name] += further


class GracefulStop(L.Callback):
    """A signal, or the end of the time: finish the optimiser step, write its metrics, save, and leave.

    The file is ``<the trainer's default_root_dir>/checkpoints/stopped.ckpt``, where a run folder looks for it. The exit
    status is 128 + the signal's number: 143 for SIGTERM, 130 for SIGINT (Ctrl-C; a second one interrupts at once), 138
    for SIGUSR1, by which SLURM warns of the end of a job; that one is put into the queue again. At ``deadline`` a
    ``UserError`` says that the time is over.

    The handler only sets a flag: saving inside it can land in the middle of a step, or of another save. It takes the
    place of Lightning's own handlers, one of which would end the run with status 0 and nothing saved, and one of which
    writes checkpoints of its own that no later start can read.

    Args:
        deadline: the value of ``time.monotonic()`` from which no further step begins; None: no limit. One step is made
            in any case, so that every call comes further.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._asked = 0  # the signal that came
        self._stop = False  # decided, at the end of a step
        self._step = -1
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = signum

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # between two halves of an accumulated step
            return
        self._step = trainer.global_step
        over = self.deadline is not None and time.monotonic() >= self.deadline
        self._stop = bool(self._asked) or over
        # The signal may reach one rank only, and saving waits for all of them.
        if trainer.world_size > 1:
            self._stop = trainer.strategy.reduce_boolean_decision(self._stop, all=False)

    # The step's metrics are written between the end of its batch and whatever comes next.

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._leave(trainer)
        # Lightning counts one more on resuming, for checkpoints of a batch's end, and this one is of the next's start:
        # the steps in the metrics would be one too high from there on.
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = trainer.global_step
        # And the batch before which it stopped stays counted as read for ever, which no later checkpoint may have.
        loop.batch_progress.total.ready = loop.batch_progress.total.started + 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._leave(trainer)

    def _leave(self, trainer: L.Trainer) -> None:
        if not self._stop:
            return
        path = Path(trainer.default_root_dir) / "checkpoints" / "stopped.ckpt"
        trainer.save_checkpoint(path)
        said = f"step {self._step} of {trainer.max_steps} is saved in {path}; the same command continues from there"
        if not self._asked and self.deadline is not None and time.monotonic() >= self.deadline:
            raise UserError(f"trainer.max_time is over: {said}")
        name = signal.Signals(self._asked).name if self._asked else "stopped with another process"
        log.info(f"{name}: {said}")
        if self._asked == signal.SIGUSR1 and trainer.is_global_zero:
            requeue()
        raise SystemExit(128 + (self._asked or signal.SIGTERM))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def requeue() -> None:
    """Put this process's SLURM job into the queue again; nothing outside SLURM."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = os.environ.get("SLURM_JOB_ID") if job is None else f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
        log.info(f"SLURM job {job} is in the queue again")
    except (OSError, subprocess.SubprocessError) as error:
        log.warning(f"SLURM job {job} could not be put into the queue again ({error}); start it by hand")
