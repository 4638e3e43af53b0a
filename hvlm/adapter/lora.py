"""LoRA: see ``hvlm.adapter._low_rank``."""

from __future__ import annotations

from hvlm.adapter._low_rank import LoRAAdapter, LowRank

__all__ = ["LoRA", "LoRAAdapter"]


class LoRA(LowRank):
    """See ``LowRank``, whose settings it has."""
