"""What every training stage shares: which parts train, how fast, on what schedule, and how a loss is averaged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import lightning
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import SumMetric

from hvlm import contracts
from hvlm.config.ranges import Fraction, NonNegativeFloat, PositiveInt, Probability
from hvlm.data.views import View
from hvlm.model import VLM, Encoder, named_parts
from hvlm.types import Batch

SCHEDULES = ("constant", "cosine", "converging")


class Stage(contracts.Stage, lightning.LightningModule):
    """A shared backbone with one objective.

    trainable: {part: peak learning rate}; a part that is not named, or has rate 0, is frozen; null is the connector's
        rate (for the rooms between encoder and language model, which may have no weights).
    schedule: ``constant``; ``cosine`` down to ``floor`` times the peak; ``converging`` (fVLM): after the warm-up every
        part moves on a cosine from its own rate to the common ``converge_to``, so that all meet there.
    warmup: share of ``steps`` with a linear rise from 0.
    batch_size: clips of one optimiser step over all processes.
    rows_per_clip: text rows that share a clip's vision pass.
    interleave: share of the batches that are text-only chats.
    """

    view: ClassVar[View | None]
    scored: ClassVar[str] = "answer"

    def __init__(
        self,
        *,
        model: VLM,
        steps: PositiveInt,
        batch_size: PositiveInt,
        trainable: dict[str, NonNegativeFloat | None],
        rows_per_clip: PositiveInt = 1,
        interleave: Probability = 0.0,
        schedule: Literal["constant", "cosine", "converging"] = "cosine",
        warmup: Fraction = 0.03,
        floor: Fraction = 0.1,
        converge_to: NonNegativeFloat | None = None,
        weight_decay: NonNegativeFloat = 0.01,
    ):
        super().__init__()
        if schedule not in SCHEDULES:
            raise ValueError(f"stage.schedule={schedule!r}: expected one of {', '.join(SCHEDULES)}")
        if (schedule == "converging") != (converge_to is not None):
            raise ValueError("stage.converge_to belongs to stage.schedule=converging: give both or neither")
        self.model = model
        self.steps, self.batch_size, self.rows_per_clip, self.interleave = steps, batch_size, rows_per_clip, interleave
        self.schedule, self.warmup, self.floor, self.converge_to = schedule, warmup, floor, converge_to
        self.weight_decay = weight_decay
        rates = {part: trainable.get("connector", 0) if rate is None else rate for part, rate in trainable.items()}
        self.trainable = {part: rate for part, rate in rates.items() if rate}
        self._named = tuple(part for part, rate in trainable.items() if rate is not None)
        self.metadata: dict[str, Any] = {}
        self._validated: dict[str, SumMetric] = {}  # over the validation batches so far

    # -- parts ---------------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, list[tuple[str, torch.nn.Parameter]]]:
        """Parameters by the names that ``trainable`` may use. Stages with heads of their own add them here."""
        return named_parts(self.model)

    def freeze(self) -> None:
        """Let exactly the parts under ``trainable`` learn. Raises ValueError for a part that does not exist."""
        parts = self.parts()
        self.trainable = {part: rate for part, rate in self.trainable.items() if part in parts or part in self._named}
        if unknown := set(self._named) - set(parts):
            raise ValueError(
                f"stage.trainable names {', '.join(sorted(unknown))}; the parts with weights are {', '.join(parts)}"
            )
        if not self.trainable:
            raise ValueError(
                f"stage.trainable freezes everything: give one of {', '.join(parts)} a learning rate above 0"
            )
        for name, members in parts.items():
            for _, parameter in members:
                parameter.requires_grad_(name in self.trainable)

    # -- optimiser -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        groups, factors = [], []
        for part, peak in self.trainable.items():
            members = self.parts()[part]
            # Norms, biases and queries (anything with fewer than two real dimensions) are not decayed.
            matrices = [p for _, p in members if p.squeeze().ndim >= 2]
            vectors = [p for _, p in members if p.squeeze().ndim < 2]
            for parameters, decay in ((matrices, self.weight_decay), (vectors, 0.0)):
                if parameters:
                    groups.append({"params": parameters, "lr": peak, "weight_decay": decay, "name": part})
                    factors.append(self._factor(peak))
        optimizer = torch.optim.AdamW(groups, fused=not self._scales_gradients())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients. Lightning refuses to for a fused optimiser, because that one would unscale
        float16 gradients itself; in float32 and bfloat16 there is nothing to unscale, and fused is faster."""
        if self._scales_gradients():
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], gradient_clip_val)

    def _scales_gradients(self) -> bool:
        return self._trainer is not None and self.trainer.precision == "16-mixed"

    def _factor(self, peak: float) -> Callable[[int], float]:
        """Learning rate at a step as a multiple of the peak."""
        warm = round(self.warmup * self.steps)
        end = {"constant": 1.0, "cosine": self.floor, "converging": (self.converge_to or 0.0) / peak}[self.schedule]

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            progress = min(1.0, (step - warm) / max(1, self.steps - warm))
            return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress))

        return factor

    # -- one step ------------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(sum of the loss over its units, number of units, further sums to be divided by the same number)."""
        raise NotImplementedError

    def training_step(self, batch: Batch, index: int) -> Tensor:
        connector = None if isinstance(self.model, Encoder) else self.model.connector
        if connector is not None:
            connector.monitor = self.trainer.global_step % self.trainer.log_every_n_steps == 0
        total, count, extras = self.losses(batch)
        # Every rank divides by the mean count per rank: gradients averaged over ranks are then those of one process.
        mean_count = self._reduce(count.float()).clamp(min=1.0)
        loss = total / mean_count
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        for name, value in extras.items():
            self.log(f"train/{name}", value.detach() / mean_count, sync_dist=True)
        if connector is not None and connector.monitor:
            for name, value in connector.metrics.items():
                self.log(f"gaze/{name}", value)
            connector.metrics.clear()
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        total, count, extras = self.losses(batch)
        for name, value in {"count": count, "loss": total, **extras}.items():
            if name not in self._validated:  # "disable": a loss that is not a number must show
                self._validated[name] = SumMetric(nan_strategy="disable").to(value.device)
            self._validated[name].update(value.detach().float())

    def on_validation_epoch_start(self) -> None:
        self._validated = {}

    def on_validation_epoch_end(self) -> None:
        """Sums over all batches and processes, divided by their number of units. (Lightning's own weighted mean takes
        whole numbers as weights, and over several processes rounds the average weight down.)"""
        sums = {name: metric.compute() for name, metric in self._validated.items()}
        size = sums.pop("count", torch.zeros(())).clamp(min=1.0)
        for name, value in sums.items():
            self.log(f"val/{name}", value / size, sync_dist=True, prog_bar=name == "loss")

    @staticmethod
    def _reduce(count: Tensor) -> Tensor:
        if not (dist.is_available() and dist.is_initialized()):
            return count
        count = count.clone()
        dist.all_reduce(count)
        return count / dist.get_world_size()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """``card``: what rebuilds the model from this file alone (resolved configuration, tokenizer, stage)."""
        checkpoint["hvlm"] = self.metadata
