"""One stream of visual tokens and words: self-attention over both, as in a plain vision-and-language transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvlm.config.ranges import AnyFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability
from hvlm.fusion._base import FusingRoom
from hvlm.fusion._cross import Block
from hvlm.fusion._joint import Joint
from hvlm.fusion._pool import Pool
from hvlm.types import Tokens


class SingleStream(FusingRoom):
    """layers: over tokens and words together. The rest: see ``FusingRoom``."""

    spreads = False

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        layers: PositiveInt = 1,
        text_layers: NonNegativeInt = 1,
        mlp_ratio: PositiveFloat = 1.0,
        gate: AnyFloat = 1.0,
        dropout: Probability = 0.0,
        write_text: bool = False,
    ):
        super().__init__(
            dim=dim, num_heads=num_heads, text_layers=text_layers, mlp_ratio=mlp_ratio, gate=gate, dropout=dropout,
            write_text=write_text,
        )  # fmt: skip
        self.joint = Joint(dim)
        self.layers = nn.ModuleList(Block(dim, num_heads, mlp_ratio, dropout, gate) for _ in range(layers))
        self.mean = Pool(dim, "mean")

    def fuse(
        self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        v, t = self.tapped(tokens.x_BSD, text_KPD)
        self.watch(v, t)
        visual = v.shape[1]
        x, mask = self.joint(tokens._replace(x_BSD=v), t, prompt_KP)
        added = x - torch.cat([v, t], 1)
        for layer in self.layers:
            x = layer(x, mask)
        x = x - added  # what says which side a state is of stays in here
        return x[:, :visual], x[:, visual:], self.mean(x, mask)
