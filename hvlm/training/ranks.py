"""Whether this process is one of several, as the environment says."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from hvlm.errors import UserError

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # Lightning believes the first of them that is set
# How gloo and NCCL say that another process is gone, or does not answer.
GONE = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed out waiting|ncclRemoteError|heartbeat|watchdog", re.I
)


def refuse_left_over_rank(trainer: Mapping[str, Any]) -> None:
    """``UserError`` where the environment counts this process among several and the configuration says it is alone.

    Such a process would train, and write neither metrics nor files.
    """
    name = next((name for name in RANKS if name in os.environ), None)
    if name is None or os.environ[name] in ("", "0"):
        return
    alone = trainer["devices"] == 1 and trainer["num_nodes"] == 1
    if alone or (name == "RANK" and "LOCAL_RANK" not in os.environ):  # no launcher sets it by itself
        expects = "trainer.devices=1 and trainer.num_nodes=1" if alone else "no launcher's LOCAL_RANK beside it"
        raise UserError(
            f"{name}={os.environ[name]} in the environment says that this is one of several processes, but there is "
            f"{expects}: unset {name}, or start one process only, or use trainer=ddp"
        )


STARTED_BY = "HVLM_STARTED_BY"  # the process that starts the others of a run, for these
LOOK_EVERY = 0.5  # seconds
PATIENCE = 10.0  # seconds, in which a process that was waiting for the lost one says so itself and ends


@contextmanager
def starts_others() -> Iterator[None]:
    """Inside, processes that the trainer starts know of whom they are a part; see ``end_with_the_first_process``."""
    if os.environ.get("LOCAL_RANK"):  # torchrun, SLURM or another process of ours starts them, or has
        yield
        return
    os.environ[STARTED_BY] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[STARTED_BY]


def end_with_the_first_process() -> None:
    """In a process that another of this run has started: end when that one has ended, however it did.

    Before there is a group of processes nothing else would notice: it waits for the first process for half an hour, and
    is taken for a part of whatever begins at the same address next.
    """
    parent = int(os.environ.pop(STARTED_BY, "0"))
    if parent and os.environ.get("LOCAL_RANK", "0") != "0":
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    if dist.is_available() and dist.is_initialized():
        time.sleep(PATIENCE)
    print(
        "error: the first process of this run has ended, and so does this one; the same command continues from the "
        "last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


# How torch says that a process that reads was killed: at once, wherever this one is, so the loader seldom hears it.
READER = re.compile(r"DataLoader worker \(pid.{0,30}\) (is killed|exited)")


@contextmanager
def a_lost_process_is_one_line() -> Iterator[None]:
    """Where another process of this run has ended, what this one was waiting for fails: a ``UserError`` says so."""
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if READER.search(said):
            raise UserError(
                f"a process that reads has ended ({said[:160]}). Where nobody killed it, memory was short: use fewer "
                "(trainer.num_workers) or keep less (trainer.cache_mb); the same command continues from the last "
                "checkpoint"
            ) from error
        if not GONE.search(said):
            raise
        raise UserError(
            f"another process of this run has ended or does not answer ({said[:160]}); the same command continues from "
            "the last checkpoint, with as many processes as there are"
        ) from error
