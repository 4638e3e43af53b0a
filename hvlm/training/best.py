"""The checkpoint with the lowest validation loss, kept where it is asked for (``logger.artifacts=best``)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

MONITOR = "val/loss"
BEST = "best.ckpt"  # in the stage's folder


class Found(NamedTuple):
    """A checkpoint, the step it is of and its validation loss (None: not validated)."""

    path: Path
    step: int
    value: float | None


class KeepBest(Callback):
    """Writes ``path`` whenever a validation while training (``trainer.val_every``) finds a lower ``val/loss``.

    One file, which the next better one replaces. What was lowest stands in the run's checkpoints, so that a run that
    continues knows it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.value, self.step = math.inf, 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics.get(MONITOR, math.nan))  # of all processes, the same in each
        if value < self.value:
            self.value, self.step = value, trainer.global_step
            trainer.save_checkpoint(self.path)

    def of(self, last: Path, step: int, value: float | None) -> Found:
        """The better one of what was kept and the stage's end, ``last``, with its own step and loss."""
        if self.path.exists() and self.value < (math.inf if value is None or math.isnan(value) else value):
            return Found(self.path, self.step, self.value)
        return Found(last, step, value)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value, self.step = float(state_dict["value"]), int(state_dict["step"])
