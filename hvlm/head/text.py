"""Text out: the language model's own output layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.contracts import Head
from hvlm.data.views import Questions
from hvlm.types import Batch, Sequence, Targets


class TextHead(Head):
    """Logits of the tokens that are scored, and their cross-entropy.

    logits: the language model's output layer, states [..., dim] -> [..., vocabulary]. It is a function and not a module
        of the head, for its weights are the language model's (tied to the embeddings in SmolLM2). It sees scored places
        alone: with 49,152 words the logits of a whole batch would be the largest tensor of a step.
    """

    view = Questions()
    writes = True
    measures = ("token_accuracy",)

    def __init__(self, *, logits: Callable[[Tensor], Tensor]):
        super().__init__()
        self._logits = logits

    def logits(self, h: Tensor) -> Tensor:
        """States [..., dim] -> float32 logits [..., vocabulary]."""
        return self._logits(h).float()

    def forward(self, hidden_KLD: Tensor, sequence: Sequence) -> Targets:
        """Logits for every token that is scored, from the state one place before it."""
        batch, place_KS = sequence.batch, sequence.text_place_KS
        row_M, place_M = sequence.scored()
        logits = self.logits(hidden_KLD[row_M, place_KS[row_M, place_M] - 1])
        return Targets(logits, batch.input_ids_KS[row_M, place_M], row_M, place_M)

    def units(self, batch: Batch) -> int:
        place_KS = torch.arange(batch.input_ids_KS.shape[1], device=batch.input_ids_KS.device)
        follows = (place_KS == batch.visual_at_K.unsqueeze(1)) | (place_KS == 0)
        return int((batch.loss_mask_KS & batch.attention_mask_KS & ~follows).sum())

    def loss(self, output: Targets, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropy over the scored tokens, their number, and how many are the likeliest."""
        logits, ids, *_ = output
        total = F.cross_entropy(logits, ids, reduction="sum")
        return total, ids.new_tensor(len(ids)), {"token_accuracy": (logits.argmax(-1) == ids).sum().float()}
