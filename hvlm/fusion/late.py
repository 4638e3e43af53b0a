"""Late interaction, as in FILIP: how well each token's best word matches it, and each word's best token.

No content passes from one side to the other, only likeness, in several learned spaces.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.config.ranges import PositiveInt
from hvlm.fusion._base import FusingRoom
from hvlm.fusion._cross import FeedForward, Gate
from hvlm.fusion._pool import Pool
from hvlm.types import Tokens


class Late(FusingRoom):
    """spaces: in so many spaces, of ``width`` channels each, are cosines taken. The rest: see ``FusingRoom``."""

    def __init__(
        self,
        *,
        spaces: PositiveInt = 8,
        width: PositiveInt = 32,
        **rest: Any,
    ):
        super().__init__(**rest)
        dim, hidden, dropout, gate = self.size.dim, self.size.hidden, self.size.dropout, self.size.gate
        self.spaces = spaces
        self.norm_v, self.norm_t = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.of_v, self.of_t = nn.Linear(dim, spaces * width), nn.Linear(dim, spaces * width)
        self.mlp_v, self.gate_v = FeedForward(spaces, hidden, dim, dropout), Gate(gate)
        if self.writes_text:
            self.mlp_t, self.gate_t = FeedForward(spaces, hidden, dim, dropout), Gate(gate)
        self.whole = FeedForward(2 * spaces, hidden, dim, dropout)
        self.mean = Pool(spaces, "mean")

    def fuse(
        self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        v, t = self.norm_v(tokens.x_BSD), self.norm_t(text_KPD)
        self.watch(v, t)
        v, t = (
            F.normalize(project(x).unflatten(-1, (self.spaces, -1)), dim=-1).transpose(1, 2)
            for project, x in ((self.of_v, v), (self.of_t, t))
        )
        alike_KHVP = v @ t.mT
        best_KVH = highest(alike_KHVP, prompt_KP[:, None, None], -1).transpose(1, 2)
        best_KPH = highest(alike_KHVP, tokens.mask_BS[:, None, :, None], -2).transpose(1, 2)
        pooled = self.whole(torch.cat([self.mean(best_KVH, tokens.mask_BS), self.mean(best_KPH, prompt_KP)], -1))
        visual, text = self.gate_v(tokens.x_BSD, self.mlp_v(best_KVH)), text_KPD
        if self.writes_text:
            text = self.gate_t(text, self.mlp_t(best_KPH))
        return visual, text, pooled


def highest(x: Tensor, there: Tensor, dim: int) -> Tensor:
    """Along ``dim`` of what is there; 0 where nothing is."""
    found = x.masked_fill(~there, -2).amax(dim)
    return found.masked_fill(found == -2, 0)
