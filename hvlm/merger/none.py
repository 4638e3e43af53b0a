"""No merging: every patch goes on as its own token."""

from __future__ import annotations

from torch import nn

from hvlm.types import Patches


class NoMerger(nn.Module):
    """Patches -> Patches, unchanged."""

    changes_nothing = True
    wants_saliency, wants_flow = None, False
    proportional, positions = False, "packed"

    def forward(self, patches: Patches) -> Patches:
        return patches
