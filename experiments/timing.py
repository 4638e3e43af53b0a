"""Processor time of what is compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def timed(*runs: Callable[[], object], budget: float, least: int) -> list[float]:
    """Median processor seconds of each, taken in turn so that all see the same machine. Each runs once before.

    Args:
        runs: what is called.
        budget: seconds, by the clock, that all rounds together take at least.
        least: rounds that there are at least.
    """
    for run in runs:
        run()
    taken: list[list[float]] = [[] for _ in runs]
    started = time.monotonic()
    while len(taken[0]) < least or time.monotonic() - started < budget:
        for run, found in zip(runs, taken, strict=True):
            before = time.process_time()
            run()
            found.append(time.process_time() - before)
    return [statistics.median(found) for found in taken]
