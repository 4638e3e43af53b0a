"""Strided attention: every query, but only every k-th key, and one's own.

Child et al. 2019 (Sparse Transformers) factorise attention into local and strided patterns; this is the strided one. A
token i attends to {phase, phase + k, phase + 2k, ...} and to itself:

    y_i = softmax over j in {phase + k m} ∪ {i} of q_i k_j / √d,  times v_j.

Cost: 4 S (S/k + 1) D operations beside the projections' 8 S D²; still quadratic for a fixed k (S √S for k near
√S). A stream keeps the strided keys and values: 2 D ⌈S/k⌉ values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.attention import _softmax
from hvlm.attention._base import MixingRoom, check_streams, no_memory
from hvlm.attention._flex import flex_attend, strided_mask
from hvlm.attention._qkv import Heads, KeysValues, packed_like
from hvlm.attention._softmax import lse_of, softmax_and_largest
from hvlm.config.ranges import NonNegativeInt, PositiveInt, Probability
from hvlm.functional import attend, dtype_here, lowest, wide

PROJECTED = 1024  # tokens that are projected at once where nothing is learned


class StridedState(NamedTuple):
    """The chosen keys and values so far, and the place of the next token."""

    chosen: KeysValues
    place: int


class StridedAttention(Heads):
    """stride: k. phase: the first key. causal: keys up to one's own place. dim, num_heads, dropout: see ``Heads``."""

    def __init__(
        self,
        stride: PositiveInt = 4,
        dim: int = 768,
        num_heads: int = 12,
        phase: NonNegativeInt = 0,
        causal: bool = False,
        dropout: Probability = 0.0,
    ):
        super().__init__(dim, num_heads, dropout)
        if stride < 1 or not 0 <= phase < stride:
            raise ValueError(f"attention.stride={stride}, attention.phase={phase}: expected 0 <= phase < stride")
        self.stride, self.phase, self.causal = stride, phase, causal

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """[B, S, dim] -> [B, S, dim]. mask_BS: bool, False where nobody may look; there the output means nothing."""
        no_memory(self, memory)
        if x_BSD.is_cuda:  # not tested on a GPU; equal to the other path on a CPU
            q, k, v = self.project(x_BSD)
            mask = strided_mask(x_BSD.shape[1], self.stride, self.phase, self.causal, x_BSD.device)
            return self.finish(flex_attend(q, k, v, mask, mask_BS)[0])
        long = x_BSD.shape[1] > max(self.phase, PROJECTED)  # the tokens of short clips are better projected together
        if long and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            return self.dropout(_strided_lean(x_BSD, self, mask_BS))
        return self.finish(self.attend(*self.project(x_BSD, scaled=False), mask_BS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask_BS: Tensor | None) -> Tensor:
        """[B, H, S, d] each, ``q`` not scaled."""
        if q.shape[2] <= self.phase:
            return v
        return _Strided.apply(q, k, v, self.stride, self.phase, self.causal, mask_BS)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, mask_BS: Tensor | None) -> Tensor:
        """The same with all scores and a mask; ``q`` scaled."""
        place = torch.arange(q.shape[2], device=q.device)
        seen = (place - self.phase) % self.stride == 0
        seen = (seen & (place <= place[:, None]) if self.causal else seen.expand(len(place), -1))[None, None]
        if mask_BS is not None:
            seen = seen & mask_BS[:, None, None]
        return attend(q, k, v, seen | torch.eye(len(place), dtype=torch.bool, device=q.device), scale=1.0)

    def step(self, x_B1D: Tensor, state: StridedState | None = None) -> tuple[Tensor, StridedState]:
        """One more token of a stream: ([B, 1, dim], the new state). Equals the causal pass."""
        check_streams(self.causal)
        q, k, v = self.project(x_B1D)
        before = StridedState(KeysValues(k[:, :, :0], v[:, :, :0]), 0) if state is None else state
        seen, place = before.chosen.followed_by(k, v), before.place
        stays = place >= self.phase and (place - self.phase) % self.stride == 0
        return self.finish(attend(q, *seen, scale=1.0)), StridedState(seen if stays else before.chosen, place + 1)

    def flops(self, length: int) -> int:
        keys = len(range(self.phase, length, self.stride))
        return self.projection_flops(length) + 4 * length * (keys + 1) * self.dim

    def state_bytes(self, length: int, bytes_per_value: int = 4) -> int:
        return 2 * len(range(self.phase, length, self.stride)) * self.dim * bytes_per_value


