"""Softmax attention over a part of the keys, together with the logarithm of the part's weight, so that parts join.

    out_i = sum_j exp(s_ij - lse_i) v_j,   lse_i = log sum_j exp(s_ij),   s_ij = q_i k_j + bias_ij

Attention over two sets of keys is then a weighted mean of the attention over each (``join``), and sparse patterns are
sums of dense pieces: a window and a few global tokens, every k-th token and one's own. Gradients flow through ``out``
and ``lse`` alike:  ds_ij = p_ij (do_i v_j - do_i out_i + dlse_i),  p_ij = exp(s_ij - lse_i).

Scores exist for a few blocks at a time, so memory does not grow with queries x keys; a window's weights, S x (2 window
+ block) of them, are kept for the backward pass. Written with batched products rather than on torch's SDPA, whose
backward on CPUs is 2 to 3 times slower for short rows of keys, and which gives no gradient through lse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hvlm.attention._qkv import packed_like
from hvlm.functional import lowest, transposed, wide

SCORES = 1 << 20  # scores that exist at a time


def attend_part(q_BHSd: Tensor, k_BHKd: Tensor, v_BHKd: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(out [B, H, S, d], lse [B, H, S] float32) of all queries over all keys. ``q`` is scaled already.

    bias: float, added to the scores; broadcasts to [B, H, S, K]. A query without any key gets an lse near
    ``lowest``.
    """
    return _Dense.apply(q_BHSd, k_BHKd, v_BHKd, bias)


