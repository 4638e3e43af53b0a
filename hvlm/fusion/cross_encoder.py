"""A cross-encoder, as in ALBEF: words attend to words, then to the visual tokens, which learn of the state of both."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hvlm.config.ranges import PositiveInt
from hvlm.fusion._base import FusingRoom
from hvlm.fusion._cross import Block
from hvlm.fusion._pool import Pool, Pooling
from hvlm.types import Tokens


class CrossEncoder(FusingRoom):
    """layers: of the words, each with attention to the video. pooling: of the words. The rest: see ``FusingRoom``."""

    def __init__(
        self,
        *,
        layers: PositiveInt = 1,
        pooling: Pooling = "mean",
        **rest: Any,
    ):
        super().__init__(**rest)
        self.layers = nn.ModuleList(Block(*self.size, crosses=True) for _ in range(layers))
        self.pool = Pool(self.size.dim, pooling)

    def fuse(
        self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        visual, text = self.tapped(tokens.x_BSD, text_KPD)
        self.watch(visual, text)
        for layer in self.layers:
            text = layer(text, prompt_KP, visual, tokens.mask_BS)
        return visual, text, self.pool(text, prompt_KP)
