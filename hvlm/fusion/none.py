"""No fusion with the text before the language model."""

from __future__ import annotations

from torch import Tensor

from hvlm.contracts import Fusion
from hvlm.types import Fused, Tokens


class NoFusion(Fusion):
    """(Tokens, embedded text, what of it may be known) -> Tokens, unchanged."""

    def forward(self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...] = ()) -> Fused:
        return Fused(tokens)
