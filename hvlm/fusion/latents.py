"""Latents, as in Perceiver: a few learned states read both sides, and each side reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hvlm.config.ranges import PositiveInt
from hvlm.fusion._base import FusingRoom
from hvlm.fusion._cross import Block, CrossAttention, Gate
from hvlm.fusion._joint import Joint
from hvlm.types import Tokens


class Latents(FusingRoom):
    """latents: how many. layers: in each the latents attend to each other and to both sides. The rest: see
    ``FusingRoom``."""

    spreads = False
    no_weight_decay = ("latents",)

    def __init__(
        self,
        *,
        latents: PositiveInt = 16,
        layers: PositiveInt = 1,
        **rest: Any,
    ):
        super().__init__(**rest)
        dim, num_heads, _, dropout, gate = self.size
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.joint = Joint(dim)
        self.layers = nn.ModuleList(Block(*self.size, crosses=True) for _ in range(layers))
        self.norm, self.norm_v = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.read_v, self.gate_v = CrossAttention(dim, num_heads, dropout), Gate(gate)
        if self.writes_text:
            self.norm_t = nn.LayerNorm(dim)
            self.read_t, self.gate_t = CrossAttention(dim, num_heads, dropout), Gate(gate)

    def fuse(
        self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        visual, text = self.tapped(tokens.x_BSD, text_KPD)
        self.watch(visual, text)
        both, mask = self.joint(tokens._replace(x_BSD=visual), text, prompt_KP)
        z = self.latents.expand(len(both), -1, -1).to(both.dtype)
        there = mask.new_ones(z.shape[:2])
        for layer in self.layers:
            z = layer(z, there, both, mask)
        known = self.norm(z)
        visual = self.gate_v(visual, self.read_v(self.norm_v(visual), known, there))
        if self.writes_text:
            text = self.gate_t(text, self.read_t(self.norm_t(text), known, there))
        return visual, text, z.mean(1)
