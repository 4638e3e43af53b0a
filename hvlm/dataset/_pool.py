"""The worker processes of whatever makes videos. No torch here: a program that only makes some does not wait for it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from hvlm.io.processors import usable_processors

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
    """In a worker: it ends when its parent is killed, which nothing else tells it; it would wait for work for ever.

    On Linux the kernel sees to it, also where something inherited by a fork closes the pipe that says that the parent
    is there. It goes by the thread that started the worker, which must live as long as the pool.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this is no worker")
    if sys.platform == "linux":
        if LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) == 0:
            if os.getppid() != parent.pid:  # it was killed before
                os._exit(1)
            return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
