"""One state of a masked sequence."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hvlm.functional import lowest

Pooling = Literal["mean", "max", "attention", "adaptive"]


class Pool(nn.Module):
    """[K, S, D] and its mask -> [K, D]; zero where nothing is valid.

    kind: ``mean``, ``max``, ``attention`` (softmax of a learned query's scores), or ``adaptive``: the three, in shares
    that are learned.
    """

    def __init__(self, dim: int, kind: Pooling):
        super().__init__()
        if kind not in get_args(Pooling):
            raise ValueError(f"fusion.pooling={kind}: expected one of {', '.join(get_args(Pooling))}")
        self.kind = kind
        if kind in ("attention", "adaptive"):
            self.query = nn.Linear(dim, 1, bias=False)  # what it would add to all scores changes nothing
        if kind == "adaptive":
            self.shares = nn.Parameter(torch.zeros(3))

    def forward(self, x_KSD: Tensor, mask_KS: Tensor) -> Tensor:
        there_KS1 = mask_KS.unsqueeze(-1)
        found = []
        if self.kind in ("mean", "adaptive"):
            found.append((x_KSD * there_KS1).sum(1) / there_KS1.sum(1).clamp(min=1))
        if self.kind in ("max", "adaptive"):
            found.append(x_KSD.masked_fill(~there_KS1, lowest(x_KSD.dtype)).amax(1))
        if self.kind in ("attention", "adaptive"):
            # In units of a state's size, so that the scores of small states are not all the same.
            size = x_KSD.detach().float().square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
            scores = self.query(x_KSD / size.to(x_KSD.dtype)).float().masked_fill(~there_KS1, -1e30)
            found.append((scores.softmax(1).to(x_KSD.dtype) * x_KSD).sum(1))
        pooled = found[0]
        if self.kind == "adaptive":
            pooled = (torch.stack(found, -1) * self.shares.softmax(0)).sum(-1)
        return pooled.masked_fill(~mask_KS.any(1, keepdim=True), 0)
