"""Adaptive: what stands out or moves stays as it is, everything else is pooled into a few background tokens.

A question about a thing needs the patches that show it, unmixed; one about the scene needs its average. Mergers that
let the rest join what was kept blur both, and those that drop it lose the scene. So the budget has two parts. And of
several things each needs some, so what is like something that is kept counts less and joins that.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.merger._room import Choice, MergerRoom
from hvlm.merger._scores import NEEDS_ENCODER, Motion, Saliency, View, mean_one, motion_of, saliency_of
from hvlm.merging import best_of_clip

_SCORES = 1 << 22  # cosines at a time: 16 MB, whatever the length of the clip


class AdaptiveMerge(MergerRoom):
    """background: share of a clip's tokens for its background, at most one a frame. The clip is cut into as many
    segments of equal length; in each, the patch most like the mean of its less remarkable half stands for all that is
    not kept. The rest of the budget goes to the highest scores of the clip, at least one token a frame: frames in which
    much happens have many tokens, still ones share.

    A patch's score is (saliency + motion_weight * motion) * (1 - likeness), the first two with mean 1 over the clip.
    likeness: cosine to its leader, the most alike patch that scores higher before this factor and is at most ``reach``
    frames away; so each thing gets a few tokens, not the largest all. (Density peaks, Rodriguez & Laio 2014: density
    times distance to what is denser.) A patch that is not kept, but whose leader is, joins it where likeness >
    ``alike``, and not the background.

    saliency, motion: as in the mergers of those names (``distance`` and ``features`` need nothing but the features).
    reach: null leaves likeness out. With ``scope=frame`` it is 0, and every frame that has two tokens or more has a
    background token of its own; in a frame with a single one, patches count in its mean as much as their score.
    """

    def __init__(
        self,
        keep: float = 0.25,
        background: float = 0.2,
        saliency: Saliency = "distance",
        motion: Motion = "features",
        motion_weight: float = 2.0,
        reach: int | None = 2,
        alike: float = 0.8,
        proportional: bool = True,
        **room: Any,
    ):
        super().__init__(keep, proportional=proportional, **room)
        if not 0 < background < 1:
            raise ValueError(f"merger.background={background}: expected a share between 0 and 1")
        if motion_weight < 0:
            raise ValueError(f"merger.motion_weight={motion_weight}: expected 0 or more")
        if reach is not None and reach < 0:
            raise ValueError(f"merger.reach={reach}: expected 0 frames or more, or null")
        if not 0 <= alike <= 1:
            raise ValueError(f"merger.alike={alike}: expected a cosine between 0 and 1")
        self.background, self.saliency = background, saliency
        self.motion, self.motion_weight = motion, motion_weight
        self.reach, self.alike = reach, alike
        self.wants_saliency = saliency if saliency in NEEDS_ENCODER else None
        self.wants_flow = motion == "flow" and motion_weight > 0

    def choose(self, view: View) -> Choice:
        score = mean_one(saliency_of(view, self.saliency), view.mask_BT)
        if self.motion_weight:
            score = score + self.motion_weight * mean_one(motion_of(view, self.motion), view.mask_BT)
        if self.reach is None:
            return self._in_frames(view, score) if self.per_frame else self._in_clip(view, score)
        likeness_BS, leader_BS = leaders(view, score, 0 if self.per_frame else self.reach)
        score = score * (1 - likeness_BS).view_as(score)
        roots, weight = self._in_frames(view, score) if self.per_frame else self._in_clip(view, score)
        own = torch.arange(roots.shape[1], device=roots.device)
        # Whom others join is a background token; the rest of the kept ones are things.
        joined = torch.zeros_like(roots).scatter_add(1, roots, (roots != own).long()) > 0
        thing = (roots == own) & ~joined
        follows = (roots != own) & (likeness_BS > self.alike) & thing.gather(1, leader_BS)
        return Choice(torch.where(follows, leader_BS, roots), weight)

    def _in_clip(self, view: View, score_BTN: Tensor) -> Choice:
        frames = view.mask_BT.sum(1)
        wanted = (self.background * view.total_B).round().long().clamp(min=1)
        # A background token is also its frame's first; the other frames need one of their own.
        wanted = torch.minimum(wanted, frames)
        now = view.mask_BT.cumsum(1) - 1
        segment_BT = (now * wanted.unsqueeze(1)) // frames.clamp(min=1).unsqueeze(1)
        anchor_BG = background_of(view, score_BTN, segment_BT, int(wanted.max()))
        exists = torch.arange(anchor_BG.shape[1], device=frames.device) < wanted.unsqueeze(1)
        forced = torch.zeros_like(score_BTN.flatten(1)).scatter_add(1, anchor_BG, exists.to(score_BTN.dtype)) > 0
        highest = score_BTN.masked_fill(forced.view_as(score_BTN), torch.inf)
        kept = best_of_clip(highest, view.mask_BT, view.total_B, view.least).flatten(1)
        own = torch.arange(kept.shape[1], device=kept.device)
        background = anchor_BG.gather(1, segment_BT.repeat_interleave(score_BTN.shape[2], 1).clamp(min=0))
        return Choice(torch.where(kept, own, background))

    def _in_frames(self, view: View, score_BTN: Tensor) -> Choice:
        b, t, n = score_BTN.shape
        budget = best_of_clip(score_BTN, view.mask_BT, view.total_B, view.least).sum(-1)
        segment_BT = torch.arange(t, device=budget.device).expand(b, t)
        anchor_BT = background_of(view, score_BTN, segment_BT, t)
        pools = (budget > 1) & (budget < n)
        own = torch.arange(t * n, device=budget.device).view(1, t, n)
        is_anchor = (own == anchor_BT.unsqueeze(-1)) & pools.unsqueeze(-1)
        rank = score_BTN.masked_fill(is_anchor, torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(-1)
        kept = rank < budget.unsqueeze(-1)
        top = (rank == 0).long().argmax(-1) + n * torch.arange(t, device=budget.device)
        into = torch.where(pools, anchor_BT, top).unsqueeze(-1)
        weight = torch.where(budget.unsqueeze(-1) == 1, score_BTN.clamp(min=1e-6), 1.0)
        return Choice(torch.where(kept, own, into).flatten(1), weight.flatten(1))


def background_of(view: View, score_BTN: Tensor, segment_BT: Tensor, segments: int) -> Tensor:
    """Place (in the clip) of the patch that is most like its segment's background, int64 [B, segments].

    The background: what scores no higher than its frame's median. Segments without frames get some place.
    """
    b, t, n = score_BTN.shape
    unit = F.normalize(view.x_BTND, dim=-1).flatten(1, 2)
    low = (score_BTN <= score_BTN.median(-1, keepdim=True).values) & view.mask_BT.unsqueeze(-1)
    low, segment = low.flatten(1), segment_BT.clamp(min=0).repeat_interleave(n, 1)
    mean = unit.new_zeros(b, segments, unit.shape[-1])
    mean.scatter_add_(1, segment.unsqueeze(-1).expand_as(unit), unit * low.unsqueeze(-1))
    likeness = (unit * F.normalize(mean, dim=-1).gather(1, segment.unsqueeze(-1).expand_as(unit))).sum(-1)
    likeness = likeness.masked_fill(~low, -torch.inf)
    best = likeness.new_full((b, segments), -torch.inf).scatter_reduce(1, segment, likeness, "amax")
    place = torch.arange(t * n, device=unit.device).expand(b, -1)
    at_best = torch.where(low & (likeness == best.gather(1, segment)), place, t * n - 1)
    return torch.full((b, segments), t * n - 1, device=unit.device).scatter_reduce(1, segment, at_best, "amin")


def leaders(view: View, score_BTN: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Of every patch, the most alike one (cosine) that scores higher, at most ``reach`` frames away.

    Likeness, float [B, T * N], 0 where nothing scores higher; place in the clip, int64 [B, T * N]. O(reach T N² D).
    """
    b, t, n, _ = view.x_BTND.shape
    unit = F.normalize(view.x_BTND, dim=-1)
    likeness = torch.zeros_like(score_BTN)
    leader = torch.arange(t * n, device=unit.device).view(1, t, n).repeat(b, 1, 1)
    block = max(1, _SCORES // (b * n * n))

    def lead(frames: slice, found: Tensor, at: Tensor, first: int) -> None:
        """Patch ``at`` of the frames from ``first`` on is as alike as ``found``."""
        place = at + n * (first + torch.arange(at.shape[1], device=at.device).view(1, -1, 1))
        better = found > likeness[:, frames]
        leader[:, frames] = torch.where(better, place, leader[:, frames])
        likeness[:, frames] = torch.where(better, found, likeness[:, frames])

    for offset in range(min(reach, t - 1) + 1):
        for start in range(0, t - offset, block):
            stop = min(start + block, t - offset)
            early, late = slice(start, stop), slice(start + offset, stop + offset)
            cosine = unit[:, early] @ unit[:, late].transpose(2, 3) * view.mask_BT[:, late, None, None]
            lower = score_BTN[:, early, :, None] < score_BTN[:, late, None, :]
            lead(early, *(cosine * lower).max(3), start + offset)
            if offset:  # the other way round; within a frame it is the same
                lower = score_BTN[:, early, :, None] > score_BTN[:, late, None, :]
                lead(late, *(cosine * lower).max(2), start)
    return likeness.clamp(max=1).flatten(1), leader.flatten(1)
