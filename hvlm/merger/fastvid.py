"""FastVID (Shen et al. 2025, "Dynamic Density Pruning"), written from its description.

Cut the clip where neighbouring frames differ; of every frame keep what the encoder attends to most; of every segment
keep density peaks of some frames, and let the rest of the segment join them.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.config.ranges import Ge, Lt, PositiveInt, Share
from hvlm.merger._base import Choice, MergerRoom
from hvlm.merger._scores import Saliency, View, saliency_of
from hvlm.merging import best_of_each


class FastVID(MergerRoom):
    """segments: at least so many (c); null: one for every four frames, as the published 8 are for 32. threshold: cosine
    of two frames' means below which there is a cut (tau). density: share d of the budget for density peaks, the rest
    goes to the most attended patches of every frame. every: peaks are sought in every p-th frame of a segment.
    neighbours: k of the density. weight: a peak keeps at least this share of its token (beta), max(1 / (members + 1),
    beta). Published: 0.9, 0.4, 4, 4, 0.6.

    density of i = exp(-mean squared distance to its k nearest); score = density x distance to the nearest denser one.
    With ``scope=frame`` every frame is its own segment.
    """

    wants_saliency: str | None = "attention"

    def __init__(
        self,
        keep: Share = 0.25,
        segments: PositiveInt | None = None,
        threshold: float = 0.9,
        density: Annotated[float, Ge(0), Lt(1)] = 0.4,
        every: PositiveInt = 4,
        neighbours: PositiveInt = 4,
        weight: float = 0.6,
        **room: Any,
    ):
        super().__init__(keep, **room)
        self.segments, self.threshold, self.density = segments, threshold, density
        self.every, self.neighbours, self.weight = every, neighbours, weight

    def choose(self, view: View) -> Choice:
        attention: Saliency = "attention"
        score, budget = saliency_of(view, attention), view.even_BT()
        attended = ((1 - self.density) * budget).round().long().clamp(min=0)
        kept = best_of_each(score, attended)
        clips = [self._clip(view, i, kept[i], (budget - attended)[i]) for i in range(len(kept))]
        return Choice(torch.stack([root for root, _ in clips]), torch.stack([weight for _, weight in clips]))

    def _clip(self, view: View, i: int, kept_TN: Tensor, peaks_T: Tensor) -> tuple[Tensor, Tensor]:
        t, n = kept_TN.shape
        device = kept_TN.device
        root = torch.arange(t * n, device=device)
        weight = torch.ones(t * n, device=device)
        frames = int(view.mask_BT[i].sum())
        x_TND = view.x_BTND[i]
        for first, last in self._cut(x_TND[:frames]):
            # Peaks of the segment, shared among every p-th of its frames; what a frame cannot take, the next one does.
            want = int(peaks_T[first:last].sum())
            places = torch.arange(first * n, last * n, device=device)
            free = places[~kept_TN[first:last].flatten()]
            anchors: list[Tensor] = []
            chosen = list(range(first, last, 1 if self.per_frame else self.every))
            # Frames that are asked after the others, should those not have enough patches.
            for order, f in enumerate([*chosen, *(g for g in range(first, last) if g not in chosen)]):
                inside = free[(free >= f * n) & (free < (f + 1) * n)]
                left = want - sum(len(a) for a in anchors)
                share = -(-left // (len(chosen) - order)) if order < len(chosen) else left
                anchors.append(inside[self._peaks(x_TND.flatten(0, 1)[inside], min(share, len(inside)))])
            anchor = torch.cat(anchors)
            rest = free[~torch.isin(free, anchor)]
            if not len(rest):
                continue
            # Without a peak of its own the segment joins what it attended to.
            into = anchor if len(anchor) else places[kept_TN[first:last].flatten()]
            unit = F.normalize(x_TND.flatten(0, 1), dim=-1)
            root[rest] = into[(unit[rest] @ unit[into].T).argmax(1)]
            members = torch.zeros(t * n, device=device).index_add(0, root[rest], torch.ones(len(rest), device=device))
            share_of_anchor = torch.maximum(1 / (members + 1), torch.full_like(members, self.weight))
            weight[into] = torch.where(members[into] > 0, share_of_anchor[into], 1.0)
            weight[rest] = ((1 - share_of_anchor) / members.clamp(min=1))[root[rest]]
        return root, weight

    def _cut(self, x_TND: Tensor) -> list[tuple[int, int]]:
        """[first, last) of the segments: cuts below the threshold, and the deepest others up to ``segments``."""
        frames = len(x_TND)
        if self.per_frame:
            return [(f, f + 1) for f in range(frames)]
        mean = F.normalize(x_TND.mean(1), dim=-1)
        similar = (mean[1:] * mean[:-1]).sum(-1)
        rank = similar.argsort(stable=True).argsort()
        segments = -(-frames // 4) if self.segments is None else self.segments
        cuts = (similar < self.threshold) | (rank < segments - 1)
        edges = [0, *(cuts.nonzero().flatten() + 1).tolist(), frames]
        return [(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]

    def _peaks(self, x_AD: Tensor, count: int) -> Tensor:
        """Indices of the ``count`` highest density peaks."""
        if count == 0:
            return torch.empty(0, dtype=torch.long, device=x_AD.device)
        distance = torch.cdist(x_AD, x_AD)
        nearest = distance.topk(min(self.neighbours + 1, len(x_AD)), largest=False).values[:, 1:]
        scale = x_AD.shape[1] ** 0.5  # distances grow with the width
        density = torch.exp(-((nearest / scale) ** 2).mean(1)) if nearest.shape[1] else x_AD.new_ones(len(x_AD))
        # Ties in density are broken by the place, so that of equal patches one is the denser.
        order = density.argsort(descending=True, stable=True).argsort()
        denser = order[None] < order[:, None]
        away = distance.masked_fill(~denser, torch.inf).amin(1)
        away = torch.where(away.isinf(), distance.max(), away)
        return (density * away).argsort(descending=True, stable=True)[:count]
