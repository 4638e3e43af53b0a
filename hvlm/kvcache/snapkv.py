"""SnapKV (Li et al. 2024): what the end of the prompt attends to is kept, chosen once, when it has been read."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hvlm.caching import PastKV
from hvlm.config.ranges import PositiveInt, Share
from hvlm.errors import UserError
from hvlm.functional import attention_weights, repeat_heads
from hvlm.kvcache._evict import Budget, EvictingKV, EvictingRoom, Look, grouped, pooled


class SnapKV(EvictingRoom):
    """The last ``window`` tokens of a row observe: the mean of their attention to each earlier place, pooled over
    neighbours, is its score. The highest stay, and the window itself.

    Each KV head keeps one choice for its query heads, by the mean of their scores; the paper's own code has one for
    each query head, and keys repeated for it. In a context of several pieces each piece's end observes, and what went
    is gone; a last piece shorter than the window observes with what it has.

    Args:
        budget: places that each KV head keeps of the context, the window among them.
        share: in its stead, the share of the context's places.
        window: tokens that observe.
        kernel: neighbours over which scores are pooled, an odd number; 1: not. pooling: their mean, or the highest.
        chunk: the context is read in pieces of so many places; null: at once.
    """

    def __init__(
        self,
        *,
        budget: PositiveInt = 1024,
        share: Share | None = None,
        window: PositiveInt = 32,
        kernel: PositiveInt = 5,
        pooling: Literal["avg", "max"] = "avg",
        chunk: PositiveInt | None = None,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
    ):
        super().__init__(
            name="snapkv", budget=budget, share=share, chunk=chunk,
            num_layers=num_layers, num_kv_heads=num_kv_heads, head_dim=head_dim,
        )  # fmt: skip
        if kernel % 2 == 0:
            raise UserError(f"kvcache.kernel={kernel}: expected an odd number of neighbours")
        if share is None and budget <= window:
            raise UserError(
                f"kvcache.budget={budget}: expected more than kvcache.window={window}, which is kept in any case"
            )
        self.window, self.kernel, self.pooling = window, kernel, pooling

    def new(self) -> PastKV:
        return SnapKVCache(self.budget, self.window, self.kernel, self.pooling)


class SnapKVCache(EvictingKV):
    def __init__(self, budget: Budget, window: int, kernel: int, pooling: str) -> None:
        super().__init__("snapkv", budget)
        self.window, self.kernel, self.pooling = window, kernel, pooling

    def score(self, look: Look) -> tuple[Tensor, Tensor | None]:
        new, heads, groups = look.query.shape[2], look.query.shape[1], look.key.shape[1]
        valid_KS = self.mask_KL[:, -new:]
        # Each row's own last tokens, wherever its padding stands; -1 where it has fewer new ones.
        from_end = valid_KS.flip(1).cumsum(1).flip(1)
        place = torch.where(valid_KS & (from_end <= self.window), torch.arange(new, device=valid_KS.device), -1)
        place_KW = place.sort(1).values[:, -self.window :]
        at = place_KW.clamp(min=0)

        query = look.query.gather(2, at[:, None, :, None].expand(-1, heads, -1, look.query.shape[-1]))
        mask = self.mask_of(look.index, look.valid, look.bias, self.length - new + at, look.how.window)
        mask = mask.repeat_interleave(heads // groups, 1)
        weights = attention_weights(query, repeat_heads(look.key, heads), mask, look.how.scale, look.how.softcap)
        counts = (place_KW >= 0).float()[:, None, :, None]
        worth = (weights * counts).sum(2) / counts.sum(2).clamp(min=1)

        # The window: the row's last valid places, whichever pass they came in.
        ends = look.valid & (look.valid.flip(2).cumsum(2).flip(2) <= self.window)
        if bool((ends.sum(2) > self._goal_K[:, None]).any()):
            short = int(self._goal_K[(ends.sum(2) > self._goal_K[:, None]).any(1)].min())
            raise UserError(
                f"{self.budget}: {short} places of a row stay, fewer than the kvcache.window={self.window} that are "
                "kept in any case; use a smaller window"
            )
        earlier = (look.valid & ~ends).repeat_interleave(heads // groups, 1)
        return grouped(pooled(worth, earlier, self.kernel, self.pooling), groups), ends
