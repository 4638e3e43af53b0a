"""What all fusing rooms share: the text's own layers, the state of both that reaches every token, what is logged."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.config.ranges import AnyFloat, NonNegativeInt, PositiveFloat, Probability
from hvlm.contracts import Fusion
from hvlm.fusion._cross import Block, Gate
from hvlm.types import Fused, Tokens


class TextLayers(nn.Module):
    """Embedded words that hear of each other, both ways: what they are fused with is more than a bag of them."""

    def __init__(self, dim: int, num_heads: int, layers: int, mlp_ratio: float, dropout: Probability):
        super().__init__()
        self.layers = nn.ModuleList(Block(dim, num_heads, mlp_ratio, dropout) for _ in range(layers))

    def forward(self, text_KPD: Tensor, prompt_KP: Tensor) -> Tensor:
        if not self.layers:
            return text_KPD
        place = (prompt_KP.cumsum(1) - 1).clamp(min=0)
        size = text_KPD.detach().float().square().mean(-1, keepdim=True).sqrt().to(text_KPD.dtype)
        x = text_KPD + size * sinusoids(place, text_KPD.shape[-1]).to(text_KPD.dtype)
        for layer in self.layers:
            x = layer(x, prompt_KP)
        return x


def sinusoids(place: Tensor, dim: int) -> Tensor:
    """Sines and cosines of places at wavelengths from 2π to 1000 · 2π: float32 [..., dim]."""
    rates = torch.exp(torch.arange(0, dim, 2, device=place.device) * (-math.log(1000.0) / dim))
    angles = place.unsqueeze(-1) * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., :dim]


class Size(NamedTuple):
    """What all layers of a room share, in the order in which they take it; see ``FusingRoom``."""

    dim: int
    num_heads: int
    mlp_ratio: float
    dropout: float
    gate: float

    @property
    def hidden(self) -> int:
        """Width of hidden layers."""
        return max(1, round(self.mlp_ratio * self.dim))


class FusingRoom(Fusion):
    """Visual tokens and text that learn of each other; a variant says how (``fuse``).

    text_layers: bidirectional transformer layers over the text before it is fused. mlp_ratio: width of hidden layers,
    in widths of the states. gate: where the gates start that say how much a side takes from the other; 0 begins as no
    fusion. dropout: in training. write_text: the language model reads the text's fused states in place of its
    embeddings (stages that learn to write the question, too, cannot have that).
    """

    reads_text = True
    spreads: bool = True  # the state of both reaches every visual token

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        text_layers: NonNegativeInt = 1,
        mlp_ratio: PositiveFloat = 1.0,
        gate: AnyFloat = 1.0,
        dropout: Probability = 0.0,
        write_text: bool = False,
    ):
        super().__init__()
        self.writes_text = write_text
        self.size = Size(dim, num_heads, mlp_ratio, dropout, gate)
        self.text = TextLayers(dim, num_heads, text_layers, mlp_ratio, dropout)
        if self.spreads:
            self.spread_norm, self.spread, self.spread_gate = nn.LayerNorm(dim), nn.Linear(dim, dim), Gate(gate)

    @abstractmethod
    def fuse(
        self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(visual states [K, V, dim], text states [K, P, dim], one state of both [K, dim]); P is at least 1."""

    def forward(self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...] = ()) -> Fused:
        words = text_KPD.shape[1]
        if not words:  # no row has any: a place for padding, so that there is something to be masked
            text_KPD, prompt_KP = F.pad(text_KPD, (0, 0, 0, 1)), F.pad(prompt_KP, (0, 1))
        text = self.text(text_KPD.masked_fill(~prompt_KP.unsqueeze(-1), 0), prompt_KP)
        text = text.masked_fill(~prompt_KP.unsqueeze(-1), 0)
        visual, text, pooled = self.fuse(tokens, text, prompt_KP, layers)
        if self.spreads:
            visual = self.spread_gate(visual, self.spread(self.spread_norm(pooled)).unsqueeze(1))
        if self.monitor:
            for path, module in self.named_modules():
                if isinstance(module, Gate) and not path.startswith("text."):
                    self.metrics[path.replace(".", "_")] = module.gate.detach().mean()
        visual = torch.where(tokens.mask_BS.unsqueeze(-1), visual.to(tokens.x_BSD.dtype), tokens.x_BSD)
        text = text.masked_fill(~prompt_KP.unsqueeze(-1), 0)[:, :words]
        return Fused(tokens._replace(x_BSD=visual), text, pooled)

    def tapped(self, visual: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides as they are, for ``watch``: with a gradient also where nothing before them learns."""
        if not (self.monitor and torch.is_grad_enabled()):
            return visual, text
        visual, text = (x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in (visual, text))
        return visual, text

    def watch(self, visual: Tensor, text: Tensor) -> None:
        """While ``monitor`` is set, the norms of the loss's gradient at what either side brings into the fusion, in the
        backward pass: a side whose norm stays near 0 is not listened to."""
        if not (self.monitor and torch.is_grad_enabled()):
            return
        for name, x in (("vision", visual), ("text", text)):
            if x.requires_grad:
                x.register_hook(lambda g, name=name: self._note(name, g))

    def _note(self, name: str, gradient: Tensor) -> None:
        self.metrics[f"gradient_{name}"] = gradient.detach().float().norm()
