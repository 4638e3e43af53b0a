"""DyCoke's temporal token merging (Tao et al. 2025, "Dynamic Compression of Tokens"), written from its description.

Windows of frames; where a later frame resembles an earlier one, its tokens go. In a window of four the first frame is
whole, frames 1 and 3 are compared with 0 and 2, and 2 with 0, place by place; of each compared frame the least similar
share stays.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.merger._room import Choice, MergerRoom
from hvlm.merger._scores import View
from hvlm.merging import roots_or_dropped


class DyCoke(MergerRoom):
    """window: frames, a power of two; null: 4 as published, or as many as it takes where whole first frames alone would
    exceed the budget (``keep`` < 1/4: below that the published method stops, and goes on while decoding).

    Of what the first frames leave, every compared frame of the clip gets an even share: with ``keep`` = 1/4 + 3/4 (1
    - k) that is the published rate k. Frame i of a window is compared with i minus its lowest set bit. Tokens are
    dropped.
    """

    drops = True

    def __init__(self, keep: float = 0.25, window: int | None = None, **room: Any):
        super().__init__(keep, **room)
        if window is not None and (window < 2 or window & (window - 1)):
            raise ValueError(f"merger.window={window}: expected a power of two of frames, or null")
        self.window = window

    def least(self) -> int:
        return int(self.per_frame)

    def choose(self, view: View) -> Choice:
        return Choice(torch.cat([self._clip(view, i) for i in range(len(view.total_B))]))

    def _clip(self, view: View, i: int) -> Tensor:
        frames, total = int(view.mask_BT[i].sum()), int(view.total_B[i])
        x_TND = view.x_BTND[i]
        t, n, _ = x_TND.shape
        kept = torch.zeros(t, n, dtype=torch.bool, device=x_TND.device)
        if frames:
            window = self.window or self._window(frames, n, total, view.least)
            whole = torch.arange(0, frames, window)
            compared = torch.tensor([f for f in range(frames) if f % window])
            # First frames as whole as the budget allows beside what the others need.
            budget = torch.zeros(t, dtype=torch.long)
            budget[whole] = _even(min(len(whole) * n, total - view.least * len(compared)), len(whole))
            budget[compared] = _even(total - int(budget.sum()), len(compared))
            before = torch.tensor([f - (f & -f) if f % window else f for f in range(frames)])
            unit = F.normalize(x_TND[:frames], dim=-1)
            similar = (unit * unit[before]).sum(-1)
            rank = similar.argsort(dim=-1, stable=True).argsort(-1)
            kept[:frames] = rank < budget[:frames, None].to(rank.device)
        return roots_or_dropped(kept[None])

    @staticmethod
    def _window(frames: int, n: int, total: int, least: int) -> int:
        window = 4
        while window < frames and -(-frames // window) * n + least * (frames - -(-frames // window)) > total:
            window *= 2
        return window


def _even(total: int, parts: int) -> Tensor:
    """total in as equal parts as possible."""
    index = torch.arange(1, parts + 1)
    return index * total // max(1, parts) - (index - 1) * total // max(1, parts)
