"""Text out: the language model's own output layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hvlm.config.ranges import PositiveInt
from hvlm.contracts import Head
from hvlm.data.views import Questions
from hvlm.types import Batch, Sequence, Targets


class TextHead(Head):
    """The tokens that are scored, and their cross-entropy.

    logits: the language model's output layer, states [..., dim] -> [..., vocabulary]. It is a function and not a module
        of the head, for its weights are the language model's (tied to the embeddings in SmolLM2). It sees scored places
        alone: with 49,152 words the logits of a whole batch would be the largest tensor of a step.
    logits_mb: MB (2^20 bytes) of float32 logits that exist at a time. Where those of a batch are more, they are
        computed part after part, and again going back; null: all at once.
    """

    view = Questions()
    writes = True
    measures = ("token_accuracy",)

    def __init__(self, *, logits: Callable[[Tensor], Tensor], logits_mb: PositiveInt | None = 256):
        super().__init__()
        self._logits = logits
        self.at_once = None if logits_mb is None else logits_mb << 20

    def logits(self, h: Tensor) -> Tensor:
        """States [..., dim] -> float32 logits [..., vocabulary]."""
        return self._logits(h).float()

    def forward(self, hidden_KLD: Tensor, sequence: Sequence) -> Targets:
        """Every token that is scored, with the state one place before it."""
        batch, place_KS = sequence.batch, sequence.text_place_KS
        row_M, place_M = sequence.scored()
        states = hidden_KLD[row_M, place_KS[row_M, place_M] - 1]
        return Targets(states, batch.input_ids_KS[row_M, place_M], row_M, place_M, self.logits, self.at_once)

    def units(self, batch: Batch) -> int:
        place_KS = torch.arange(batch.input_ids_KS.shape[1], device=batch.input_ids_KS.device)
        follows = (place_KS == batch.visual_at_K.unsqueeze(1)) | (place_KS == 0)
        return int((batch.loss_mask_KS & batch.attention_mask_KS & ~follows).sum())

    def loss(self, output: Targets, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropy over the scored tokens, their number, and how many are the likeliest."""
        logp, likeliest = output.scored()
        count = output.ids_M.new_tensor(len(output.ids_M))
        return -logp.sum(), count, {"token_accuracy": likeliest.sum().float()}
