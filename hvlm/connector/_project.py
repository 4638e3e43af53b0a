"""From the encoder's width to the language model's: running standardisation and the projector that connectors share."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Standardise(nn.Module):
    """x -> (x − mean) / std per channel, with running statistics.

    Training normalises with the running statistics too (as constants), so that training and evaluation compute the
    same function, a padded token changes nothing, and a batch of one clip works. They are those of all optimiser steps
    before (0 and 1 in the first), and move once at the end of each by what all its parts and processes saw: a step is
    the same however it is divided. The first 1/momentum updates average all that was seen; later ones move
    exponentially.
    """

    mean: Tensor
    var: Tensor
    updates: Tensor
    seen: Tensor

    def __init__(self, dim: int, momentum: float = 0.01, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        # Of the step under way: how many, their sum and sum of squares, shifted by the running mean, so that the
        # difference of sums of squares stays exact in float32.
        self.register_buffer("seen", torch.zeros(1 + 2 * dim), persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [..., D], mask [...] (False: not counted); returns float32 of x's shape."""
        x = x.float()
        if self.training:
            self._see(x.detach(), mask)
        return (x - self.mean) * torch.rsqrt(self.var + self.eps)

    @torch.no_grad()
    def _see(self, x: Tensor, mask: Tensor) -> None:
        weight = mask.unsqueeze(-1).to(x.dtype)
        shifted = torch.where(mask.unsqueeze(-1), x - self.mean, 0.0)
        axes = tuple(range(x.ndim - 1))
        self.seen += torch.cat([weight.sum().reshape(1), shifted.sum(axes), (shifted * shifted).sum(axes)])

    @torch.no_grad()
    def end_step(self) -> None:
        """Move by what was seen since the last step, over all processes; by nothing where nothing was seen."""
        sums = self.seen.clone()
        self.seen.zero_()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        count, first, second = sums[0], *sums[1:].chunk(2)
        any_seen = (count > 0).to(count)  # no branch: a GPU would have to wait for it
        first, second = first / count.clamp(min=1), second / count.clamp(min=1)
        self.updates += any_seen.long()
        rate = any_seen * torch.clamp(1.0 / self.updates.clamp(min=1), min=self.momentum)
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
