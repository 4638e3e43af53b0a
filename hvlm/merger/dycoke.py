"""DyCoke's temporal token merging (Tao et al. 2025, "Dynamic Compression of Tokens"), written from its description.

Windows of frames; where a later frame resembles an earlier one, its tokens go. In a window of four the first frame is
whole, frames 1 and 3 are compared with 0 and 2, and 2 with 0, place by place; of each compared frame the least similar
1 - k = 0.3 stay. Below that rate the published method stops (and goes on while decoding). Here first frames then give
way in the same proportion, 1 : 0.3, and are compared with the first frame of the window before.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.config.ranges import Ge, Share
from hvlm.merger._base import Choice, MergerRoom
from hvlm.merger._scores import View
from hvlm.merging import roots_or_dropped

STAYS = 0.3  # 1 - k, of a compared frame for one of a first frame


class DyCoke(MergerRoom):
    """window: frames, a power of two.

    Of what the first frames leave, every compared frame of the clip gets an even share: with ``keep`` = 1/4 + 3/4 (1
    - k) that is the published rate k. Frame i of a window is compared with i minus its lowest set bit. Tokens are
    dropped.
    """

    drops = True

    def __init__(self, keep: Share = 0.25, window: Annotated[int, Ge(2)] = 4, **room: Any):
        super().__init__(keep, **room)
        if window & (window - 1):
            raise ValueError(f"merger.window={window}: expected a power of two of frames")
        self.window = window

    def choose(self, view: View) -> Choice:
        return Choice(torch.cat([self._clip(view, i) for i in range(len(view.total_B))]))

    def _clip(self, view: View, i: int) -> Tensor:
        frames, total = int(view.mask_BT[i].sum()), int(view.total_B[i])
        x_TND = view.x_BTND[i]
        t, n, _ = x_TND.shape
        kept = torch.zeros(t, n, dtype=torch.bool, device=x_TND.device)
        if frames:
            place = torch.arange(frames, device=kept.device)
            starts = place % self.window == 0
            budget = _budget(starts, n, total, view.least)
            before = torch.where(starts, place - self.window, place - (place & -place)).clamp(min=0)
            unit = F.normalize(x_TND[:frames], dim=-1)
            similar = (unit * unit[before]).sum(-1)
            similar[0] = _spread(n, int(budget[0]), kept.device)  # nothing comes before it
            kept[:frames] = similar.argsort(dim=-1, stable=True).argsort(-1) < budget[:, None]
        return roots_or_dropped(kept[None])


def _budget(starts_T: Tensor, n: int, total: int, least: int) -> Tensor:
    """Tokens of each frame, int64 [T]: first frames of a window as whole as the others' ``STAYS`` of them allows."""
    firsts, others = int(starts_T.sum()), int((~starts_T).sum())
    whole = round(total * firsts / (firsts + STAYS * others))
    whole = min(max(whole, least * firsts, total - n * others), n * firsts, total - least * others)
    budget = torch.zeros(len(starts_T), dtype=torch.long, device=starts_T.device)
    budget[starts_T] = _even(whole, firsts).to(budget)
    budget[~starts_T] = _even(total - whole, others).to(budget)
    return budget


def _spread(n: int, many: int, device: torch.device) -> Tensor:
    """[n]: low at ``many`` places evenly apart, high elsewhere."""
    score = torch.ones(n, device=device)
    score[torch.arange(many, device=device) * n // max(1, many)] = 0.0
    return score


def _even(total: int, parts: int) -> Tensor:
    """total in as equal parts as possible."""
    index = torch.arange(1, parts + 1)
    return index * total // max(1, parts) - (index - 1) * total // max(1, parts)