class _Strided(torch.autograd.Function):
    """Attention over the chosen keys, out, then one's own value v_i with the weight σ(s_ii - lse_i) that it has beside
    them: y = out + σ (v - out). Scores exist for some queries at a time; kept are y and σ.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, stride: int, phase: int, causal: bool, mask_BS: Tensor | None
    ) -> Tensor:
        ctx.chosen, ctx.causal, ctx.mask, ctx.scale = slice(phase, None, stride), causal, mask_BS, q.shape[3] ** -0.5
        b, h, s, d = q.shape
        y = q.new_empty(b, s, h, d).transpose(1, 2)  # heads come together again without a copy
        share = q.new_empty(b, h, s, dtype=wide(q.dtype))
        keys, values = (k[:, :, ctx.chosen] * ctx.scale).contiguous(), v[:, :, ctx.chosen].contiguous()
        for one, rows, bias in _pieces(ctx, q, keys):
            at, among = (one, slice(None), rows), _starts(rows, ctx.chosen)
            _attend(q[at], k[at], v[at], keys[one], values[one], bias, among, share=share[at], out=y[at])
        ctx.save_for_backward(q, k, v, y, share)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, share = ctx.saved_tensors
        dy = dy.to(q.dtype)
        dq, dk, dv = packed_like(q)
        keys, values = (k[:, :, ctx.chosen] * ctx.scale).contiguous(), v[:, :, ctx.chosen].contiguous()
        dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
        for one, rows, bias in _pieces(ctx, q, keys):
            q_, k_, v_, dy_ = (t[one, :, rows] for t in (q, k, v, dy))
            p, _ = softmax_and_largest(q_, keys[one], bias)
            own = share[one, :, rows].unsqueeze(-1)
            p *= (1 - own).to(p.dtype)
            # ds_ij = p_ij (dy_i v_j - dy_i y_i), and the same for one's own
            row = (dy_ * y[one, :, rows]).sum(-1, keepdim=True, dtype=own.dtype)
            down = ((dy_ * v_).sum(-1, keepdim=True, dtype=own.dtype) - row).mul_(own).mul_(ctx.scale).to(q.dtype)
            dvalues[one] += torch.bmm(p.mT, dy_)
            ds = torch.bmm(dy_, values[one].mT).sub_(row.to(q.dtype)).mul_(p)
            dkeys[one] += torch.bmm(ds.mT, q_)
            torch.addcmul(torch.bmm(ds, keys[one]), down, k_, out=dq[one, :, rows])
            torch.mul(down, q_, out=dk[one, :, rows])
            torch.mul(own.to(q.dtype), dy_, out=dv[one, :, rows])
        dk[:, :, ctx.chosen] += dkeys * ctx.scale
        dv[:, :, ctx.chosen] += dvalues
        return dq, dk, dv, None, None, None, None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, among: slice,
    share: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """Of some rows, [H, C, d] each: y into ``out`` and σ [H, C] into ``share``. keys [H, n, d] scaled; among: rows that
    are themselves among the chosen, and have seen themselves there."""
    p, largest = softmax_and_largest(q, keys, bias)
    own = (q * k).sum(-1, dtype=share.dtype).mul_(q.shape[-1] ** -0.5)
    torch.sigmoid(own.sub_(lse_of(p, largest)), out=share)[:, among] = 0.0
    torch.lerp(torch.bmm(p, values), v, share.unsqueeze(-1).to(q.dtype), out=out)


@torch.no_grad()
def _strided_lean(x_BSD: Tensor, layer: StridedAttention, mask_BS: Tensor | None) -> Tensor:
    """[B, S, D] -> [B, S, D], projections in and out included, where nothing is learned: a stretch of tokens at a time,
    in memory that is used again. Keys and values of the chosen are projected twice."""
    b, s, width = x_BSD.shape
    dtype = dtype_here(x_BSD)
    weight, bias, out_weight, out_bias = layer.weights(dtype)
    chosen, heads = slice(layer.phase, None, layer.stride), layer.num_heads
    y = x_BSD.new_empty(x_BSD.shape, dtype=dtype)
    many = min(PROJECTED, s)
    room, read = y.new_empty(many, 3 * width), y.new_empty(many, heads, layer.head_dim)
    share = y.new_empty(heads, many, dtype=wide(dtype))
    with torch.autocast(x_BSD.device.type, enabled=False):
        for clip, x in enumerate(x_BSD):
            kv = F.linear(x[chosen].to(dtype), weight[width:], bias[width:]).view(-1, 2, heads, layer.head_dim)
            kv[:, 0] *= layer.head_dim**-0.5
            keys, values = (of.contiguous() for of in kv.permute(1, 2, 0, 3))  # read with every stretch of queries
            absent = None if mask_BS is None else mask_BS[clip]
            for group in (slice(start, min(start + many, s)) for start in range(0, s, many)):
                count = group.stop - group.start
                torch.addmm(bias, x[group].to(dtype), weight.T, out=room[:count])
                qkv = room[:count].view(count, 3, heads, -1).permute(1, 2, 0, 3)
                for rows in _stretches(group, heads, layer.head_dim, keys.shape[1]):
                    at = slice(rows.start - group.start, rows.stop - group.start)
                    seen, among = _bias(rows, chosen, layer.causal, absent, y), _starts(rows, chosen)
                    into = {"share": share[:, at], "out": read[at].transpose(0, 1)}
                    _attend(*qkv[:, :, at], keys, values, seen, among, **into)
                torch.addmm(out_bias, read[:count].flatten(1), out_weight.T, out=y[clip, group])
    return y


def _pieces(ctx: Any, q: Tensor, keys: Tensor) -> Iterator[tuple[int, slice, Tensor | None]]:
    """(clip, rows, what is added to their scores over all heads), with scores that fit ``SCORES``."""
    b, h, s, d = q.shape
    for one in range(b):
        absent = None if ctx.mask is None else ctx.mask[one]
        for rows in _stretches(slice(0, s), h, d, keys.shape[2]):
            yield one, rows, _bias(rows, ctx.chosen, ctx.causal, absent, q)


def _stretches(rows: slice, heads: int, d: int, keys: int) -> Iterator[slice]:
    many = max(16, _softmax.SCORES // (8 * heads * max(d, keys)))
    for start in range(rows.start, rows.stop, many):
        yield slice(start, min(start + many, rows.stop))


def _bias(rows: slice, chosen: slice, causal: bool, mask_S: Tensor | None, like: Tensor) -> Tensor | None:
    """What is added to the scores of ``rows``, [C or 1, n]."""
    bias = None if mask_S is None else torch.where(mask_S[chosen], 0.0, lowest(like.dtype))
    if causal:
        row = torch.arange(rows.start, rows.stop, device=like.device)
        key = torch.arange(chosen.start, like.shape[-2], chosen.step, device=like.device)
        later = torch.where(key <= row[:, None], 0.0, lowest(like.dtype))
        bias = later if bias is None else later + bias
    return None if bias is None else bias.to(like.dtype)


def _starts(rows: slice, chosen: slice) -> slice:
    """Which of ``rows`` are among the chosen."""
    return slice((chosen.start - rows.start) % chosen.step if rows.start > chosen.start else chosen.start - rows.start,
                 None, chosen.step)  # fmt: skip


class StridedRoom(MixingRoom):
    """See ``StridedAttention`` and ``MixingRoom``."""

    layer = StridedAttention
