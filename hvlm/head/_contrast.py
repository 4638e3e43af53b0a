"""Embeddings of all processes, gathered so that gradients find their way back, and ranks in a table of scores."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_own: dict[Any, Any] = {}  # {the group of all processes: another of the same, for these exchanges alone}


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _group() -> Any:
    """Gradients of parts that a process has no rows for are averaged at another time than elsewhere; in one group with
    those, messages of one kind would be taken for the other's."""
    everyone = dist.group.WORLD
    if everyone not in _own:
        _own.clear()
        _own[everyone] = dist.new_group()
    return _own[everyone]


class _Gather(torch.autograd.Function):
    """Rows of all processes, in their order; going back, each process gets what all of them want of its rows."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor) -> Tensor:
        count = torch.tensor([len(x_ND)], device=x_ND.device)
        counts = [torch.zeros_like(count) for _ in range(world())]
        dist.all_gather(counts, count, group=_group())
        ctx.sizes = [int(one) for one in counts]
        ctx.rank = dist.get_rank()
        filled = x_ND.new_zeros(max(ctx.sizes), *x_ND.shape[1:])
        filled[: len(x_ND)] = x_ND
        parts = [torch.zeros_like(filled) for _ in ctx.sizes]
        dist.all_gather(parts, filled, group=_group())
        return torch.cat([part[:size] for part, size in zip(parts, ctx.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad, group=_group())
        return grad.split(ctx.sizes)[ctx.rank]


def gathered(x_ND: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes and where this one's begin. Where nothing is learned those of this one alone:
    processes validate different numbers of batches."""
    if world() == 1 or not torch.is_grad_enabled():
        return x_ND, 0
    every = _Gather.apply(x_ND)
    counts = torch.zeros(world(), device=x_ND.device, dtype=torch.int64)
    counts[dist.get_rank()] = len(x_ND)
    dist.all_reduce(counts, group=_group())
    return every, int(counts[: dist.get_rank()].sum())
