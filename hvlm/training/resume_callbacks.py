"""Two callbacks about processes: random states that survive a restart, and a polite end on SIGTERM."""

from __future__ import annotations

import logging
import random
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist

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


class GracefulStop(L.Callback):
    """SIGTERM: finish the optimiser step, save, exit with status 143 (128 + SIGTERM).

    The file is ``<the trainer's default_root_dir>/checkpoints/stopped.ckpt``, where a run folder looks for it.

    The handler only sets a flag: saving inside it can land in the middle of a step, or of another save. It takes the
    place of Lightning's own handler, which would end the run with status 0 and nothing saved.
    """

    def __init__(self) -> None:
        self._asked = False
        self._step = -1
        self._before: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self._before = signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # between two halves of an accumulated step
            return
        self._step = trainer.global_step
        # The signal may reach one rank only, and saving waits for all of them.
        if trainer.world_size > 1:
            self._asked = trainer.strategy.reduce_boolean_decision(self._asked, all=False)
        if self._asked:
            path = Path(trainer.default_root_dir) / "checkpoints" / "stopped.ckpt"
            trainer.save_checkpoint(path)
            log.info(f"SIGTERM: saved step {self._step} to {path}; the same command continues from there")
            raise SystemExit(128 + signal.SIGTERM)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
