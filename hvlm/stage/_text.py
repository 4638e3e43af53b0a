"""Next-token prediction, shared by alignment and instruction tuning."""

from __future__ import annotations

from typing import Any

from hvlm.config.ranges import NonNegativeFloat
from hvlm.stage._base import Losses, Stage
from hvlm.types import Batch


class TextStage(Stage):
    """Cross-entropy of the text given the video, mean over the scored tokens of the whole batch.

    coarse_weight: that many times the cross-entropy given the foveated connector's coarse tokens is added (fVLM's
        auxiliary loss, 0 in its releases). It costs a second pass through the encoder and the language model.
    """

    words = True

    def __init__(self, *, coarse_weight: NonNegativeFloat = 0.0, **stage: Any):
        super().__init__(**stage)
        if coarse_weight and "coarse" not in self.model.connector.modes:
            raise ValueError(f"stage.coarse_weight={coarse_weight:g}: only connector=foveated has coarse tokens; use 0")
        self.coarse_weight = coarse_weight

    def units(self, batch: Batch) -> dict[str, float]:
        return {"text": self.model.head.units(batch)}

    def losses(self, batch: Batch) -> Losses:
        head = self.model.head
        total, count, extras = head.loss(self.model.output(batch), batch)
        if self.coarse_weight:
            with self.model.connector.using("coarse"):
                coarse, *_ = head.loss(self.model.output(batch), batch)
            total, extras["coarse_loss"] = total + self.coarse_weight * coarse, coarse
        return Losses.of("text", total, count, extras)
