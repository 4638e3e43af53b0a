"""Windows without gradients: keys and values exist once, and queries for a stretch of tokens at a time.

What ``_softmax.attend_window`` does, together with the projections of a layer, for when nothing is learned. Keys and
values come out of their projection into one padded buffer, of which a block of queries sees a view; queries are
projected, used and projected out again stretch by stretch. A CPU pays for every page of memory that it touches for the
first time: that, and not arithmetic, is what this saves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.attention._qkv import Heads
from hvlm.attention._softmax import Layout, lse_of
from hvlm.functional import dtype_here, transposed, wide

Join = Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]
Cut = tuple[slice, Tensor]  # blocks, and what is added to their scores
EDGES = 4  # blocks more than usual that may be projected at once


@torch.no_grad()
def window_lean(
    x_BSD: Tensor,
    heads: Heads,
    window: int,
    causal: bool,
    mask_BS: Tensor | None = None,
    far: Callable[[Tensor, Tensor, Tensor | None], Join] | None = None,
) -> Tensor:
    """[B, S, D] -> [B, S, D], projections in and out included.

    far: what else is attended to. Called with keys, values [1, H, S, d] and mask of a clip, it returns what is called
        with scaled queries [1, H, C, d] and (out, lse) over their windows, and gives the joint out.
    """
    b, s, width = x_BSD.shape
    dtype = dtype_here(x_BSD)
    layout = Layout(b, heads.num_heads, s, heads.head_dim, dtype, x_BSD.device, window, causal, mask_BS)
    weight, bias, out_weight, out_bias = heads.weights(dtype)
    y = x_BSD.new_empty(b, s, width, dtype=dtype)
    start = layout.left * layout.block
    kv = x_BSD.new_empty(layout.absent.shape[1], 2 * width, dtype=dtype)
    kv[:start] = 0.0
    kv[start + s :] = 0.0
    for clip in range(b):
        x = x_BSD[clip].to(dtype)
        torch.addmm(bias[width:], x, weight[width:].T, out=kv[start : start + s])
        join = None
        if far is not None:
            k, v = kv[start : start + s].view(1, s, 2, heads.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            join = far(k, v, None if mask_BS is None else mask_BS[clip : clip + 1])
        for cuts in _together(layout.cuts(clip)):
            rows = slice(cuts[0][0].start * layout.block, min(cuts[-1][0].stop * layout.block, s))
            q = F.linear(x[rows], weight[:width], bias[:width])
            read = _attend(q, kv, cuts, layout, heads, join)
            torch.addmm(out_bias, read, out_weight.T, out=y[clip, rows])
    return y


def _together(cuts: list[Cut]) -> list[list[Cut]]:
    """What is projected at once: the few blocks at either end, which see padding, would cost a whole reading of the
    weights."""
    groups: list[list[Cut]] = []
    most = max((blocks.stop - blocks.start for blocks, _ in cuts), default=0) + EDGES
    for cut in cuts:
        if groups and cut[0].stop - groups[-1][0][0].start <= most:
            groups[-1].append(cut)
        else:
            groups.append([cut])
    return groups


def _attend(q_CD: Tensor, kv: Tensor, cuts: list[Cut], layout: Layout, heads: Heads, join: Join | None) -> Tensor:
    """What the queries of some blocks read, [C, D]."""
    first, block, h, d = cuts[0][0].start, layout.block, heads.num_heads, heads.head_dim
    count, width = q_CD.shape
    many = cuts[-1][0].stop - first
    if count < many * block:
        q_CD = F.pad(q_CD, (0, 0, 0, many * block - count))
    scale = d**-0.5
    q = q_CD.view(many, block, h, d)
    read = torch.empty_like(q)
    lse = q.new_empty(h, many, block, dtype=wide(q.dtype)) if join else None
    for blocks, band in cuts:
        of = slice(blocks.start - first, blocks.stop - first)
        shape = blocks.stop - blocks.start, layout.span, d
        strides = block * kv.stride(0), kv.stride(0), 1
        for i in range(h):
            at = blocks.start * block * kv.stride(0) + i * d
            p = torch.baddbmm(band, q[of, :, i], transposed(kv.as_strided(shape, strides, at)), alpha=scale)
            largest = p.amax(-1) if join else None
            p = p.softmax(-1)
            if join:
                lse[i, of] = lse_of(p, largest)
            torch.bmm(p, kv.as_strided(shape, strides, at + width), out=read[of, :, i])
    if join is None:
        return read.view(-1, width)[:count]

    def rows(x: Tensor) -> Tensor:
        """[1, H, C, d]."""
        return x.view(-1, h, d)[:count].transpose(0, 1).unsqueeze(0)

    out = join(rows(q) * scale, (rows(read), lse.flatten(1)[None, :, :count]))
    return out.squeeze(0).transpose(0, 1).reshape(count, width)
