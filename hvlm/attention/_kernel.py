"""Attention whose weights are products of features, φ(q_i) φ(k_j), in time linear in the number of tokens.

For FAVOR+ rows of W come in pairs, w and -w, of which only the first half is multiplied out. The constants that keep
exp in range are the reference's (Choromanski et al. 2021, and its code):

    φ(q_i)_m = exp(w_m q_i - |q_i|²/2 - max_m' w_m' q_i) + ε,   φ(k_j)_m = exp(w_m k_j - |k_j|²/2 - c) + ε,

c the largest w_m k_j of a clip and head; for a causal pass of the keys so far, c_i, so that nothing is known of the
future. All of that cancels but for ε, which pulls weights that random features get wrong towards their mean: with q and
k of unit variance, where 256 features are far too few, it divides the error by 3.5 (rows of equal length) to 5.
Features exist for a stretch of tokens at a time, in the forward and in the backward pass, which computes them again;
elu's, which are as large as what they are made of, are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from hvlm.attention._qkv import Heads, packed_like
from hvlm.functional import dtype_here, evenly, exp_, lowest, transposed, wide

EPS_SOFTMAX, EPS_RELU = 1e-4, 1e-3
FEATURES, FEATURES_LEARNING = 1 << 18, 1 << 17  # numbers that exist at a time; a backward pass has them several times
KEPT_BYTES = 1 << 19  # the same in bytes where features are kept
AT_LEAST = 96  # tokens at a time, for products of a size that is worth it
PROJECTED = 1024  # tokens that are projected at once
TINY = 1e-30  # a clip without any key gets zeros, not NaN


def kernel_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel: str, projection: Tensor | None, mask_BS: Tensor | None = None
) -> Tensor:
    """Every query over all keys: [B, H, S, d] each -> [B, H, S, d].

    kernel: ``softmax`` (FAVOR+, of exp(q k / √d)), ``relu`` or ``elu``; projection [m, d] float32, None for ``elu``.
    For ``softmax`` its second half is minus the first.
    """
    if kernel == "elu":
        q, k = _Elu.apply(q), _Elu.apply(k)
    return _Queries.apply(q, _Keys.apply(k, v, kernel, projection, mask_BS), kernel, projection)


def kernel_attention_layer(
    x_BSD: Tensor, heads: Heads, kernel: str, projection: Tensor | None, mask_BS: Tensor | None = None
) -> Tensor:
    """``kernel_attention`` between the projections of ``heads``, [B, S, D] -> [B, H, S, d].

    Queries are projected after the keys are summed. The backward pass, in the opposite order, is then done with the
    queries and their gradients before those of the keys exist.
    """
    x_BSD = x_BSD.to(dtype_here(x_BSD))  # once for all projections
    if kernel == "elu":  # keys apart from values, so that they are gone when there is φ of them
        queries, keys, values = heads.split_qkv(1, 1, 1, scaled=False)
        kv = _Keys.apply(_Elu.apply(*keys(x_BSD)), *values(x_BSD), kernel, None, mask_BS)
        return _Queries.apply(_Elu.apply(*queries(x_BSD)), kv, kernel, None)
    queries, keys = heads.split_qkv(1, 2, scaled=False)
    kv = _Keys.apply(*keys(x_BSD), kernel, projection, mask_BS)
    return _Queries.apply(*queries(x_BSD), kv, kernel, projection)


@torch.no_grad()
def kernel_attention_lean(
    x_BSD: Tensor,
    heads: Heads,
    kernel: str,
    projection: Tensor | None,
    mask_BS: Tensor | None = None,
) -> Tensor:
    """``kernel_attention`` between the projections of ``heads``, [B, S, D] -> [B, S, D], where nothing is learned: a
    stretch of tokens is projected when its turn comes, so that queries, keys and values of all never exist."""
    b, length, width = x_BSD.shape
    device = x_BSD.device.type
    dtype = dtype_here(x_BSD)
    maps = _Maps(b, heads.num_heads, length, heads.head_dim, dtype, kernel, projection, mask_BS, learning=False)
    weight, bias, out_weight, out_bias = heads.weights(dtype)
    # Several stretches are projected at once: weights are read less often.
    groups = [evenly(group, maps.many) for group in evenly(slice(0, length), max(PROJECTED, maps.many))]

    y = x_BSD.new_empty(x_BSD.shape, dtype=dtype)
    # Made once: memory that is new to the process costs more than writing to it.
    most = b * max((group[-1].stop - group[0].start for group in groups), default=0)
    low, room = (y.new_empty(most, n * width) for n in (1, 2))

    def projected(group: list[slice], part: slice) -> Iterator[tuple[slice, Tensor]]:
        """(place, [1 or 2, B·H, C, d]) of each stretch of a group; ``part`` of q, k, v."""
        start, stop = group[0].start, group[-1].stop
        rows, n = b * (stop - start), bias[part].shape[0] // width
        x = x_BSD[:, start:stop]
        x = x.reshape(rows, -1) if x.dtype == dtype else low[:rows].view(x.shape).copy_(x).flatten(0, 1)
        y = torch.addmm(bias[part], x, weight[part].T, out=room.flatten()[: rows * n * width].view(rows, -1))
        y = y.view(b, stop - start, n, heads.num_heads, heads.head_dim).permute(2, 0, 3, 1, 4).flatten(1, 2)
        for at in group:
            yield at, y[:, :, at.start - start : at.stop - start]

    with torch.autocast(device, enabled=False):
        kv = maps.sum_keys((at, *both) for group in groups for at, both in projected(group, slice(width, None)))
        for group in groups:
            start, stop = group[0].start, group[-1].stop
            read = low[: b * (stop - start)].view(b, stop - start, heads.num_heads, heads.head_dim)
            for at, (q,) in projected(group, slice(width)):
                both = maps.sums(maps.queries(q), kv).unflatten(0, (b, -1))
                into = read[:, at.start - start : at.stop - start].transpose(1, 2)
                torch.div(both[..., :-1], both[..., -1:].clamp_(min=TINY), out=into)
            for one, into in zip(read.flatten(2), y[:, start:stop], strict=True):
                torch.addmm(out_bias, one, out_weight.T, out=into)
    return y


def scaled(projection: Tensor | None) -> Tensor | None:
    """exp(q k / √d) is exp((q d^-¼) (k d^-¼)); the factor goes into W, which is small."""
    return None if projection is None else projection * projection.shape[1] ** -0.25


def plain_features(x: Tensor, kernel: str, projection: Tensor | None) -> Tensor:
    """φ(x) of the kernels that need no constants; ``projection`` scaled."""
    if kernel == "elu":
        return exp_(x.clamp(max=0)).add(x.relu())  # elu(x) + 1, and faster than torch's in bfloat16
    return torch.matmul(x, projection.to(x.dtype).T).relu() + EPS_RELU


class _Elu(torch.autograd.Function):
    """φ of ``elu``, [B, H, S, d], for ``_Keys`` and ``_Queries``. As large as x, and φ' follows from it: it is kept
    in the place of x. The gradient that comes back is x's already (``_Maps.back``)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        phi = x.new_empty(x.shape)
        many = max(1, FEATURES // max(1, x[:, :, :1].numel()))
        for part, into in zip(x.split(many, 2), phi.split(many, 2), strict=True):
            torch.add(exp_(part.clamp(max=0)), part.relu(), out=into)
        return phi

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Tensor:
        return dx


class _Keys(torch.autograd.Function):
    """The sums over the keys, Σ_j (φ_j + ε) [v_j, 1]ᵀ [B·H, m, d + 1] float32. k, v [B, H, S, d]; for ``elu`` φ(k)."""

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, v: Tensor, kernel: str, projection: Tensor | None, mask_BS: Tensor | None
    ) -> Tensor:
        maps = _Maps(*k.shape, k.dtype, kernel, projection, mask_BS, learning=True)
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        with torch.autocast(k.device.type, enabled=False):
            kv = maps.sum_keys((at, k[:, at], v[:, at]) for at in maps.stretches)
        ctx.save_for_backward(k, v)
        ctx.maps = maps
        return kv

    @staticmethod
    def backward(ctx: Any, dkv: Tensor) -> tuple[Tensor | None, ...]:
        (k, v), maps = ctx.saved_tensors, ctx.maps
        if maps.kept:  # two projections made them
            (whole_k, (dk,)), (whole_v, (dv,)) = maps.gradients(k, 1), maps.gradients(v, 1)
            whole = *whole_k, *whole_v
        else:
            whole, (dk, dv) = maps.gradients(k, 2)
        d = maps.d
        low_kv, low_one = dkv[..., :d].mT.to(k.dtype), dkv[..., d:].mT.to(k.dtype).contiguous()
        for at in maps.stretches:
            phi = maps.keys(k[:, at], at)
            maps.sums(phi, dkv[..., :d], out=dv[:, at])
            if maps.mask is not None:
                dv[:, at] *= maps.mask[:, at]
            dphi = torch.bmm(v[:, at], low_kv).add_(low_one)
            maps.back(dphi, phi, k[:, at], out=dk[:, at])
        return *maps.joined(whole, (dk, dv)), None, None, None


