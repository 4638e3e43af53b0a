"""What every training stage shares: which parts train, how fast, on what schedule, and how a loss is averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import lightning
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import SumMetric

from hvlm import contracts
from hvlm.config.ranges import Fraction, NonNegativeFloat, PositiveInt, Probability
from hvlm.contracts.room import MovesByStep
from hvlm.data.views import View
from hvlm.model import VLM, Encoder, named_parts, parts_of_modules
from hvlm.stage._sharding import shard
from hvlm.types import Batch

# What stays as it is beside an adapter that trains alone.
ROOMS_BESIDE = frozenset({"vision", "merger", "connector", "attention", "fusion", "language"})
SCHEDULES = ("constant", "cosine", "converging", "trapezoid")


class Mean(NamedTuple):
    """A mean over units, as its two sums, so that it can be taken over several batches and processes."""

    total: Tensor
    count: Tensor


class Losses(NamedTuple):
    """What a batch gives. The loss is the sum of the means of ``terms``, each over its own units; ``measures`` are
    logged only."""

    terms: dict[str, Mean]
    measures: dict[str, Mean]

    @classmethod
    def of(cls, name: str, total: Tensor, count: Tensor, further: Mapping[str, Tensor]) -> Losses:
        """One term, and measures over the same units: what a head's ``loss`` gives."""
        return cls({name: Mean(total, count)}, {measure: Mean(value, count) for measure, value in further.items()})


