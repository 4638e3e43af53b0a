"""The worker processes of whatever makes videos. No torch here: a program that only makes some does not wait for it."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from hvlm.io.processors import usable_processors


@contextmanager
def pool_of(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for the jobs (0 = one per CPU). Whatever goes wrong, jobs not yet begun are dropped."""
    workers = workers or usable_processors()
    # A forked child costs nothing, whereas a spawned one imports the entry script again (with torch: seconds each).
    # The children touch NumPy, Pillow and PyAV only, none of which runs threads of its own here.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """In a worker: it ends when its parent is killed, which nothing else tells it; it would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
