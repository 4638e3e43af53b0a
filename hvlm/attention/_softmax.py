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
from typing import Any

import torch
from torch import Tensor

MASKED = -1e30  # finite: a row without any key must not become NaN
SCORES = 1 << 20  # scores that exist at a time


def attend_part(q_BHSd: Tensor, k_BHKd: Tensor, v_BHKd: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(out [B, H, S, d], lse [B, H, S] float32) of all queries over all keys. ``q`` is scaled already.

    bias: float, added to the scores; broadcasts to [B, H, S, K]. A query without any key gets an lse near ``MASKED``.
    """
    return _Dense.apply(q_BHSd, k_BHKd, v_BHKd, bias)


def attend_window(
    q_BHSd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, window: int, causal: bool = False, mask_BS: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(out, lse) of each query over the keys at most ``window`` places away (``causal``: not after it). ``q`` scaled.

    Queries go in blocks; a block's keys are a view into the padded sequence, not a copy. 4 d S (2 window + block)
    multiplications and additions.
    """
    return _Window.apply(q_BHSd, k_BHSd, v_BHSd, window, causal, mask_BS)


def join(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over both sets of keys from (out, lse) over each; the sets must not share a key."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    share = torch.sigmoid(lse_b - lse_a).unsqueeze(-1).to(out_a.dtype)
    return torch.lerp(out_a, out_b, share), torch.logaddexp(lse_a, lse_b)


# -- a block of queries over a block of keys: [n, Q, d], [n, K, d], bias that broadcasts to [n, Q, K] ------------------


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(softmax(q kᵀ + bias), the largest scores), in the dtype of ``q``; ``bias`` has it, too."""
    s = torch.bmm(q, k.mT) if bias is None else torch.baddbmm(bias, q, k.mT)
    return s.softmax(-1), s.amax(-1)


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor) -> Tensor:
    """Into ``out`` [n, Q, d] and ``lse`` [n, Q]; returns the weights."""
    p, largest = _weights(q, k, bias)
    # The largest weight is exp(max - lse): cheaper than another sum of exponentials.
    torch.sub(largest.float(), p.amax(-1).float().log_(), out=lse)
    if out.is_contiguous():
        torch.bmm(p, v, out=out)
    else:
        out.copy_(torch.bmm(p, v))
    return p


def _backward(
    q: Tensor, k: Tensor, v: Tensor, p: Tensor, out: Tensor, dout: Tensor, dlse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``p``: the weights, which are exp(s - lse), for lse is that of these keys."""
    row = (dout * out).sum(-1, dtype=torch.float32).sub_(dlse).unsqueeze(-1).to(q.dtype)
    ds = torch.bmm(dout, v.mT).sub_(row).mul_(p)
    return torch.bmm(ds, k), torch.bmm(ds.mT, q), torch.bmm(p.mT, dout)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        bias = None if bias is None else bias.to(q.dtype)
        for one, rows in _pieces(q, k):
            piece = _piece_of(bias, one, rows, q.shape)
            _forward(q[one][:, rows], k[one], v[one], piece, out[one][:, rows], lse[one][:, rows])
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
            p, _ = _weights(q[one][:, rows], k[one], bias)
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
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int, causal: bool, mask_BS: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        layout = _Layout(q, window, causal, mask_BS)
        qp, kp, vp = layout.queries(q), layout.keys(k), layout.keys(v)
        out, lse = torch.empty_like(qp), qp.new_empty(qp.shape[:3], dtype=torch.float32)
        weights: list[Tensor] = []
        for g, blocks, bias in layout.pieces():
            keys = layout.windows(kp[g], blocks), layout.windows(vp[g], blocks)
            p = _forward(qp[g, blocks], *keys, bias, out[g, blocks], lse[g, blocks])
            if any(ctx.needs_input_grad):
                weights.append(p)  # a window is narrow: kept, not made again
        ctx.save_for_backward(qp, kp, vp, out, *weights)
        ctx.layout = layout
        return layout.unblock(out), layout.unblock(lse.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
        (qp, kp, vp, out, *weights), layout = ctx.saved_tensors, ctx.layout
        dout, dlse = layout.queries(dout.to(qp.dtype)), layout.queries(dlse.unsqueeze(-1)).squeeze(-1)
        dq, dk, dv = torch.empty_like(qp), torch.zeros_like(kp), torch.zeros_like(vp)
        for (g, blocks, _), p in zip(layout.pieces(), weights, strict=True):
            keys = layout.windows(kp[g], blocks), layout.windows(vp[g], blocks)
            given = (out[g, blocks], dout[g, blocks], dlse[g, blocks])
            dq[g, blocks], dk_, dv_ = _backward(qp[g, blocks], *keys, p, *given)
            layout.add_windows(dk[g], dk_, blocks)
            layout.add_windows(dv[g], dv_, blocks)
        return layout.unblock(dq), layout.unpad(dk), layout.unpad(dv), None, None, None


class _Layout:
    """Queries [B·H, blocks, block, d]; keys [B·H, (blocks + left + right)·block, d], of which a block of queries sees
    ``left`` blocks before its own, its own, and ``right`` blocks after it."""

    def __init__(self, q: Tensor, window: int, causal: bool, mask_BS: Tensor | None):
        self.b, self.h, self.s, self.d = q.shape
        self.block = min(64, max(16, window))
        self.left = math.ceil(window / self.block)
        self.right = 0 if causal else self.left
        self.blocks = math.ceil(self.s / self.block)
        self.span = (self.left + 1 + self.right) * self.block
        self.band = _band(self.block, self.left, self.right, window, causal, q.device).to(q.dtype)
        valid = q.new_full((1 if mask_BS is None else self.b, self.s), True, dtype=torch.bool)
        valid = valid if mask_BS is None else mask_BS
        behind = self.blocks * self.block - self.s + self.right * self.block
        padded = torch.nn.functional.pad(valid, (self.left * self.block, behind))
        self.absent = torch.where(padded, 0.0, MASKED).to(q.dtype)  # [1 or B, length of the keys]
        self.whole = mask_BS is None or bool(mask_BS.all())

    def queries(self, x: Tensor) -> Tensor:
        x = x.reshape(self.b * self.h, self.s, x.shape[-1])
        if self.blocks * self.block != self.s:
            x = torch.nn.functional.pad(x, (0, 0, 0, self.blocks * self.block - self.s))
        return x.contiguous().view(self.b * self.h, self.blocks, self.block, -1)

    def keys(self, x: Tensor) -> Tensor:
        length = self.absent.shape[1]
        padded = x.new_zeros(self.b * self.h, length, self.d)
        start = self.left * self.block
        padded[:, start : start + self.s].view(self.b, self.h, self.s, self.d).copy_(x)
        return padded

    def windows(self, x_Ld: Tensor, blocks: slice) -> Tensor:
        """[blocks, span, d], overlapping views."""
        step = self.block * x_Ld.shape[-1]
        shape = (blocks.stop - blocks.start, self.span, x_Ld.shape[-1])
        return x_Ld.as_strided(shape, (step, x_Ld.shape[-1], 1), x_Ld.storage_offset() + blocks.start * step)

    def add_windows(self, into_Ld: Tensor, x: Tensor, blocks: slice) -> None:
        into = into_Ld.view(-1, self.block, self.d)
        n = blocks.stop - blocks.start
        for i, part in enumerate(x.split(self.block, 1)):
            into[blocks.start + i : blocks.start + i + n] += part

    def pieces(self) -> list[tuple[int, slice, Tensor]]:
        """(clip and head, blocks, bias of their scores): first and last blocks apart, for only they see padding."""
        many = max(1, SCORES // 2 // (self.block * self.span))
        if self.whole:
            first = min(self.left, self.blocks)
            last = max(first, self.s // self.block - self.right)
            cuts = [(0, first), *((i, min(i + many, last)) for i in range(first, last, many)), (last, self.blocks)]
        else:
            first, last = 0, 0
            cuts = [(i, min(i + many, self.blocks)) for i in range(0, self.blocks, many)]
        found = []
        for g in range(self.b * self.h):
            absent = self.absent[0 if len(self.absent) == 1 else g // self.h]
            for start, stop in cuts:
                if stop > start:
                    blocks = slice(start, stop)
                    bias = self.band
                    if not first <= start < last:
                        # [blocks, 1, span]: which keys of each window are there
                        bias = bias + self.windows(absent.unsqueeze(-1), blocks).transpose(1, 2)
                    found.append((g, blocks, bias))
        return found

    def unblock(self, x: Tensor) -> Tensor:
        return x.reshape(self.b, self.h, self.blocks * self.block, -1)[:, :, : self.s]

    def unpad(self, x: Tensor) -> Tensor:
        start = self.left * self.block
        return x[:, start : start + self.s].reshape(self.b, self.h, self.s, self.d)


def _band(block: int, left: int, right: int, window: int, causal: bool, device: torch.device) -> Tensor:
    """[1, block, span]: 0 where a query of a block may see a key of its span, ``MASKED`` elsewhere."""
    query = torch.arange(block, device=device)[:, None] + left * block
    key = torch.arange((left + 1 + right) * block, device=device)
    seen = (query - key).abs() <= window
    if causal:
        seen &= key <= query
    return torch.where(seen, 0.0, MASKED).unsqueeze(0)
