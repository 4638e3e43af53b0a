"""No fusion with the text before the language model."""

from __future__ import annotations

from torch import Tensor

from hvlm.contracts import Fusion
from hvlm.types import Tokens


class NoFusion(Fusion):
    """(Tokens, embedded text, what of it may be known) -> Tokens, unchanged."""

    def forward(self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor) -> Tokens:
        return tokens
