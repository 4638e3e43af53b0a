"""Adaptive: what stands out or moves stands for what is like it, a few background tokens for the rest.

A question about a thing needs the patches that show it, unmixed; one about the scene needs its average. Mergers that
rank patches lose the scene, and those that average what is alike without a rank blur what is rare. So the budget has
two parts: things, and a background. Of several things each needs tokens, so what is like something more remarkable
counts less. Then everything joins the token it is most like, background or thing, so that a token's size says how much
of the clip it stands for.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.config.ranges import Gt, Lt, NonNegativeFloat, NonNegativeInt, Share
from hvlm.merger._base import Choice, MergerRoom, Places
from hvlm.merger._scores import NEEDS_ENCODER, Motion, Saliency, View, mean_one, motion_of, saliency_of
from hvlm.merging import best_of_clip, best_of_each, roots_in_frame

_SCORES = 1 << 22  # cosines at a time: 16 MB, whatever the length of the clip
_NEAR = 8  # frames within which a patch looks for the token that it joins


class AdaptiveMerge(MergerRoom):
    """background: share of a clip's tokens for its background, at most one a frame. The clip is cut into as many
    segments of equal length; in each, the patch most like the mean of its less remarkable half is kept. The rest of the
    budget goes to the highest scores of the clip, at least one token a frame: frames in which much happens have many
    tokens, still ones share. What is not kept joins the kept patch within 8 frames that it is most like (cosine).

    A patch's score is (saliency + motion_weight * motion) * (1 - likeness) ^ diversity, the first two with mean 1 over
    the clip. likeness: cosine to the most alike patch that scores higher before this factor and is at most ``reach``
    frames away; so each thing gets a few tokens, not the largest all. (Density peaks, Rodriguez & Laio 2014: density
    times distance to what is denser.)

    saliency, motion: as in the mergers of those names (``distance`` and ``features`` need nothing but the features).
    reach: null leaves likeness out. With ``scope=frame`` it is 0, patches join within their frame, and every frame that
    has two tokens or more has a background token of its own; in a frame with a single one, patches count in its mean as
    much as their score.
    """

    def __init__(
        self,
        keep: Share = 0.25,
        background: Annotated[float, Gt(0), Lt(1)] = 0.2,
        saliency: Saliency = "distance",
        motion: Motion = "features",
        motion_weight: NonNegativeFloat = 2.0,
        reach: NonNegativeInt | None = 2,
        diversity: NonNegativeFloat = 0.7,
        proportional: bool = True,
        places: Places = "root",
        **room: Any,
    ):
        super().__init__(keep, proportional=proportional, places=places, **room)
        self.background, self.saliency = background, saliency
        self.motion, self.motion_weight = motion, motion_weight
        self.reach, self.diversity = reach, diversity
        self.wants_saliency = saliency if saliency in NEEDS_ENCODER else None
        self.wants_flow = motion == "flow" and motion_weight > 0

    def choose(self, view: View) -> Choice:
        score = mean_one(saliency_of(view, self.saliency), view.mask_BT)
        if self.motion_weight:
            score = score + self.motion_weight * mean_one(motion_of(view, self.motion), view.mask_BT)
        if self.reach is not None:
            # By rank, so that of equals, as in a still clip, the first is the higher one.
            order = score.flatten(1).argsort(dim=1, descending=True, stable=True)
            rank = -order.argsort(1).view_as(score)
            likeness = likeness_to_higher(view, rank, 0 if self.per_frame else self.reach)
            score = score * (1 - likeness) ** self.diversity
        if self.per_frame:
            kept, weight = self._in_frames(view, score)
            return Choice(roots_in_frame(view.x_BTND, kept), weight)
        return Choice(most_alike_kept(view, self._in_clip(view, score), _NEAR))

    def _in_clip(self, view: View, score_BTN: Tensor) -> Tensor:
        """bool [B, T, N]: what is kept."""
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
        return best_of_clip(highest, view.mask_BT, view.total_B, view.least)

    def _in_frames(self, view: View, score_BTN: Tensor) -> tuple[Tensor, Tensor]:
        """(bool [B, T, N]: what is kept; weights [B, T * N])."""
        b, t, n = score_BTN.shape
        budget = best_of_clip(score_BTN, view.mask_BT, view.total_B, view.least).sum(-1)
        segment_BT = torch.arange(t, device=budget.device).expand(b, t)
        anchor_BT = background_of(view, score_BTN, segment_BT, t)
        pools = (budget > 1) & (budget < n)
        own = torch.arange(t * n, device=budget.device).view(1, t, n)
        is_anchor = (own == anchor_BT.unsqueeze(-1)) & pools.unsqueeze(-1)
        kept = best_of_each(score_BTN.masked_fill(is_anchor, torch.inf), budget)
        weight = torch.where(budget.unsqueeze(-1) == 1, score_BTN.clamp(min=1e-6), 1.0)
        return kept, weight.flatten(1)


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


def likeness_to_higher(view: View, score_BTN: Tensor, reach: int) -> Tensor:
    """Of every patch, the greatest cosine to one that scores higher and is at most ``reach`` frames away, [B, T, N];
    0 where nothing does. O(reach T N² D)."""
    b, t, n, _ = view.x_BTND.shape
    unit = F.normalize(view.x_BTND, dim=-1)
    found = unit.new_zeros(score_BTN.shape)
    block = max(1, _SCORES // (b * n * n))
    for offset in range(min(reach, t - 1) + 1):
        for start in range(0, t - offset, block):
            stop = min(start + block, t - offset)
            early, late = slice(start, stop), slice(start + offset, stop + offset)
            cosine = unit[:, early] @ unit[:, late].transpose(2, 3) * view.mask_BT[:, late, None, None]
            lower = score_BTN[:, early, :, None] < score_BTN[:, late, None, :]
            found[:, early] = torch.maximum(found[:, early], (cosine * lower).amax(3))
            if offset:  # the other way round; within a frame it is the same
                higher = score_BTN[:, early, :, None] > score_BTN[:, late, None, :]
                found[:, late] = torch.maximum(found[:, late], (cosine * higher).amax(2))
    return found.clamp(max=1)


def most_alike_kept(view: View, kept_BTN: Tensor, near: int) -> Tensor:
    """Every patch that is not kept joins the kept one it is most like (cosine), at most ``near`` frames away: roots
    [B, T * N]. Every valid frame keeps one at least. O(T N · kept patches of 2 near + 1 frames · D)."""
    b, t, n, d = view.x_BTND.shape
    unit = F.normalize(view.x_BTND, dim=-1).flatten(1, 2)
    kept = kept_BTN.flatten(1) & view.valid_BS
    place = (~kept).long().argsort(dim=1, stable=True)  # the kept ones first, in their order
    total = kept.sum(1, keepdim=True)
    before = F.pad((kept_BTN & view.mask_BT.unsqueeze(-1)).sum(-1).cumsum(1), (1, 0))  # kept before each frame
    roots = torch.arange(t * n, device=unit.device).repeat(b, 1)
    block = max(1, near)
    for start in range(0, t, block):
        stop = min(start + block, t)
        first = before[:, max(0, start - near)]
        many = int((before[:, min(t, stop + near)] - first).max())
        if not many:  # all of it is padding
            continue
        at = first.unsqueeze(1) + torch.arange(many, device=unit.device)
        candidate = place.gather(1, at.clamp(max=t * n - 1))
        frame = torch.arange(start, stop, device=unit.device).view(1, -1, 1)
        absent = ((frame - candidate.unsqueeze(1) // n).abs() > near) | (at >= total).unsqueeze(1)
        cosine = unit[:, start * n : stop * n] @ unit.gather(1, candidate.unsqueeze(-1).expand(-1, -1, d)).mT
        cosine.unflatten(1, (-1, n)).masked_fill_(absent.unsqueeze(2), -torch.inf)
        roots[:, start * n : stop * n] = candidate.gather(1, cosine.argmax(-1))
    return torch.where(kept, torch.arange(t * n, device=unit.device), roots)