class _Queries(torch.autograd.Function):
    """φ_i kv is what a query reads and, in the last column, what that is divided by. q [B, H, S, d] -> y, the same.

    For ``elu`` φ(q). φ is without ε in all products; what ε adds is a vector: φ + ε makes φ kv into φ kv + ε Σ_m kv_m.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, kernel: str, projection: Tensor | None) -> Tensor:
        maps = _Maps(*q.shape, q.dtype, kernel, projection, None, learning=True)
        b, heads, length, d = q.shape
        y = q.new_empty(b, length, heads, d).transpose(1, 2)  # joins heads without a copy
        q = q.flatten(0, 1)
        norm = q.new_empty(*q.shape[:2], 1)
        with torch.autocast(q.device.type, enabled=False):
            for at in maps.stretches:
                both = maps.sums(maps.queries(q[:, at]), kv)
                norm[:, at] = both[..., d:].clamp_(min=TINY)
                torch.div(both[..., :d].unflatten(0, (b, heads)), norm[:, at].unflatten(0, (b, heads)), out=y[:, :, at])
        ctx.save_for_backward(q, kv, y, norm)
        ctx.maps = maps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (q, kv, y, norm), maps = ctx.saved_tensors, ctx.maps
        whole, (dq,) = maps.gradients(q, 1)
        d = maps.d
        dy, y = dy.to(q.dtype).flatten(0, 1), y.flatten(0, 1)
        dkv, low_kv = torch.zeros_like(kv), kv.to(q.dtype)
        for at in maps.stretches:
            phi = maps.queries(q[:, at])
            down = q.new_empty(len(q), phi.shape[1], d + 1)
            dn = torch.div(dy[:, at], norm[:, at], out=down[..., :d])
            torch.sum(dn * y[:, at], -1, keepdim=True, out=down[..., d:]).neg_()
            dkv += torch.bmm(transposed(phi), down)
            if maps.eps:
                dkv += maps.eps * down.sum(1, keepdim=True)
            maps.back(torch.bmm(down, low_kv.mT), phi, q[:, at], out=dq[:, at])
        return *maps.joined(whole, (dq,)), dkv, None, None


class _Maps:
    """φ of a stretch of queries or keys, [B·H, C, d] -> [B·H, C, m] in their dtype and without ε, and the way back."""

    def __init__(
        self,
        b: int,
        heads: int,
        length: int,
        d: int,
        dtype: torch.dtype,
        kernel: str,
        projection: Tensor | None,
        mask_BS: Tensor | None,
        learning: bool,
    ):
        self.b, self.heads, self.d = b, heads, d
        self.kept = learning and kernel == "elu"  # φ is what is given
        numbers = FEATURES_LEARNING if learning else FEATURES
        numbers = KEPT_BYTES // dtype.itemsize if self.kept else numbers
        self.kernel, self.c = kernel, None
        self.eps = EPS_SOFTMAX if kernel == "softmax" else 0.0
        self.projection = None if projection is None else scaled(projection).to(dtype)
        self.num_features = d if projection is None else len(projection)
        if kernel == "softmax":  # one of each pair
            self.projection = self.projection[: self.num_features // 2]
        self.many = max(AT_LEAST, numbers // (b * heads * self.num_features))  # tokens of a stretch
        self.stretches = evenly(slice(0, length), self.many)
        self.mask = None if mask_BS is None else mask_BS.repeat_interleave(heads, 0).unsqueeze(-1)

    def gradients(self, x: Tensor, many: int) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """(Tensors [B, H, S, d] for gradients, what to write into [B·H, S, d]); x [B·H, S, d]."""
        whole = packed_like(x.unflatten(0, (self.b, self.heads)), many)
        # Several clips' heads are no view of them.
        return whole, [g.flatten(0, 1) if self.b == 1 else torch.empty_like(x) for g in whole]

    def joined(self, whole: tuple[Tensor, ...], parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What ``gradients`` gave, written: [B, H, S, d]."""
        return whole if self.b == 1 else tuple(part.unflatten(0, (self.b, self.heads)) for part in parts)

    def sum_keys(self, parts: Iterable[tuple[slice, Tensor, Tensor]]) -> Tensor:
        """kv [B·H, m, d + 1] float32 over (their place, keys, values [B·H, C, d]): Σ_j (φ_j + ε) [v_j, 1]."""
        kv, total = None, None
        for at, k, v in parts:
            phi, shrink = self.keys_online(k, at)
            if kv is None:
                kv = k.new_zeros(len(k), self.num_features, self.d + 1, dtype=wide(k.dtype))
                total = k.new_zeros(len(k), 1, self.d + 1, dtype=wide(k.dtype))
            if shrink is not None:
                kv.mul_(shrink)
            kv[..., : self.d] += torch.bmm(transposed(phi), v)
            kv[..., self.d] += phi.sum(1)
            if self.eps:
                present = v if self.mask is None else v * self.mask[:, at]
                total[..., : self.d] += present.sum(1, keepdim=True)
                total[..., self.d :] += k.shape[1] if self.mask is None else self.mask[:, at].sum(1, keepdim=True)
        return kv.add_(total, alpha=self.eps) if self.eps else kv

    def queries(self, q: Tensor) -> Tensor:
        if self.kernel != "softmax":
            return q if self.kept else plain_features(q, self.kernel, self.projection)
        e, largest = self._mapped(q)
        return _both_signs(e, largest.add_(half_square(q)))

    def keys(self, k: Tensor, at: slice) -> Tensor:
        """Relative to the constant as it is."""
        if self.kernel == "softmax":
            return self._relative(self._mapped(k)[0], k, at)
        phi = k if self.kept else plain_features(k, self.kernel, self.projection)
        return phi if self.mask is None else phi * self.mask[:, at]

    def keys_online(self, k: Tensor, at: slice) -> tuple[Tensor, Tensor | None]:
        """With a constant that also holds for these; and by how much what was summed before must shrink."""
        if self.kernel != "softmax":
            return self.keys(k, at), None
        e, largest = self._mapped(k)
        if self.mask is not None:
            largest.masked_fill_(~self.mask[:, at], lowest(e.dtype))
        new, before = largest.amax(1, keepdim=True).to(wide(e.dtype)), self.c
        self.c = new if before is None else torch.maximum(new, before)
        return self._relative(e, k, at), None if before is None else (before - self.c).exp_()

    def sums(self, phi: Tensor, of: Tensor, out: Tensor | None = None) -> Tensor:
        """(φ + ε) times kv or its gradient."""
        found = torch.bmm(phi, of.to(phi.dtype), out=out)
        return found.add_(self.eps * of.sum(1, keepdim=True).to(phi.dtype)) if self.eps else found

    def back(self, dphi: Tensor, phi: Tensor, x: Tensor, out: Tensor) -> None:
        """Gradient for x. A key that is not there has φ = 0, and so no gradient."""
        if self.kernel == "elu":  # above 0 elu rises by 1, below it by itself plus 1
            torch.mul(dphi, phi.clamp(max=1), out=out)
        elif self.kernel == "relu":
            torch.bmm(dphi.mul_(phi > EPS_RELU), self.projection.expand(len(x), -1, -1), out=out)
        else:
            plus, minus = dphi.mul_(phi).chunk(2, -1)
            total = dphi.sum(-1, keepdim=True)
            torch.addcmul(torch.matmul(plus - minus, self.projection), x, total, value=-(x.shape[-1] ** -0.5), out=out)

    def _mapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(w x of one of each pair, the largest of a token and both signs [B·H, C, 1])."""
        e = torch.matmul(x, self.projection.T)
        return e, torch.maximum(e.amax(-1, keepdim=True), e.amin(-1, keepdim=True).neg_())

    def _relative(self, e: Tensor, k: Tensor, at: slice) -> Tensor:
        """Features of the keys; 0 of those that are not there, whatever they hold."""
        down = half_square(k) + self.c.to(k.dtype)
        return _both_signs(e, down if self.mask is None else down.masked_fill_(~self.mask[:, at], torch.inf))


def _both_signs(e: Tensor, down: Tensor) -> Tensor:
    """exp(e - down), exp(-e - down) side by side: [..., m/2] -> [..., m]."""
    half = e.shape[-1]
    phi = e.new_empty(*e.shape[:-1], 2 * half)
    torch.sub(e, down, out=phi[..., :half])
    torch.sub(down.neg(), e, out=phi[..., half:])
    return exp_(phi)


def half_square(x: Tensor) -> Tensor:
    """|x d^-¼|²/2, [..., 1]."""
    return x.square().sum(-1, keepdim=True).mul_(0.5 * x.shape[-1] ** -0.5)