class Stage(contracts.Stage, lightning.LightningModule):
    """A shared backbone with one objective.

    trainable: {part: peak learning rate}; a part that is not named, or has rate 0, is frozen; null is the connector's
        rate (for the rooms between encoder and language model, which may have no weights).
    schedule: ``constant``; ``cosine`` down to ``floor`` times the peak; ``converging`` (fVLM): after the warm-up every
        part moves on a cosine from its own rate to the common ``converge_to``, so that all meet there.
        ``trapezoid`` (DuoAttention): a linear rise over the first ``warmup`` of the steps and a linear fall over the
        last, never below ``floor`` times the peak.
    warmup: share of ``steps`` with a linear rise from 0.
    batch_size: clips of one optimiser step, over all its parts (``trainer.accumulate``) and all processes.
    rows_per_clip: text rows that share a clip's vision pass.
    interleave: share of the optimiser steps whose batch is text-only chats; None: 0.14 where the data have such chats,
        else none.
    """

    view: ClassVar[View | None]
    adapts: ClassVar[bool] = True  # whether it trains the adapter of a model that has one
    scored: ClassVar[str] = "answer"
    words: ClassVar[bool] = False  # whether what it teaches is to write

    def __init__(
        self,
        *,
        model: VLM,
        steps: PositiveInt,
        batch_size: PositiveInt,
        trainable: dict[str, NonNegativeFloat | None],
        rows_per_clip: PositiveInt = 1,
        interleave: Probability | None = 0.0,
        schedule: Literal["constant", "cosine", "converging", "trapezoid"] = "cosine",
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
        trainable = self._with_adapter(model, trainable)
        rates = {part: trainable.get("connector", 0) if rate is None else rate for part, rate in trainable.items()}
        self.trainable = {part: rate for part, rate in rates.items() if rate}
        self._named = tuple(part for part, rate in trainable.items() if rate is not None)
        self.metadata: dict[str, Any] = {}
        self.frozen: frozenset[str] = frozenset()
        self._is_sharded = False
        self._parts_done = 0  # of the optimiser step that is under way
        self._step: dict[str, Tensor] = {}  # {name: (total, count)} of its parts so far
        self._validated: dict[str, SumMetric] = {}  # over the validation batches so far

    def _with_adapter(self, model: VLM, trainable: Mapping[str, float | None]) -> dict[str, float | None]:
        """With the rate of an adapter that has one, and, where it trains alone, without those of the rooms that it
        adapts or that stand beside it."""
        adapter = None if isinstance(model, Encoder) else model.adapter
        if adapter is None or adapter.rate is None or not adapter.names or not self.adapts:
            return dict(trainable)
        if model.adapter.merged is not None:
            raise ValueError("adapter.merge=true: a set that is in the weights cannot train; use adapter.merge=false")
        rates = {part: rate for part, rate in trainable.items() if not (adapter.alone and part in ROOMS_BESIDE)}
        given = trainable.get("adapter")
        return {**rates, "adapter": adapter.rate if given is None else given}

    # -- parts ---------------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, list[tuple[str, torch.nn.Parameter]]]:
        """Parameters by the names that ``trainable`` may use. Stages with heads of their own add them here."""
        return named_parts(self.model)

    def freeze(self) -> None:
        """Let exactly the parts under ``trainable`` learn; the others keep their weights and their running statistics.
        Raises ValueError for a part that does not exist, and for a head that cannot learn what the stage teaches."""
        head = None if isinstance(self.model, Encoder) else self.model.head
        if self.words and head is not None and head.view is not None and not head.writes:
            word = type(self).__module__.rpartition(".")[2]
            raise ValueError(f"stage={word}: it teaches to write, and head={head.task} writes no text; use stage=task")
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
        for name, room in self.model.named_children():
            if name in self.trainable and isinstance(room, contracts.Module) and room.fixed:
                raise ValueError(
                    f"{room.fixed}: these weights cannot train; freeze them with 'stage.trainable={{{name}:0}}'"
                )
        for name, members in parts.items():
            for _, parameter in members:
                parameter.requires_grad_(name in self.trainable)
        self.frozen = frozenset({*parts, *self._named} - set(self.trainable))
        self.train(self.training)

    def train(self, mode: bool = True) -> Stage:
        """Frozen parts stay in evaluation mode: nothing is dropped there, and no buffer moves."""
        super().train(mode)
        for _, module, part in parts_of_modules(self.model):
            if part in self.frozen:
                module.training = False
        return self

    def configure_model(self) -> None:
        """Divide the weights among the processes where the trainer's strategy says so (``trainer.strategy=fsdp``)."""
        if self.device_mesh is not None and not self._is_sharded:
            shard(self, self.model, ("losses",), self.device_mesh["data_parallel"])
            self._is_sharded = True

    # -- optimiser -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        groups, factors = [], []
        spared = self._not_decayed()
        for part, peak in self.trainable.items():
            members = [parameter for _, parameter in self.parts()[part]]
            decayed = [p for p in members if id(p) not in spared]
            rest = [p for p in members if id(p) in spared]
            for parameters, decay in ((decayed, self.weight_decay), (rest, 0.0)):
                if parameters:
                    groups.append({"params": parameters, "lr": peak, "weight_decay": decay, "name": part})
                    factors.append(self._factor(peak))
        optimizer = torch.optim.AdamW(groups, fused=not self._scales_gradients())
        optimizer.register_load_state_dict_post_hook(lie_as_parameters_do)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _not_decayed(self) -> set[int]:
        """Ids of the parameters that no weight decay pulls to 0: norms and biases, and what a module names itself in
        ``no_weight_decay`` (queries, and decay rates, for which 0 is no neutral value)."""
        return {
            id(parameter)
            for module in self.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.ndim < 2 or name in getattr(module, "no_weight_decay", ())
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients, or each number of them (``value``). Lightning refuses to for a fused
        optimiser, because that one would unscale float16 gradients itself; in float32 and bfloat16 there is nothing to
        unscale, and fused is faster."""
        if self._scales_gradients():
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            parameters = [p for g in optimizer.param_groups for p in g["params"]]
            if gradient_clip_algorithm == "value":
                torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            else:
                torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def _scales_gradients(self) -> bool:
        return self._trainer is not None and self.trainer.precision == "16-mixed"

    def _factor(self, peak: float) -> Callable[[int], float]:
        """Learning rate at a step as a multiple of the peak."""
        if self.schedule == "trapezoid":
            ramp = max(1.0, self.warmup * self.steps)
            return lambda step: min(1.0, *(max(left / ramp, self.floor) for left in (step + 1, self.steps - step)))
        warm = round(self.warmup * self.steps)
        end = {"constant": 1.0, "cosine": self.floor, "converging": (self.converge_to or 0.0) / peak}[self.schedule]

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            progress = min(1.0, (step - warm) / max(1, self.steps - warm))
            return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress))

        return factor

    # -- one step ------------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> Losses:
        """The terms of the loss and what else is measured, of one batch."""
        raise NotImplementedError

    def units(self, batch: Batch) -> dict[str, float]:
        """{term: number of its units in the batch}, as ``losses`` counts them, without a pass through the model.

        Only what is divided by all units of an optimiser step is the same however the step is cut into parts; with
        ``trainer.accumulate`` above 1 they are therefore counted before its first part is learned from.
        """
        raise NotImplementedError

    def training_step(self, batch: Batch, index: int) -> Tensor:
        connector = None if isinstance(self.model, Encoder) else self.model.connector
        if connector is not None:
            logged = self.trainer.global_step % self.trainer.log_every_n_steps == 0
            connector.monitor = self.model.fusion.monitor = logged
        terms, measures = self.losses(batch)
        parts = self.trainer.accumulate_grad_batches
        units = self._units_of_step({name: term.count for name, term in terms.items()} if parts == 1 else None, batch)
        loss = sum(term.total / units[name] for name, term in terms.items())
        self._log_step(terms, measures, units, parts)
        if connector is not None and connector.monitor:
            for name, value in connector.metrics.items():
                self.log(f"gaze/{name}", value)
            connector.metrics.clear()
        return loss * parts  # the trainer divides by it

    def on_after_backward(self) -> None:
        """Log what the fusion says of itself, of which the norms of its gradients are known now."""
        fusion = None if isinstance(self.model, Encoder) else self.model.fusion
        if fusion is not None and fusion.monitor:
            for name, value in fusion.metrics.items():
                self.log(f"fusion/{name}", value)
            fusion.metrics.clear()
            fusion.monitor = False

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """After the callbacks', of which one may have taken back what this step would move."""
        for module in self._moving:
            if module.training:
                module.end_step()

    def _units_of_step(self, counts: dict[str, Tensor] | None, batch: Batch) -> dict[str, Tensor]:
        """{term: units of the whole optimiser step, per process}: gradients are averaged over processes, and are then
        those of one process. ``counts``: of this batch, where it is the whole step."""
        if counts is None:
            if batch.step_units is None:
                raise RuntimeError("trainer.accumulate: the reader did not count the units of the step's parts")
            counts = {name: torch.tensor(count, device=self.device) for name, count in batch.step_units.items()}
        summed = self._sum(torch.stack([count.float() for count in counts.values()]))
        return dict(zip(counts, (summed.clamp(min=1.0) / self._world()).unbind(), strict=True))

    def _log_step(
        self, terms: dict[str, Mean], measures: dict[str, Mean], units: dict[str, Tensor], parts: int
    ) -> None:
        """Log the means over the whole step when its last part is there."""
        means = {f"term {name}": mean for name, mean in terms.items()} | measures
        for name, mean in means.items():
            pair = torch.stack([mean.total.detach().float(), mean.count.detach().float()])
            self._step[name] = self._step[name] + pair if name in self._step else pair
        self._parts_done += 1
        if self._parts_done < parts:
            return
        names, pairs = list(self._step), self._sum(torch.stack(list(self._step.values())))
        self._parts_done, self._step = 0, {}
        totals = dict(zip(names, pairs[:, 0].unbind(), strict=True))
        world = self._world()
        loss = sum(totals.pop(f"term {name}") / (units[name] * world) for name in terms)
        self.log("train/loss", loss, prog_bar=True)
        counts = dict(zip(names, pairs[:, 1].unbind(), strict=True))
        for name, total in totals.items():
            self.log(f"train/{name}", total / counts[name].clamp(min=1.0))

    def validation_step(self, batch: Batch, index: int) -> None:
        terms, measures = self.losses(batch)
        means = {f"term {name}": mean for name, mean in terms.items()} | measures
        for name, value in ((f"{n}/{i}", mean[i]) for n, mean in means.items() for i in (0, 1)):
            if name not in self._validated:  # "disable": a loss that is not a number must show
                self._validated[name] = SumMetric(nan_strategy="disable").to(value.device)
            self._validated[name].update(value.detach().float())

    def on_train_start(self) -> None:
        self._parts_done, self._step = 0, {}
        self._moving = [module for module in self.modules() if isinstance(module, MovesByStep)]

    def on_validation_epoch_start(self) -> None:
        self._validated = {}

    def on_validation_epoch_end(self) -> None:
        """Sums over all batches and processes, divided by their number of units. (Lightning's own weighted mean takes
        whole numbers as weights, and over several processes rounds the average weight down.)"""
        sums = {name: metric.compute() for name, metric in self._validated.items()}
        names = dict.fromkeys(name.rpartition("/")[0] for name in sums)
        means = {name: sums[f"{name}/0"] / sums[f"{name}/1"].clamp(min=1.0) for name in names}
        if means:
            loss = sum(mean for name, mean in means.items() if name.startswith("term "))
            self.log("val/loss", loss, sync_dist=True, prog_bar=True)
        for name, mean in means.items():
            if not name.startswith("term "):
                self.log(f"val/{name}", mean, sync_dist=True)

    @staticmethod
    def _world() -> int:
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    @classmethod
    def _sum(cls, value: Tensor) -> Tensor:
        """Over all processes."""
        if cls._world() > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """``card``: what rebuilds the model from this file alone (resolved configuration, tokenizer, stage)."""
        checkpoint["hvlm"] = self.metadata


@torch.no_grad()
def lie_as_parameters_do(optimizer: torch.optim.Optimizer) -> None:
    """Lay the states that an optimiser was given out in memory as the parameters are.

    Fused AdamW goes through both as they lie. A convolution's weights may lie channels last in one process and, where
    they are divided among several, do not: without this, each would go on with the momentum of others.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and _strides(value) != _strides(parameter):
                state[name] = torch.empty_like(parameter).copy_(value)


def _strides(tensor: Any) -> tuple[int, ...]:
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).stride()
