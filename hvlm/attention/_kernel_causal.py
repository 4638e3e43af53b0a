"""Causal ``_kernel.py``: every query over the keys so far, as prefix sums in chunks, and as the step of a stream."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.attention import _gpu
from hvlm.attention._kernel import EPS_SOFTMAX, TINY, half_square, plain_features, scaled
from hvlm.functional import lowest, wide

CAUSAL_CHUNK = 128
FAR = 40.0  # by which the constant may rise within a chunk; exp of it is far from the end of float32


class KernelState(NamedTuple):
    """What a causal pass keeps of the keys: sums [B, H, m, d + 1] of φ(k) [v, 1] without ε, total [B, H, 1, d + 1]
    of [v, 1], and the constant c [B, H, 1, 1] that the sums are relative to."""

    sums: Tensor
    total: Tensor
    c: Tensor


def kernel_attention_causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: str,
    projection: Tensor | None,
    mask_BS: Tensor | None = None,
    state: KernelState | None = None,
) -> tuple[Tensor, KernelState]:
    """Every query over the keys up to its own place and over what ``state`` holds: (y, the state after them).

    In chunks, with what came before as a state; float32 inside. With one token it is the step of a stream.
    """
    parts, dtype = [], wide(q.dtype)
    projection = None if projection is None else scaled(projection).to(dtype)
    with torch.autocast(q.device.type, enabled=False):
        for start in range(0, q.shape[2], CAUSAL_CHUNK):
            at = slice(start, start + CAUSAL_CHUNK)
            mask = None if mask_BS is None else mask_BS[:, None, at, None]
            q_, k_, v_ = (x[:, :, at].to(dtype) for x in (q, k, v))
            y, state = _causal_chunk(q_, k_, v_, kernel, projection, mask, state)
            parts.append(y)
    return torch.cat(parts, 2).to(v.dtype), state


def kernel_attention_fused(q: Tensor, k: Tensor, v: Tensor, kernel: str, projection: Tensor | None) -> Tensor:
    """``kernel_attention_causal`` of a whole without padding, for ``relu`` and ``elu``, by fla's kernel."""
    projection = scaled(projection)
    return _gpu.causal_kernel(plain_features(q, kernel, projection), plain_features(k, kernel, projection), v)


def _causal_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: str,
    projection: Tensor | None,
    mask: Tensor | None,
    state: KernelState | None,
) -> tuple[Tensor, KernelState]:
    if kernel == "softmax":
        e = _all_of_pairs(k, projection)
        e = e if mask is None else e.masked_fill(~mask, lowest(e.dtype))
        so_far = e.detach().amax(-1, keepdim=True).cummax(2).values  # c_i
        so_far = so_far if state is None else torch.maximum(so_far, state.c)
        if k.shape[2] > 1 and bool((so_far[:, :, -1:] - so_far[:, :, :1]).max() > FAR):
            # Relative to the last constant the first keys would be nothing, and their queries read rounding errors.
            parts = []
            for at in slice(0, k.shape[2] // 2), slice(k.shape[2] // 2, None):
                given = (q[:, :, at], k[:, :, at], v[:, :, at], kernel, projection)
                y, state = _causal_chunk(*given, None if mask is None else mask[:, :, at], state)
                parts.append(y)
            return torch.cat(parts, 2), state
        c, eps = so_far[:, :, -1:], EPS_SOFTMAX
        phi_k = (e - half_square(k) - c).exp()
        mapped = _all_of_pairs(q, projection)
        phi_q = (mapped - half_square(q) - mapped.detach().amax(-1, keepdim=True)).exp() + eps
        grown = (c - so_far).exp()  # from sums relative to c to those relative to c_i
    else:
        phi_q, phi_k, eps = plain_features(q, kernel, projection), plain_features(k, kernel, projection), 0.0
        phi_k = phi_k if mask is None else phi_k * mask
        c = grown = q.new_ones(*q.shape[:2], 1, 1)
    v1 = F.pad(v, (0, 1), value=1.0)
    v1 = v1 if mask is None else v1 * mask
    both = (phi_q @ phi_k.transpose(-1, -2)).tril() @ v1
    total = v1.cumsum(2)
    sums = phi_k.transpose(-1, -2) @ v1
    if state is not None:
        before = state.sums * (state.c - c).exp()
        both, total, sums = both + phi_q @ before, total + state.total, sums + before
    both = grown * both + eps * phi_q.sum(-1, keepdim=True) * total
    return both[..., :-1] / both[..., -1:].clamp(min=TINY), KernelState(sums, total[:, :, -1:], c)


def _all_of_pairs(x: Tensor, projection: Tensor) -> Tensor:
    """w x of both of every pair, [..., m]."""
    e = x @ projection[: len(projection) // 2].T
    return torch.cat([e, -e], -1)
