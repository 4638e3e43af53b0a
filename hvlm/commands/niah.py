"""Make a benchmark of needles in your own videos, as VNBench does: ``hvlm niah haystack=DIR out=DIR``."""

from __future__ import annotations

from hvlm.benchmark.niah.command import main

__all__ = ["main"]
