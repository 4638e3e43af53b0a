"""Text out: the language model's own output layer."""

from __future__ import annotations

from torch import Tensor, nn


class TextHead(nn.Module):
    """Hidden states at chosen positions -> vocabulary logits, float32.

    The output layer belongs to the language model (its weights are tied to the embeddings in SmolLM2), so it comes as
    an argument: ``head(h_MD, language) -> logits_MV``. Only positions that are scored are passed in; with 49,152 words
    the logits of a whole batch would be the largest tensor of a step.
    """

    def forward(self, h_MD: Tensor, language: nn.Module) -> Tensor:
        return language.logits(h_MD).float()
