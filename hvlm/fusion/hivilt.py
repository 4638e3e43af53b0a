"""Local, then global fusion: tokens and words attend to each other, then one state of each to the other's.

After the plan of HiViLT. What its formulas leave open is read so: each side is joined with what it attended to (so that
products are of equal lengths), everything pooled is masked, and the state of both reaches every visual token, so that
the language model hears of it.
"""

from __future__ import annotations

from typing import Any

from hvlm.fusion._hierarchical import HierarchicalFusion


class HiViLT(HierarchicalFusion):
    """local_fusion: leave it out. The rest: see ``HierarchicalFusion``."""

    def __init__(self, *, local_fusion: bool = True, **rest: Any):
        self.local_fusion = local_fusion
        super().__init__(**rest)