def attend_window(
    q_BHSd: Tensor,
    k_BHSd: Tensor,
    v_BHSd: Tensor,
    window: int,
    causal: bool = False,
    mask_BS: Tensor | None = None,
    joins: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """(out, lse) of each query over the keys at most ``window`` places away (``causal``: not after it). ``q`` scaled.

    joins: False where nothing else is attended to and nobody needs the lse: None comes in its place.

    Queries go in blocks; a block's keys are a view into the padded sequence, not a copy. 4 d S (2 window + block)
    multiplications and additions.
    """
    return _Window.apply(q_BHSd, k_BHSd, v_BHSd, window, causal, mask_BS, joins)


def join(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over both sets of keys from (out, lse) over each; the sets must not share a key."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    share = torch.sigmoid(lse_b - lse_a).unsqueeze(-1).to(out_a.dtype)
    return torch.lerp(out_a, out_b, share), torch.logaddexp(lse_a, lse_b)


# -- a block of queries over a block of keys: [n, Q, d], [n, K, d], bias that broadcasts to [n, Q, K] ------------------


def softmax_and_largest(q: Tensor, k: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(softmax(q kᵀ + bias), the largest scores), in the dtype of ``q``; ``bias`` has it, too."""
    s = torch.bmm(q, transposed(k)) if bias is None else torch.baddbmm(bias, q, transposed(k))
    return s.softmax(-1), s.amax(-1)


def lse_of(p: Tensor, largest: Tensor) -> Tensor:
    """float32 at least. The largest weight is exp(max - lse): cheaper than another sum of exponentials."""
    dtype = wide(p.dtype)
    return largest.to(dtype) - p.amax(-1).to(dtype).log()


def _backward(
    q: Tensor, k: Tensor, v: Tensor, p: Tensor, out: Tensor, dout: Tensor, dlse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``p``: the weights, which are exp(s - lse), for lse is that of these keys."""
    row = (dout * out).sum(-1)
    row = row if dlse is None else row.sub_(dlse)
    ds = torch.bmm(dout, transposed(v)).sub_(row.unsqueeze(-1)).mul_(p)
    return torch.bmm(ds, k), torch.bmm(ds.mT, q), torch.bmm(p.mT, dout)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=wide(q.dtype))
        bias = None if bias is None else bias.to(q.dtype)
        for one, rows in _pieces(q, k):
            p, largest = softmax_and_largest(q[one][:, rows], k[one], _piece_of(bias, one, rows, q.shape))
            lse[one][:, rows] = lse_of(p, largest)
            out[one][:, rows] = torch.bmm(p, v[one])
        ctx.save_for_backward(q, k, v, out)
        ctx.bias = bias
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dout = dout.to(q.dtype)
        for one, rows in _pieces(q, k):
            bias = _piece_of(ctx.bias, one, rows, q.shape)
            given = (out[one][:, rows], dout[one][:, rows], dlse[one][:, rows])
            p, _ = softmax_and_largest(q[one][:, rows], k[one], bias)
            dq_, dk_, dv_ = _backward(q[one][:, rows], k[one], v[one], p, *given)
            dq[one][:, rows] = dq_
            dk[one] += dk_
            dv[one] += dv_
        return dq, dk, dv, None


def _pieces(q: Tensor, k: Tensor) -> list[tuple[int, slice]]:
    """(clip, rows) whose scores over all heads fit ``SCORES``."""
    rows = max(16, SCORES // (q.shape[1] * k.shape[2]))
    return [(b, slice(i, i + rows)) for b in range(q.shape[0]) for i in range(0, q.shape[2], rows)]


def _piece_of(bias: Tensor | None, one: int, rows: slice, shape: torch.Size) -> Tensor | None:
    if bias is None:
        return None
    b, h, s, _ = shape
    return bias.expand(b, h, s, bias.shape[-1])[one][:, rows]


class _Window(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        window: int,
        causal: bool,
        mask_BS: Tensor | None,
        joins: bool,
    ) -> tuple[Tensor, Tensor | None]:
        layout = Layout(*q.shape, q.dtype, q.device, window, causal, mask_BS)
        qp, kp, vp = layout.queries(q), layout.keys(k), layout.keys(v)
        # Heads come together again without a copy.
        out = layout.blocked(q.new_empty(layout.b, layout.blocks * layout.block, layout.h, layout.d).transpose(1, 2))
        lse = qp.new_empty(*out.shape[:4], dtype=wide(qp.dtype)) if joins else None
        kept: list[Tensor] = []
        for (b, h), blocks, bias in layout.pieces():
            p = torch.baddbmm(bias, qp[b, h, blocks], transposed(layout.windows(kp[b, h], blocks)))
            largest = p.amax(-1) if joins else None
            p = p.softmax(-1)
            if joins:
                lse[b, h, blocks] = lse_of(p, largest)
            out[b, h, blocks] = torch.bmm(p, layout.windows(vp[b, h], blocks))
            if any(ctx.needs_input_grad):
                kept.append(p)  # a window is narrow: kept, not made again
        ctx.save_for_backward(qp, kp, vp, out, *kept)
        ctx.layout = layout
        return layout.unblocked(out), layout.unblocked(lse) if joins else None

    @staticmethod
    def backward(ctx: Any, dout: Tensor, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        (qp, kp, vp, out, *kept), layout = ctx.saved_tensors, ctx.layout
        dout = layout.queries(dout.to(qp.dtype))
        dlse = None if dlse is None else layout.queries(dlse.unsqueeze(-1)).squeeze(-1)
        grads = packed_like(qp.flatten(2, 3))
        dq, dk, dv = (layout.blocked(grad) for grad in grads)
        dk.zero_(), dv.zero_()
        for ((b, h), blocks, _), p in zip(layout.pieces(), kept, strict=True):
            keys = layout.windows(kp[b, h], blocks), layout.windows(vp[b, h], blocks)
            given = (out[b, h, blocks], dout[b, h, blocks], None if dlse is None else dlse[b, h, blocks])
            dq[b, h, blocks], dk_, dv_ = _backward(qp[b, h, blocks], *keys, p, *given)
            layout.add_windows(dk[b, h], dk_, blocks)
            layout.add_windows(dv[b, h], dv_, blocks)
        return *(grad[:, :, : layout.s] for grad in grads), None, None, None, None


class Layout:
    """Queries [B, H, blocks, block, d]; keys [B, H, (blocks + left + right)·block, d], of which a block of queries sees
    ``left`` blocks before its own, its own, and ``right`` blocks after it."""

    def __init__(
        self,
        b: int,
        h: int,
        s: int,
        d: int,
        dtype: torch.dtype,
        device: torch.device,
        window: int,
        causal: bool,
        mask_BS: Tensor | None,
    ):
        self.b, self.h, self.s, self.d = b, h, s, d
        window = max(0, min(window, s - 1))
        self.block = min(64, max(16, window))
        self.left = math.ceil(window / self.block)
        self.right = 0 if causal else self.left
        self.blocks = math.ceil(s / self.block)
        self.span = (self.left + 1 + self.right) * self.block
        self.band = _band(self.block, self.left, self.right, window, causal, dtype, device)
        valid = torch.ones(1, s, dtype=torch.bool, device=device) if mask_BS is None else mask_BS
        behind = self.blocks * self.block - s + self.right * self.block
        padded = torch.nn.functional.pad(valid, (self.left * self.block, behind))
        self.absent = torch.where(padded, 0.0, lowest(dtype)).to(dtype)  # [1 or B, length of the keys]
        self.whole = mask_BS is None or bool(mask_BS.all())

    def queries(self, x: Tensor) -> Tensor:
        if self.blocks * self.block != self.s:
            x = torch.nn.functional.pad(x, (0, 0, 0, self.blocks * self.block - self.s))
        return self.blocked(x.contiguous())

    def blocked(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.blocks, self.block))

    def unblocked(self, x: Tensor) -> Tensor:
        return x.flatten(2, 3)[:, :, : self.s]

    def keys(self, x: Tensor) -> Tensor:
        start = self.left * self.block
        padded = x.new_empty(self.b, self.h, self.absent.shape[1], self.d)
        padded[:, :, :start] = 0.0
        padded[:, :, start + self.s :] = 0.0
        padded[:, :, start : start + self.s] = x
        return padded

    def windows(self, x_Ld: Tensor, blocks: slice) -> Tensor:
        """[blocks, span, d], overlapping views."""
        step = self.block * x_Ld.shape[-1]
        shape = (blocks.stop - blocks.start, self.span, x_Ld.shape[-1])
        return x_Ld.as_strided(shape, (step, x_Ld.shape[-1], 1), x_Ld.storage_offset() + blocks.start * step)

    def add_windows(self, into: Tensor, x: Tensor, blocks: slice) -> None:
        """Into [blocks, block, d], what the windows [blocks, span, d] of some blocks give; what is padding is lost."""
        for i, part in enumerate(x.split(self.block, 1)):
            first = blocks.start + i - self.left
            start, stop = max(first, 0), min(first + len(part), self.blocks)
            if stop > start:
                into[start:stop] += part[start - first : stop - first]

    def pieces(self) -> Iterator[tuple[tuple[int, int], slice, Tensor]]:
        """((clip, head), blocks, bias of their scores)."""
        for clip in range(self.b):
            cuts = self.cuts(clip)
            yield from (((clip, head), *cut) for head in range(self.h) for cut in cuts)

    def cuts(self, clip: int) -> list[tuple[slice, Tensor]]:
        """(blocks, bias of their scores): first and last blocks apart, for only they see padding."""
        many = max(1, SCORES // 2 // (self.block * self.span))
        if self.whole:
            first = min(self.left, self.blocks)
            last = max(first, self.s // self.block - self.right)
            cuts = [(0, first), *((i, min(i + many, last)) for i in range(first, last, many)), (last, self.blocks)]
        else:
            first, last = 0, 0
            cuts = [(i, min(i + many, self.blocks)) for i in range(0, self.blocks, many)]
        absent = self.absent[0 if len(self.absent) == 1 else clip]
        found = []
        for start, stop in cuts:
            if stop > start:
                blocks, bias = slice(start, stop), self.band
                if not first <= start < last:
                    # [blocks, 1, span]: which keys of each window are there
                    bias = bias + self.windows(absent.unsqueeze(-1), blocks).transpose(1, 2)
                found.append((blocks, bias))
        return found


def _band(
    block: int, left: int, right: int, window: int, causal: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[1, block, span]: 0 where a query of a block may see a key of its span, ``lowest`` elsewhere."""
    query = torch.arange(block, device=device)[:, None] + left * block
    key = torch.arange((left + 1 + right) * block, device=device)
    seen = (query - key).abs() <= window
    if causal:
        seen &= key <= query
    return torch.where(seen, 0.0, lowest(dtype)).to(dtype).unsqueeze(0)
