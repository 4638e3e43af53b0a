"""Local fusion: every visual token attends to the words and every word to the visual tokens, in one step.

``v2t`` is the direction whose queries are visual tokens, ``t2v`` the one whose queries are words. Each side is joined
with what it attended to, feature by feature, [x; x̃; x ⊙ x̃] -> MLP, and added to what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from hvlm.config.ranges import Probability
from hvlm.fusion._cross import CrossAttention, FeedForward, Gate, best

Update = Literal["chosen", "all"]


class LocalFusion(nn.Module):
    """(visual [K, V, D], text [K, P, D], masks) -> both, of the same shapes. Without any word tokens stay as they were.

    top_k: every query keeps the keys with its so many highest scores and all others weigh nothing; None: all keys.
    update: with ``top_k``, which visual tokens learn of the text: those that a word has ``chosen``, or ``all``.
    compute_from: from so many visual tokens on, only what is chosen is computed; below, all scores are made and masked.
        The two give the same.
    text_side, vision_side: whether the words learn of the visual tokens, and these of the words; a side that does not
        comes out as it was.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        mlp_ratio: float = 1.0,
        dropout: Probability = 0.0,
        gate: float = 1.0,
        text_side: bool = True,
        vision_side: bool = True,
        top_k: int | None = None,
        update: Update = "chosen",
        compute_from: int = 512,
    ):
        super().__init__()
        self.top_k, self.update, self.compute_from, self.text_side = top_k, update, compute_from, text_side
        hidden = max(1, round(mlp_ratio * dim))
        self.norm_v, self.norm_t = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.vision_side = vision_side
        if vision_side:
            self.v2t = CrossAttention(dim, num_heads, dropout)
            self.mlp_v, self.gate_v = FeedForward(3 * dim, hidden, dim, dropout), Gate(gate)
        if text_side:
            self.t2v = CrossAttention(dim, num_heads, dropout)
            self.mlp_t, self.gate_t = FeedForward(3 * dim, hidden, dim, dropout), Gate(gate)
        self.watch: Callable[[Tensor, Tensor], None] | None = None  # called with the normed states of both sides

    def forward(self, v_KVD: Tensor, t_KPD: Tensor, mask_KV: Tensor, mask_KP: Tensor) -> tuple[Tensor, Tensor]:
        k, visual, words = self.top_k, v_KVD.shape[1], t_KPD.shape[1]
        if k is None or k >= max(visual, words):
            return self._fuse(v_KVD, t_KPD, mask_KV, mask_KP, mask_KV & mask_KP.any(1, keepdim=True))
        return self._sparse(v_KVD, t_KPD, mask_KV, mask_KP, fast=visual >= self.compute_from)

    def reference(self, v_KVD: Tensor, t_KPD: Tensor, mask_KV: Tensor, mask_KP: Tensor) -> tuple[Tensor, Tensor]:
        """The same with all scores; those of keys that are not chosen are masked."""
        return self._sparse(v_KVD, t_KPD, mask_KV, mask_KP, fast=False)

    def _sparse(
        self, v_KVD: Tensor, t_KPD: Tensor, mask_KV: Tensor, mask_KP: Tensor, fast: bool
    ) -> tuple[Tensor, Tensor]:
        k = self.top_k or max(v_KVD.shape[1], t_KPD.shape[1])
        with torch.no_grad():
            v, t = self.norm_v(v_KVD), self.norm_t(t_KPD)
            scores = self.t2v.scores(t, v) if self.text_side else self.v2t.scores(v, t).mT
            pairs_KPV = best(scores, mask_KV, k) & mask_KP.unsqueeze(-1)  # a word that is none chooses none
            needed_KV = pairs_KPV.any(1)
            learns_KV = needed_KV if self.update == "chosen" else mask_KV & mask_KP.any(1, keepdim=True)
        if not fast:
            return self._fuse(v_KVD, t_KPD, mask_KV, mask_KP, learns_KV, pairs_KPV)
        # The tokens that any word of the row has chosen, in front; shorter rows are filled up with others.
        most = max(int(needed_KV.sum(1).max()), 1)
        index_KM = torch.argsort(needed_KV.to(torch.uint8), dim=1, descending=True, stable=True)[:, :most]
        wide = index_KM.unsqueeze(-1).expand(-1, -1, v_KVD.shape[-1])
        some_KMD = v_KVD.gather(1, wide)
        mask_KM, needed_KM = mask_KV.gather(1, index_KM), needed_KV.gather(1, index_KM)
        pairs_KPM = pairs_KPV.gather(2, index_KM.unsqueeze(1).expand(-1, pairs_KPV.shape[1], -1))
        if self.update == "chosen":
            some, text = self._fuse(some_KMD, t_KPD, mask_KM, mask_KP, needed_KM, pairs_KPM)
            return v_KVD.scatter(1, wide, some.to(v_KVD.dtype)), text
        v, t = self.norm_v(v_KVD), self.norm_t(t_KPD)
        if self.watch is not None:
            self.watch(v, t)
        text = self._text(t_KPD, t, self.norm_v(some_KMD), pairs_KPM) if self.text_side else t_KPD
        return self._vision(v_KVD, v, t, mask_KP, learns_KV), text

    def _fuse(
        self,
        v_KVD: Tensor,
        t_KPD: Tensor,
        mask_KV: Tensor,
        mask_KP: Tensor,
        learns_KV: Tensor,
        pairs_KPV: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        v, t = self.norm_v(v_KVD), self.norm_t(t_KPD)
        if self.watch is not None:
            self.watch(v, t)
        text = t_KPD
        if self.text_side:
            text = self._text(t_KPD, t, v, mask_KV if pairs_KPV is None else pairs_KPV)
        if not self.vision_side:
            return v_KVD, text
        return self._vision(v_KVD, v, t, mask_KP, learns_KV), text

    def _vision(self, v_KVD: Tensor, v: Tensor, t: Tensor, mask_KP: Tensor, learns_KV: Tensor) -> Tensor:
        seen = mask_KP
        if self.top_k is not None and self.top_k < t.shape[1]:
            seen = best(self.v2t.scores(v, t), mask_KP, self.top_k)
        found = self.v2t(v, t, seen)
        update = self.mlp_v(torch.cat([v, found, v * found], -1))
        return self.gate_v(v_KVD, update.masked_fill(~learns_KV.unsqueeze(-1), 0))

    def _text(self, t_KPD: Tensor, t: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        found = self.t2v(t, v, seen)
        return self.gate_t(t_KPD, self.mlp_t(torch.cat([t, found, t * found], -1)))
