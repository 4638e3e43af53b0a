"""Queries, keys and values of several heads, and the way back: what the softmax and kernel mechanisms share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.config.ranges import Probability
from hvlm.functional import join_heads


class Heads(nn.Module):
    """dim: width. num_heads: must divide it. dropout: on what the layer gives, in training only."""

    def __init__(self, dim: int, num_heads: int, dropout: Probability):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"attention: dim={dim} does not divide by num_heads={num_heads}")
        self.dim, self.num_heads, self.head_dim = dim, num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def project(self, x_BSD: Tensor, scaled: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each [B, H, S, d]; ``scaled``: q is divided by sqrt(d)."""
        return _Split.apply(self.qkv(x_BSD), self.num_heads, self.head_dim, self.head_dim**-0.5 if scaled else None)

    def split_qkv(self, *many: int, scaled: bool = True) -> tuple[Projection, ...]:
        """What gives so ``many`` of q, k, v each, for when they are wanted of different tokens or at different times:
        1, 2 is what gives (q,) and what gives (k, v)."""
        sizes = [n * self.dim for n in many]
        weights, biases = self.qkv.weight.split(sizes), self.qkv.bias.split(sizes)
        scales = (self.head_dim**-0.5 if scaled else None, *[None] * (len(many) - 1))
        each = zip(weights, biases, scales, strict=True)
        return tuple(Projection(*of, self.num_heads, self.head_dim) for of in each)

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of the projection in and of the one out, for those who do both by the stretch."""
        return tuple(of.to(dtype) for of in (self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias))

    def finish(self, y_BHSd: Tensor) -> Tensor:
        return self.dropout(self.out(join_heads(y_BHSd)))

    def projection_flops(self, length: int) -> int:
        return 8 * length * self.dim**2


class KeysValues(NamedTuple):
    """What a stream of softmax attention keeps: [B, H, as many as there are, d] each."""

    keys: Tensor
    values: Tensor

    def followed_by(self, k: Tensor, v: Tensor) -> KeysValues:
        return KeysValues(torch.cat([self.keys, k], 2), torch.cat([self.values, v], 2))

    def without(self, first: int, many: int) -> KeysValues:
        """Without ``many`` from place ``first`` on."""
        return KeysValues(*(torch.cat([x[:, :, :first], x[:, :, first + many :]], 2) for x in self))


class Projection(NamedTuple):
    """Some of the rows of ``qkv``. weight [D or 2 D, D]; scale: what the first of the results is multiplied by."""

    weight: Tensor
    bias: Tensor
    scale: float | None
    heads: int
    head_dim: int

    def __call__(self, x_BSD: Tensor) -> tuple[Tensor, ...]:
        """As many [B, H, S, d] as there are D rows."""
        return _Split.apply(F.linear(x_BSD, self.weight, self.bias), self.heads, self.head_dim, self.scale)


def packed_like(q_BHSd: Tensor, many: int = 3) -> tuple[Tensor, ...]:
    """Uninitialised tensors as ``project`` makes them, views of one: gradients in these need not be put together. They
    may be cut at the end."""
    b, h, s, d = q_BHSd.shape
    return q_BHSd.new_empty(b, s, many, h, d).permute(2, 0, 3, 1, 4).unbind(0)


class _Split(torch.autograd.Function):
    """[B, S, n D] -> n [B, H, S, d], views; the first times ``scale``: then contiguous."""

    @staticmethod
    def forward(ctx: Any, x_BSE: Tensor, heads: int, head_dim: int, scale: float | None) -> tuple[Tensor, ...]:
        ctx.scale = scale
        first, *others = x_BSE.unflatten(-1, (-1, heads, head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return first if scale is None else torch.mul(first, scale, out=first.new_empty(first.shape)), *others

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        b, h, s, d = grads[0].shape
        row = len(grads) * h * d
        if torch.compiler.is_compiling() or not _side_by_side(grads, h * d, row):
            whole = torch.stack(grads).permute(1, 3, 0, 2, 4).reshape(b, s, row)
        else:
            whole = grads[0].as_strided((b, s, row), (grads[0].stride(0), row, 1))
        if ctx.scale is not None:
            whole[..., : h * d] *= ctx.scale
        return whole, None, None, None


def _side_by_side(parts: tuple[Tensor, ...], width: int, row: int) -> bool:
    """Whether the tensors are those of ``packed_like``."""
    first = parts[0]
    return all(
        part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and part.storage_offset() == first.storage_offset() + i * width
        and part.stride()[1:] == (part.shape[3], row, 1)
        for i, part in enumerate(parts)
    )
