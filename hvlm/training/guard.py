"""Steps that would spoil the weights are not taken: gradients that are no numbers, or suddenly enormous."""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor

from hvlm.errors import UserError, first_few
from hvlm.io.files import write_atomically
from hvlm.types import Batch

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"
WINDOW = 100  # norms that say what is usual
ENOUGH = 10  # of them, before anything can be unusual


class Guard(Callback):
    """Looks at the norm of all gradients before each optimiser step, and leaves a step out whose norm is no number, or
    is more than ``spike`` times the median of the last ``WINDOW`` norms (without those that are 0: a median, which one
    spike that was not noticed does not move). The first ``ENOUGH`` norms have nothing to be compared with.

    A step that is left out counts as a step: the order of the samples and the learning rates go on as they would have.
    Weights, the optimiser's state and the running statistics of the parts that train stay as they were before it. Each
    is a line in the log and in ``folder/skipped.jsonl``: {time, step, why, norm, usual, uids}, uids being the samples
    of its batch, of all processes. What is remembered is part of the checkpoint, so a resumed run decides alike.

    Of several processes all decide the same: gradients are averaged over them before.

    Args:
        spike: how many times the usual norm is too much; None: never.
        most: how many steps of a stage may be left out; one more ends the run with a ``UserError``.
        folder: where the list is written.
    """

    def __init__(self, spike: float | None, most: int, folder: Path) -> None:
        self.spike, self.most, self.path = spike, most, Path(folder) / SKIPPED
        self.skipped = 0
        self._norms: list[float] = []
        self._uids: list[str] = []  # of the batches of the step under way
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []  # (a buffer, what it was before the step)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "norms": list(self._norms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self._norms = state_dict["skipped"], list(state_dict["norms"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._uids, self._kept = [], []
        if trainer.is_global_zero:
            self._forget_what_comes_again(trainer.global_step)

    def _forget_what_comes_again(self, done: int) -> None:
        """Lines of steps behind the one that this run goes on from: of an earlier attempt, or after its checkpoint."""
        if not self.path.is_file():
            return
        kept = b"".join(line for line in self.path.read_bytes().splitlines(keepends=True) if _step_of(line) <= done)
        if kept:
            write_atomically(self.path, lambda file: file.write(kept))
        else:
            self.path.unlink()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if not self._uids:
            self._kept = [
                (buffer, buffer.clone())
                for module in pl_module.modules()
                if module.training
                for buffer in module.buffers(recurse=False)
            ]
        self._uids += _names(batch)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        uids, kept = self._uids, self._kept
        self._uids, self._kept = [], []
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:  # a batch of texts alone beside a frozen language model
            return
        total = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        some = [n for n in self._norms if n > 0]
        usual = statistics.median(some) if some else 0.0
        if not math.isfinite(norm):
            if trainer.precision == "16-mixed":  # how its scaler finds the scale: it leaves the step out itself
                _put_back(kept)
                return
            why = "the gradients hold what is no number"
        elif self.spike is not None and len(some) >= ENOUGH and norm > self.spike * usual:
            why = f"the gradients are {norm / usual:.0f} times as large as usual (trainer.spike={self.spike:g})"
        else:
            self._norms = [*self._norms[1 - WINDOW :], norm]
            return
        for parameter in parameters:  # an optimiser leaves alone what has no gradient
            parameter.grad = None
        _put_back(kept)
        self._skip(trainer, why, norm, usual, uids)

    def _skip(self, trainer: Trainer, why: str, norm: float, usual: float, uids: list[str]) -> None:
        self.skipped += 1
        step, uids = trainer.global_step + 1, _of_all(uids)
        said = f"step {step} left out ({self.skipped} so far): {why}; its samples: {first_few(uids) or 'not known'}"
        if trainer.is_global_zero:
            log.warning(said)
            line = {"time": time.time(), "step": step, "why": why, "norm": norm if math.isfinite(norm) else None}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"usual": usual, "uids": uids}) + "\n")
        if self.skipped > self.most:
            raise UserError(
                f"{said}. More than trainer.max_skipped={self.most} steps of this stage were left out, all of them in "
                f"{self.path}; the last checkpoint holds sound weights. Look at these samples, use lower rates "
                "(stage.trainable) or trainer.precision=32-true, or raise trainer.max_skipped: the same command then "
                "continues"
            )


def _step_of(line: bytes) -> float:
    """The step of a line, infinite of one that a kill or a power cut left in pieces."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, LookupError, TypeError):
        return math.inf


def _of_all(uids: list[str]) -> list[str]:
    """The names of all processes, each of which must ask: gradients are averaged, so whose samples spoilt them cannot
    be told from them."""
    if not (dist.is_available() and dist.is_initialized()):
        return uids
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, uids)
    return [uid for each in every for uid in each]


def _put_back(kept: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Buffers as they were before the step."""
    for buffer, before in kept:
        buffer.copy_(before)


def _names(batch: Any) -> list[str]:
    """The names of a batch's samples: clips by their uid, texts by their key."""
    found = [uid for uid in getattr(batch, "uids", None) or [] if uid]
    return found or [str(row["key"]) for row in getattr(batch, "rows", None) or [] if "key" in row]
