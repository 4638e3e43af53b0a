"""Embeddings of all processes, gathered so that gradients find their way back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hvlm.head._processes import group, sharing, summed, world


class _Gather(torch.autograd.Function):
    """Rows of all processes, in their order; going back, each process gets what all of them want of its rows."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor) -> Tensor:
        count = torch.tensor([len(x_ND)], device=x_ND.device)
        counts = [torch.zeros_like(count) for _ in range(world())]
        dist.all_gather(counts, count, group=group())
        ctx.sizes = [int(one) for one in counts]
        ctx.rank = dist.get_rank()
        filled = x_ND.new_zeros(max(ctx.sizes), *x_ND.shape[1:])
        filled[: len(x_ND)] = x_ND
        parts = [torch.zeros_like(filled) for _ in ctx.sizes]
        dist.all_gather(parts, filled, group=group())
        return torch.cat([part[:size] for part, size in zip(parts, ctx.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return summed(grads[0].contiguous()).split(ctx.sizes)[ctx.rank]


def gathered(x_ND: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes and where this one's begin. Where nothing is learned those of this one alone:
    processes validate different numbers of batches."""
    if not sharing():
        return x_ND, 0
    every = _Gather.apply(x_ND)
    counts = torch.zeros(world(), device=x_ND.device, dtype=torch.int64)
    counts[dist.get_rank()] = len(x_ND)
    counts = summed(counts)
    return every, int(counts[: dist.get_rank()].sum())
