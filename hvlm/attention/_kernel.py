"""Attention whose weights are products of features, φ(q_i) φ(k_j), in time linear in the number of tokens.

For FAVOR+ the constants that keep exp in range are the reference's (Choromanski et al. 2021, and its code):

    φ(q_i)_m = exp(w_m q_i - |q_i|²/2 - max_m' w_m' q_i) + ε,   φ(k_j)_m = exp(w_m k_j - |k_j|²/2 - c) + ε,

c the largest w_m k_j of a clip and head; for a causal pass of the keys so far, c_i, so that nothing is known of the
future. All of that cancels but for ε, which pulls weights that random features get wrong towards their mean: with q and
k of unit variance, where 256 features are far too few, it divides the error by five. Features exist for a stretch of
tokens at a time, in the forward and in the backward pass, which computes them again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS_SOFTMAX, EPS_RELU = 1e-4, 1e-3
FEATURES = 1 << 19  # numbers that exist at a time
CAUSAL_CHUNK = 128
NONE = -1e30  # the exponent of a key that is not there
TINY = 1e-30  # a clip without any key gets zeros, not NaN


def kernel_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel: str, projection: Tensor | None, mask_BS: Tensor | None = None
) -> Tensor:
    """Every query over all keys: [B, H, S, d] each -> [B, H, S, d].

    kernel: ``softmax`` (FAVOR+), ``relu`` or ``elu``; projection [m, d] float32, None for ``elu``.
    """
    return _Kernel.apply(q, k, v, kernel, projection, mask_BS)


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
    parts = []
    with torch.autocast(q.device.type, enabled=False):
        for start in range(0, q.shape[2], CAUSAL_CHUNK):
            at = slice(start, start + CAUSAL_CHUNK)
            mask = None if mask_BS is None else mask_BS[:, None, at, None]
            y, state = _causal_chunk(q[:, :, at].float(), k[:, :, at].float(), v[:, :, at].float(), kernel, projection,
                                     mask, state)  # fmt: skip
            parts.append(y)
    return torch.cat(parts, 2).to(v.dtype), state


def _causal_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: str,
    projection: Tensor | None,
    mask: Tensor | None,
    state: KernelState | None,
) -> tuple[Tensor, KernelState]:
    v1 = F.pad(v, (0, 1), value=1.0)
    v1 = v1 if mask is None else v1 * mask
    if kernel == "softmax":
        e = k @ projection.T
        e = e if mask is None else e.masked_fill(~mask, NONE)
        so_far = e.detach().amax(-1, keepdim=True).cummax(2).values  # c_i
        so_far = so_far if state is None else torch.maximum(so_far, state.c)
        c, eps = so_far[:, :, -1:], EPS_SOFTMAX
        phi_k = (e - k.square().sum(-1, keepdim=True) / 2 - c).exp()
        mapped = q @ projection.T
        phi_q = (mapped - q.square().sum(-1, keepdim=True) / 2 - mapped.detach().amax(-1, keepdim=True)).exp() + eps
        grown = (c - so_far).clamp(max=60.0).exp()  # from sums relative to c to those relative to c_i
    else:
        phi_q, phi_k, eps = _plain(q, kernel, projection), _plain(k, kernel, projection), 0.0
        phi_k = phi_k if mask is None else phi_k * mask
        c = grown = q.new_ones(1, 1, 1, 1)
    both = (phi_q @ phi_k.transpose(-1, -2)).tril() @ v1
    total = v1.cumsum(2)
    sums = phi_k.transpose(-1, -2) @ v1
    if state is not None:
        before = state.sums * (state.c - c).exp()
        both, total, sums = both + phi_q @ before, total + state.total, sums + before
    both = grown * both + eps * phi_q.sum(-1, keepdim=True) * total
    return both[..., :-1] / both[..., -1:].clamp(min=TINY), KernelState(sums, total[:, :, -1:], c)


def _plain(x: Tensor, kernel: str, projection: Tensor | None) -> Tensor:
    """φ(x) of the kernels that need no constants."""
    return F.elu(x) + 1 if kernel == "elu" else torch.matmul(x, projection.T).relu() + EPS_RELU


class _Kernel(torch.autograd.Function):
    """Over [B·H, S, d]. Sums over the keys first, then the queries, a stretch of tokens at a time."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, kernel: str, projection: Tensor | None, mask_BS: Tensor | None
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            maps = _Maps(q, kernel, projection, mask_BS)
            q, k, v1 = q.flatten(0, 1), k.flatten(0, 1), F.pad(v.flatten(0, 1), (0, 1), value=1.0)
            sums = q.new_zeros(len(q), maps.num_features, v1.shape[2], dtype=torch.float32)
            for at in maps.stretches:
                phi, shrink = maps.keys_online(k[:, at], at)
                if shrink is not None:
                    sums.mul_(shrink)
                sums += torch.bmm(phi.transpose(1, 2), v1[:, at])
            if kernel == "softmax":
                present = v1 if mask_BS is None else v1 * maps.mask
                sums += EPS_SOFTMAX * present.sum(1, keepdim=True, dtype=torch.float32)
            out = torch.empty_like(q)
            low = sums.to(q.dtype)
            for at in maps.stretches:
                both = torch.bmm(maps.queries(q[:, at]), low)
                torch.div(both[..., :-1], both[..., -1:].clamp(min=TINY), out=out[:, at])
        ctx.save_for_backward(q, k, v1, sums, out)
        ctx.maps, ctx.shape = maps, v.shape
        return out.view(v.shape)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        (q, k, v1, sums, out), maps = ctx.saved_tensors, ctx.maps
        dout = dout.to(q.dtype).flatten(0, 1)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(out)
        low, dsums = sums.to(q.dtype), torch.zeros_like(sums)
        for at in maps.stretches:
            phi = maps.queries(q[:, at])
            norm = torch.bmm(phi, low[:, :, -1:]).clamp(min=TINY)
            dn = dout[:, at] / norm
            dboth = torch.cat([dn, -(dn * out[:, at]).sum(-1, keepdim=True)], -1)
            dsums += torch.bmm(phi.transpose(1, 2), dboth)
            dq[:, at] = maps.back(torch.bmm(dboth, low.transpose(1, 2)), phi, q[:, at], is_key=False)
        dlow = dsums.to(q.dtype)
        for at in maps.stretches:
            phi = maps.keys(k[:, at], at)
            dv[:, at] = torch.bmm(maps.with_eps(phi, at), dlow[:, :, :-1])
            dk[:, at] = maps.back(torch.bmm(v1[:, at], dlow.transpose(1, 2)), phi, k[:, at], is_key=True)
        return dq.view(ctx.shape), dk.view(ctx.shape), dv.view(ctx.shape), None, None, None


