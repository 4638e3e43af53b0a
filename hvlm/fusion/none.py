"""No fusion with the text before the language model."""

from __future__ import annotations

from torch import Tensor, nn

from hvlm.types import Tokens


class NoFusion(nn.Module):
    """(Tokens, embedded text, its mask) -> Tokens, unchanged."""

    def forward(self, tokens: Tokens, text_KSD: Tensor, text_mask_KS: Tensor) -> Tokens:
        return tokens
