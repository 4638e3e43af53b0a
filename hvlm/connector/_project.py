"""From the encoder's width to the language model's: running standardisation and the projector that connectors share."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Standardise(nn.Module):
    """x -> (x − mean) / std per channel, with running statistics.

    Training normalises with the running statistics too (as constants), so that training and evaluation compute the
    same function, a padded token changes nothing, and a batch of one clip works. The first 1/momentum updates average
    all that was seen; later ones move exponentially. Under DDP the sums are reduced over the ranks.
    """

    mean: Tensor
    var: Tensor
    updates: Tensor

    def __init__(self, dim: int, momentum: float = 0.01, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [..., D], mask [...] (False: not counted); returns float32 of x's shape."""
        x = x.float()
        if self.training:
            self._update(x.detach(), mask)
        return (x - self.mean) * torch.rsqrt(self.var + self.eps)

    @torch.no_grad()
    def _update(self, x: Tensor, mask: Tensor) -> None:
        weight = mask.unsqueeze(-1).to(x.dtype)
        # Shifted by the running mean, so that the difference of sums of squares stays exact in float32.
        shifted = (x - self.mean) * weight
        axes = tuple(range(x.ndim - 1))
        sums = torch.cat([weight.sum().reshape(1), shifted.sum(axes), (shifted * shifted).sum(axes)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        count, first, second = sums[0], *sums[1:].chunk(2)
        if count < 1:
            return
        first, second = first / count, second / count
        self.updates += 1
        rate = torch.clamp(1.0 / self.updates, min=self.momentum)
        self.var += rate * ((second - first * first).clamp(min=0) - self.var)
        self.mean += rate * first


class Projector(nn.Module):
    """Visual features [..., dim] -> language width: v = scale · P(x), P one linear layer (fVLM, LLaVA) or an MLP.

    ``standardise=False`` leaves the features as they come, which is fVLM's published v = s·(W z + b), s = 0.14.
    ``readings`` names the kinds of features that share P but have running statistics of their own.
    """

    def __init__(
        self,
        dim: int,
        text_dim: int,
        kind: Literal["linear", "mlp"],
        scale: float,
        standardise: bool,
        readings: tuple[str, ...] = ("patches",),
    ):
        super().__init__()
        if kind not in ("linear", "mlp"):
            raise ValueError(f"connector.projector={kind!r}: expected linear or mlp")
        self.scale = scale
        self.standardise = nn.ModuleDict({name: Standardise(dim) for name in readings} if standardise else {})
        if kind == "linear":
            self.layers: nn.Module = nn.Linear(dim, text_dim)
        else:
            self.layers = nn.Sequential(nn.Linear(dim, text_dim), nn.GELU(), nn.Linear(text_dim, text_dim))

    def forward(self, x: Tensor, mask: Tensor, reading: str = "patches") -> Tensor:
        if self.standardise:
            x = self.standardise[reading](x, mask)
        return self.scale * self.layers(x)
