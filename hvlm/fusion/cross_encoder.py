"""A cross-encoder, as in ALBEF: words attend to words, then to the visual tokens, which learn of the state of both."""

from __future__ import annotations

from torch import Tensor, nn

from hvlm.config.ranges import AnyFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability
from hvlm.fusion._base import FusingRoom
from hvlm.fusion._cross import Block
from hvlm.fusion._pool import Pool, Pooling
from hvlm.types import Tokens


class CrossEncoder(FusingRoom):
    """layers: of the words, each with attention to the video. pooling: of the words. The rest: see ``FusingRoom``."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        layers: PositiveInt = 1,
        pooling: Pooling = "mean",
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
        self.layers = nn.ModuleList(Block(dim, num_heads, mlp_ratio, dropout, gate, True) for _ in range(layers))
        self.pool = Pool(dim, pooling)

    def fuse(
        self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        visual, text = self.tapped(tokens.x_BSD, text_KPD)
        self.watch(visual, text)
        for layer in self.layers:
            text = layer(text, prompt_KP, visual, tokens.mask_BS)
        return visual, text, self.pool(text, prompt_KP)
