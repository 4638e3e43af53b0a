"""One stream of visual tokens and words: self-attention over both, as in a plain vision-and-language transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hvlm.config.ranges import PositiveInt
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
        layers: PositiveInt = 1,
        **rest: Any,
    ):
        super().__init__(**rest)
        self.joint = Joint(self.size.dim)
        self.layers = nn.ModuleList(Block(*self.size) for _ in range(layers))
        self.mean = Pool(self.size.dim, "mean")

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
