"""Queries, keys and values of several heads, and the way back: what the softmax and kernel mechanisms share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hvlm.functional import join_heads


class Heads(nn.Module):
    """dim: width. num_heads: must divide it. dropout: on what the layer gives, in training only."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"attention: dim={dim} does not divide by num_heads={num_heads}")
        self.dim, self.num_heads, self.head_dim = dim, num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def project(self, x_BSD: Tensor, scaled: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each [B, H, S, d]; ``scaled``: q is divided by sqrt(d)."""
        return _Split.apply(self.qkv(x_BSD), self.num_heads, self.head_dim**-0.5 if scaled else None)

    def finish(self, y_BHSd: Tensor) -> Tensor:
        return self.dropout(self.out(join_heads(y_BHSd)))

    def projection_flops(self, length: int) -> int:
        return 8 * length * self.dim**2


def packed_like(q_BHSd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three uninitialised tensors as ``project`` makes them, views of one: gradients in these need not be put together.
    They may be cut at the end."""
    b, h, s, d = q_BHSd.shape
    return q_BHSd.new_empty(b, s, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0)


class _Split(torch.autograd.Function):
    """[B, S, 3 D] -> q (times ``scale``: then contiguous), k, v [B, H, S, d], views."""

    @staticmethod
    def forward(ctx: Any, qkv_BSE: Tensor, heads: int, scale: float | None) -> tuple[Tensor, Tensor, Tensor]:
        ctx.scale = scale
        b, s, _ = qkv_BSE.shape
        q, k, v = qkv_BSE.view(b, s, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return q if scale is None else torch.mul(q, scale, out=q.new_empty(q.shape)), k, v

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, None, None]:
        b, h, s, d = dq.shape
        row = 3 * h * d
        if torch.compiler.is_compiling() or not _side_by_side((dq, dk, dv), h * d, row):
            whole = torch.stack((dq, dk, dv)).permute(1, 3, 0, 2, 4).reshape(b, s, row)
        else:
            whole = dq.as_strided((b, s, row), (dq.stride(0), row, 1))
        if ctx.scale is not None:
            whole[..., : h * d] *= ctx.scale
        return whole, None, None


def _side_by_side(parts: tuple[Tensor, ...], width: int, row: int) -> bool:
    """Whether the tensors are those of ``packed_like``."""
    first = parts[0]
    return all(
        part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and part.storage_offset() == first.storage_offset() + i * width
        and part.stride()[1:] == (part.shape[3], row, 1)
        for i, part in enumerate(parts)
    )
