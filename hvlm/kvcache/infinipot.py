"""InfiniPot-V (Kim et al. 2025): a fixed number of places for a video of any length, without knowing the question."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.caching import PastKV
from hvlm.config.ranges import Fraction, NonNegativeInt, PositiveInt, Share
from hvlm.errors import UserError
from hvlm.kvcache._evict import Budget, EvictingKV, EvictingRoom, Look, pooled, top


class InfiniPot(EvictingRoom):
    """Each time the cache is full, in every KV head: text stays; of the places for the video a share ``temporal`` goes
    to what is not redundant in time, the rest to the values of the greatest length.

    Redundant in time is what looks like now: a place's score is minus the mean cosine between its key and those of the
    recent frames at the same place of the frame. Recent are the newest whole frames that together hold at most
    ``recent`` of the video's places in the cache, at least one; they stay, and take their places of this half. Where
    a place has no counterpart in any recent frame (it was merged away, or forgotten) its cosine counts as zero.

    The published code takes text to be one system prompt, frames to be of equal size, and pools the length of values in
    two dimensions on a grid that it imagines once places are gone; here frames and places are those that the model
    tells of (``PastKV.tell``), and pooling is along the order of reading.

    Args:
        budget: places that each KV head keeps when places are chosen, text among them.
        share: in its stead, the share of the places that were read.
        slack: tokens that come one at a time may take so many places more before places are chosen again.
        temporal: share of the video's places for what is not redundant in time.
        recent: share of the video's places in the cache that the recent frames hold.
        kernel: neighbours over which the lengths of values are averaged, an odd number; 1: not.
        text: where nothing that was read is known to be of a frame: refuse, or choose by values alone.
        chunk: the context is read in pieces of so many places; null: at once.
    """

    recent: float  # type: ignore[assignment]  # a share, where caches with gates have a number of tokens

    def __init__(
        self,
        *,
        budget: PositiveInt = 1024,
        share: Share | None = None,
        slack: NonNegativeInt = 256,
        temporal: Fraction = 0.5,
        recent: Fraction = 0.25,
        kernel: PositiveInt = 1,
        text: Literal["refuse", "values"] = "refuse",
        chunk: PositiveInt | None = None,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
    ):
        super().__init__(
            name="infinipot", budget=budget, share=share, chunk=chunk, slack=slack,
            num_layers=num_layers, num_kv_heads=num_kv_heads, head_dim=head_dim,
        )  # fmt: skip
        if kernel % 2 == 0:
            raise UserError(f"kvcache.kernel={kernel}: expected an odd number of neighbours")
        self.temporal, self.recent, self.kernel, self.text = temporal, recent, kernel, text

    def new(self) -> PastKV:
        return InfiniPotCache(self.budget, self.temporal, self.recent, self.kernel, self.text)


class InfiniPotCache(EvictingKV):
    def __init__(self, budget: Budget, temporal: float, recent: float, kernel: int, text: str) -> None:
        super().__init__("infinipot", budget)
        self.temporal, self.recent, self.kernel, self.text = temporal, recent, kernel, text

    def _forget(self) -> None:
        super()._forget()
        # Of all places that were read, frame and place within it, -1 for text; and what was told of those to come.
        self._where_KL2: Any = None
        self._told_KS2: Tensor | None = None

    def tell(self, frame_KS: Tensor, slot_KS: Tensor) -> None:
        told = torch.stack([frame_KS, slot_KS.masked_fill(frame_KS < 0, -1)], -1)
        self._told_KS2 = told if self._told_KS2 is None else torch.cat([self._told_KS2, told], 1)

    def extend(
        self,
        x_KSD: Tensor,
        mask_KS: Tensor | None = None,
        position_KS: Tensor | None = None,
        bias_KS: Tensor | None = None,
    ) -> Tensor:
        positions = super().extend(x_KSD, mask_KS, position_KS, bias_KS)
        rows, new = x_KSD.shape[:2]
        where = torch.full((rows, new, 2), -1, device=x_KSD.device)
        if self._told_KS2 is not None:
            known = self._told_KS2[:, :new]
            where[:, : known.shape[1]] = known
            left = self._told_KS2[:, new:]
            self._told_KS2 = left if left.shape[1] else None
        self._where_KL2 = where if self._where_KL2 is None else torch.cat([self._where_KL2, where], 1)
        return positions

    def question(self) -> None:
        super().question()
        self._told_KS2 = None

    def _take_rows(self, index_R: Tensor) -> None:
        super()._take_rows(index_R)
        self._where_KL2 = None if self._where_KL2 is None else self._where_KL2[index_R]
        self._told_KS2 = None if self._told_KS2 is None else self._told_KS2[index_R]

    def score(self, look: Look) -> tuple[Tensor, Tensor | None]:
        frame = self._of_places(self._where_KL2[..., 0], look.index).masked_fill(~look.valid, -1)
        slot = self._of_places(self._where_KL2[..., 1], look.index)
        video = frame >= 0
        length = look.value.norm(dim=-1)
        fewer = look.valid.sum(2) > self._goal_K[:, None]  # rows of which something goes
        if not bool(video.any()):
            if self.text == "refuse":
                raise UserError(
                    "kvcache=infinipot: no place that was read is known to be of a frame, so nothing can be "
                    "redundant in time; use kvcache.text=values to choose by the length of values alone, or "
                    "kvcache=snapkv"
                )
            return pooled(length, look.valid, self.kernel), None
        text = look.valid & ~video
        for_video = self._goal_K[:, None] - text.sum(2)
        if bool((fewer & (for_video < 1)).any()):
            raise UserError(
                f"{self.budget}: {int(text.sum(2).max())} places of text stay in any case, which leaves none for the "
                "video; use more"
            )
        in_time = for_video - torch.round((1 - self.temporal) * for_video).long()
        now = self._recent(frame, video, in_time)
        unlike = top(-self._cosine(look.key, slot, video, now), video & ~now, in_time - now.sum(2))
        return pooled(length, video, self.kernel), text | now | unlike

    def _recent(self, frame: Tensor, video: Tensor, most: Tensor) -> Tensor:
        """bool [K, G, M]: the newest whole frames that hold at most ``recent`` of the video's places and at most
        ``most`` [K, G]; at least the newest ``most`` places of the newest frame."""
        # How many places of the video are of the same frame or a later one.
        since = frame.shape[2] - torch.searchsorted(frame.sort(2).values, frame.contiguous())
        limit = torch.minimum((video.sum(2) * self.recent + 1e-6).long(), most)
        from_end = video.flip(2).cumsum(2).flip(2)
        newest = frame == frame.amax(2, keepdim=True)
        return video & ((since <= limit.unsqueeze(2)) | (newest & (from_end <= most.unsqueeze(2))))

    @staticmethod
    def _cosine(key: Tensor, slot: Tensor, video: Tensor, now: Tensor) -> Tensor:
        """Mean cosine of each place's key with those of the recent frames at its place of the frame: [K, G, M]."""
        unit = F.normalize(key, dim=-1)
        at = slot.masked_fill(~video, 0)
        slots = int(at.max()) + 1
        rows, groups, _, width = key.shape
        total = key.new_zeros(rows, groups, slots, width)
        total.scatter_add_(2, at.unsqueeze(-1).expand_as(unit), unit * now.unsqueeze(-1))
        many = key.new_zeros(rows, groups, slots).scatter_add_(2, at, now.to(key.dtype))
        mean = total / many.clamp(min=1).unsqueeze(-1)
        return (unit * mean.gather(2, at.unsqueeze(-1).expand_as(unit))).sum(-1)
