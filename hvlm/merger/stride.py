"""Control: evenly spaced patches, the rest dropped."""

from __future__ import annotations

import torch

from hvlm.merger._base import Choice, MergerRoom
from hvlm.merger._scores import View
from hvlm.merging import roots_or_dropped


class StrideMerge(MergerRoom):
    """An even share of every frame, evenly spaced in reading order, and one place further in each frame, so that over
    time every place has its turn."""

    across = False
    drops = True

    def choose(self, view: View) -> Choice:
        b, t, n = view.x_BTND.shape[:3]
        budget = view.even_BT().unsqueeze(-1)
        device = budget.device
        i, shift = torch.arange(n, device=device), torch.arange(t, device=device).view(1, t, 1)
        place = (i * n // budget.clamp(min=1) + shift) % n
        # Places past the budget point at nothing: one cell more than there are patches.
        kept = torch.zeros(b, t, n + 1, dtype=torch.bool, device=device)
        kept.scatter_(2, torch.where(i < budget, place, n), True)
        return Choice(roots_or_dropped(kept[..., :n]))
