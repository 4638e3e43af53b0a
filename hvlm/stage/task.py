"""Any head's own loss, or the weighted sum of several heads' on one backbone, which is frozen, adapted, or trained."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from hvlm.config.ranges import NonNegativeFloat
from hvlm.stage._base import Losses, Mean, Stage
from hvlm.types import Batch

LEARN = {"adapted": ("adapter", "head"), "frozen": ("head",)}


class Task(Stage):
    """What the head's view shows, learned with the head's loss.

    backbone: ``trained``: all parts of ``trainable``; ``adapted``: of these the adapter and the head alone; ``frozen``:
        the head alone.
    weights: {term: its weight in the sum}, one term for each head; None: 1 each.
    """

    def __init__(
        self,
        *,
        trainable: dict[str, NonNegativeFloat | None],
        backbone: Literal["trained", "adapted", "frozen"] = "trained",
        weights: dict[str, NonNegativeFloat] | None = None,
        **stage: Any,
    ):
        if backbone != "trained":  # null is the connector's rate, also where the connector itself is frozen
            rates = {part: trainable.get("connector", 0) if rate is None else rate for part, rate in trainable.items()}
            trainable = {part: rates[part] for part in LEARN[backbone] if part in rates}
        super().__init__(trainable=trainable, **stage)
        self._divisors: dict[str, Tensor] = {}
        self.backbone, self.weights = backbone, dict(weights or {})

    def freeze(self) -> None:
        """See ``Stage.freeze``. ValueError also where there is nothing to adapt, a weight is of no term, or there is
        nothing to learn."""
        if self.backbone == "adapted" and "adapter" not in self.parts():
            raise ValueError(
                "stage.backbone=adapted: there is no adapter to train; choose one with adapter=, or use "
                "stage.backbone=frozen"
            )
        if self.model.head.asked() is not self.model.head:
            raise ValueError("head.only: all of head.heads are trained; name one where a model is scored (eval.py)")
        terms = self.model.head.tasks
        if unknown := sorted(set(self.weights) - set(terms)):
            raise ValueError(f"stage.weights names {', '.join(unknown)}; the heads are {', '.join(terms)}")
        if not any(self.weights.get(name, 1.0) for name in terms):
            raise ValueError(f"stage.weights: all are 0, so nothing is learned; give one of {', '.join(terms)} more")
        if self.interleave != 0 and not self.model.head.writes:
            raise ValueError(
                f"stage.interleave={self.interleave or 'null'}: text-only chats hold nothing for "
                f"head={self.model.head.task}, which writes no text; use stage.interleave=0"
            )
        super().freeze()

    def units(self, batch: Batch) -> dict[str, float]:
        return self.model.head.units_of_terms(batch)

    def losses(self, batch: Batch) -> Losses:
        batch = self.model.head.further(batch, self.model.output)
        found = self.model.head.terms(self.model.output(batch), batch)
        terms = {name: Mean(self.weights.get(name, 1.0) * term.total, term.count) for name, term in found.items()}
        several = len(found) > 1
        measures = {
            (f"{name}/{measure}" if several else measure): Mean(value, term.count)
            for name, term in found.items()
            for measure, value in (term.further | ({"loss": term.total.detach()} if several else {})).items()
        }
        return Losses(terms, measures)

    def _units_of_step(self, counts: dict[str, Tensor] | None, batch: Batch) -> dict[str, Tensor]:
        """A head may divide by something else than the units of the step, which it is told once a step."""
        units = super()._units_of_step(counts, batch)
        if self._parts_done == 0:
            world, head = self._world(), self.model.head
            self._divisors = {name: head.divisor(name, count * world) / world for name, count in units.items()}
        return self._divisors
