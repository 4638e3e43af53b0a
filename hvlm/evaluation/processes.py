"""Several processes that ask together: each has its own model and asks about its share of the batches.

They speak through the journals of the folder alone (``hvlm.evaluation.journal``): what a process has answered is kept
though it dies, and the evaluation that follows asks whatever is missing.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hvlm import assembly
from hvlm.errors import UserError
from hvlm.evaluation.ask import ask_share
from hvlm.evaluation.evaluate import way_of
from hvlm.evaluation.journal import Nothing, count_clips, files_of, journal_of
from hvlm.evaluation.progress import Asking
from hvlm.rebuild import AUTO, load

log = logging.getLogger(__name__)

LOOK = 0.5  # seconds between looks at the journals


def ask_together(path: Path, cfg: Mapping[str, Any], out: Path, *, start: str = "spawn") -> None:
    """Ask ``cfg``'s benchmark in ``cfg["processes"]`` processes; their answers stand in the journals of ``out`` then.

    Args:
        path: the checkpoint. start: how processes are started, as ``multiprocessing`` names it.

    Raises:
        UserError: what a process refused, or a benchmark or model that one process must ask alone.
    """
    processes = cfg["processes"]
    _check(cfg, processes)
    if cfg["resume"] == "never":
        for file in files_of(out):
            file.unlink()
    out.mkdir(parents=True, exist_ok=True)
    context: Any = multiprocessing.get_context(start)
    answers = context.SimpleQueue()
    rest = {**cfg, "resume": "auto"}  # what is there from before is gone already
    shares = [
        context.Process(target=_share, args=(path, rest, out, i, processes, os.getpid(), answers), daemon=True)
        for i in range(processes)
    ]
    for share in shares:
        share.start()
    log.info(f"processes={processes}: each loads the model and asks its share")
    try:
        _wait(shares, answers, out)
    finally:
        for share in shares:
            share.kill()
            share.join()


def _check(cfg: Mapping[str, Any], processes: int) -> None:
    benchmark = assembly.room(cfg["benchmark"])
    if not benchmark.asks:
        raise UserError(f"processes={processes}: benchmark=head is answered in one process; set processes=1")
    if cfg["adapters"] or cfg["domain"]["adapter"] == AUTO:
        raise UserError(
            f"processes={processes}: where a router picks who answers, one process asks; set processes=1, or name the "
            "specialist with domain=NAME"
        )


def _wait(shares: list[Any], answers: Any, out: Path) -> None:
    """Until all have ended, with a bar; UserError as soon as one refuses."""
    totals: dict[int, int] = {}
    variant = ""
    bar: Asking | None = None
    while True:
        alive = any(share.is_alive() for share in shares)
        while not answers.empty():
            kind, share, value, total = answers.get()
            if kind == "error":
                raise UserError(value)
            totals[share], variant = total, value
        if len(totals) == len(shares) and bar is None:
            bar = Asking(f"asking {variant}", sum(totals.values()), count_clips(out, variant)).__enter__()
        if bar is not None:
            bar.at(min(count_clips(out, variant), bar.total), 0)
        if not alive:
            break
        time.sleep(LOOK)
    if bar is not None:
        bar.__exit__()
    for share, process in enumerate(shares):
        if process.exitcode:
            log.warning(
                f"process {share} of {len(shares)} ended with {process.exitcode} (killed, or out of memory); what it "
                "has not answered is asked now"
            )


def _share(path: Path, cfg: Mapping[str, Any], out: Path, share: int, of: int, parent: int, answers: Any) -> None:
    """One process."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    logging.getLogger().setLevel(logging.WARNING)
    torch.set_num_threads(max(1, torch.get_num_threads() // of))
    if torch.cuda.is_available():
        torch.cuda.set_device(share % torch.cuda.device_count())
    try:
        loaded = load(path, cfg)
        benchmark = loaded.benchmark()
        answer = way_of(benchmark, cfg["seed"])
        journal = journal_of(loaded, benchmark, answer, out, share)
        if isinstance(journal, Nothing):
            raise UserError(f"processes={of}: answers by chance are drawn in one process; set processes=1")
        number = len(benchmark.select(len(benchmark.source(loaded.data))))
        answers.put(("clips", share, loaded.variant, number if share == 0 else 0))
        ask_share(loaded, benchmark, loaded.variant, out, answer, journal, share, of)
    except UserError as error:
        answers.put(("error", share, str(error), 0))


def _end_with(parent: int) -> None:
    """A process whose parent was killed must not go on."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