class _Maps:
    """φ of a stretch of queries or keys, [B·H, C, d] -> [B·H, C, m] in their dtype, and the way back."""

    def __init__(self, q: Tensor, kernel: str, projection: Tensor | None, mask_BS: Tensor | None):
        b, h, s, d = q.shape
        self.kernel, self.c = kernel, None
        self.projection = None if projection is None else projection.to(q.dtype)
        self.num_features = d if projection is None else len(projection)
        many = max(32, FEATURES // (b * h * self.num_features))
        self.stretches = [slice(i, i + many) for i in range(0, s, many)]
        self.mask = None if mask_BS is None else mask_BS.repeat_interleave(h, 0).unsqueeze(-1)

    def queries(self, q: Tensor) -> Tensor:
        """With ε."""
        if self.kernel != "softmax":
            return _plain(q, self.kernel, self.projection)
        e = self._mapped(q)
        return e.sub_(e.amax(-1, keepdim=True) + half_square(q)).exp_().add_(EPS_SOFTMAX)

    def keys(self, k: Tensor, at: slice) -> Tensor:
        """Without ε, relative to the constant as it is."""
        if self.kernel != "softmax":
            return self._present(_plain(k, self.kernel, self.projection), at)
        return self._present(self._exponent(k, at).sub_(half_square(k) + self.c).exp_().to(k.dtype), at)

    def keys_online(self, k: Tensor, at: slice) -> tuple[Tensor, Tensor | None]:
        """With a constant that also holds for these; and by how much what was summed before must shrink."""
        if self.kernel != "softmax":
            return self.keys(k, at), None
        e = self._exponent(k, at)
        new, before = e.amax((1, 2), keepdim=True), self.c
        self.c = new if before is None else torch.maximum(new, before)
        shrink = None if before is None else (before - self.c).exp_()
        return self._present(e.sub_(half_square(k) + self.c).exp_().to(k.dtype), at), shrink

    def with_eps(self, phi: Tensor, at: slice) -> Tensor:
        return self._present(phi + EPS_SOFTMAX, at) if self.kernel == "softmax" else phi

    def back(self, dphi: Tensor, phi: Tensor, x: Tensor, is_key: bool) -> Tensor:
        """Gradient for x. A key that is not there has φ = 0, and so no gradient."""
        if self.kernel == "elu":
            return dphi * torch.where(x > 0, (phi > 0).to(phi.dtype), phi)
        if self.kernel == "relu":
            return torch.matmul(dphi.mul_((phi > EPS_RELU).to(phi.dtype)), self.projection)
        de = dphi.mul_(phi if is_key else phi - EPS_SOFTMAX)
        dx = torch.matmul(de, self.projection)
        return dx.sub_(x * de.sum(-1, keepdim=True))

    def _mapped(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.projection.T)

    def _exponent(self, k: Tensor, at: slice) -> Tensor:
        e = self._mapped(k).float()
        return e if self.mask is None else e.masked_fill_(~self.mask[:, at], NONE)

    def _present(self, phi: Tensor, at: slice) -> Tensor:
        return phi if self.mask is None else phi.mul_(self.mask[:, at])


def half_square(x: Tensor) -> Tensor:
    """|x|²/2, [..., 1]."""
    return x.square().sum(-1, keepdim=True).div_(2)
