"""No merging: every patch goes on as its own token."""

from __future__ import annotations

from hvlm.contracts import Merger
from hvlm.types import Patches


class NoMerger(Merger):
    """Patches -> Patches, unchanged."""

    changes_nothing = True

    def forward(self, patches: Patches) -> Patches:
        return patches
