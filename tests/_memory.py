"""How much memory a piece of work takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any


def refused_within(most: int, work: Callable[[], Any]) -> None:
    """Do the work, and pass on what it raises, unless it took more than ``most`` bytes at a time."""
    tracemalloc.start()
    try:
        work()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= most, f"{peak:,} bytes"
