"""Timing one mechanism at a time in a process of its own, so that several can be timed in turn and none sees another's
memory."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import warnings
from typing import Any, NamedTuple

import torch

from experiments.attention._mechanisms import DIM, FORWARD_ONLY, OURS, PEERS
from experiments.memory import peak_since, start_peak

FORWARD, LEARN = PASSES = ("forward", "forward_backward")
SECONDS, MEGABYTES = 120, 12_000  # a cell beyond either is over its limit
ROUNDS, LONG = 8, 20.0  # runs of a cell at most; what takes longer is run once


class Cell(NamedTuple):
    """Processor seconds (the least of the runs) and MB beyond what was there before (of the first run). ok: False where
    a limit was passed; the numbers are then the limits."""

    seconds: float = float(SECONDS)
    peak_mb: float = float(MEGABYTES)
    ok: bool = False


class Worker:
    """A mechanism in a setting. Its process starts with the first run, and anew after one that had to be ended."""

    def __init__(self, name: str, setting: str, threads: int):
        self.name = name
        self._command = [sys.executable, "-m", "experiments.attention._cells", name, setting, str(threads)]
        self._child: subprocess.Popen[str] | None = None
        self._last: dict[str, Cell] = {}

    def can(self, which: str) -> bool:
        return not (which == LEARN and self.name in FORWARD_ONLY)

    def first(self, n: int, which: str) -> Cell:
        """The run that warms up and whose memory is measured. Twice as many tokens need at least twice as much, so
        where half of a limit was passed before, it is not made."""
        before = self._last.get(which, Cell(0.0, 0.0, True))
        fits = before.ok and before.seconds <= SECONDS / 2 and before.peak_mb <= MEGABYTES / 2
        self._last[which] = self._run(n, which) if fits else Cell()
        return self._last[which]

    def again(self, n: int, which: str) -> float:
        cell = self._run(n, which)
        self._last[which] = self._last[which]._replace(seconds=min(self._last[which].seconds, cell.seconds))
        return cell.seconds

    def _run(self, n: int, which: str) -> Cell:
        if self._child is None:
            self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        print(json.dumps([n, which]), file=self._child.stdin, flush=True)
        ready, _, _ = select.select([self._child.stdout], [], [], 2 * SECONDS)
        line = self._child.stdout.readline() if ready else ""
        if not line:  # too slow, or the system ended it for its memory
            self.close()
            return Cell()
        seconds, mb = json.loads(line)
        return Cell(seconds, mb, True) if seconds <= SECONDS and mb <= MEGABYTES else Cell()

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()  # waits, and closes both pipes
            self._child = None


def in_turn(workers: list[Worker], n: int, which: str) -> dict[str, Cell]:
    """Each once to warm up, then all in turn, round after round: what the machine does meanwhile meets all alike."""
    workers = [worker for worker in workers if worker.can(which)]
    cells = {worker.name: worker.first(n, which) for worker in workers}
    quick = [worker for worker in workers if cells[worker.name].ok and cells[worker.name].seconds <= LONG]
    seconds: dict[str, list[float]] = {worker.name: [] for worker in quick}
    started = time.monotonic()
    for turn in range(ROUNDS):
        if turn >= 2 and time.monotonic() - started > 2 * len(quick):
            break
        for worker in quick:
            seconds[worker.name].append(worker.again(n, which))
    return {name: cell._replace(seconds=min(seconds.get(name) or [cell.seconds])) for name, cell in cells.items()}


def gemm_gflops(setting: str, threads: int) -> float:
    """Of a large matrix product."""
    set_up(setting, threads)
    dtype = torch.bfloat16 if setting == "bf16" else torch.float32
    a, b = torch.randn(4096, DIM, dtype=dtype), torch.randn(DIM, DIM, dtype=dtype)
    best = min(_timed(lambda: a @ b) for _ in range(10))
    return 2 * a.shape[0] * DIM * DIM / best / 1e9


def set_up(setting: str, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("medium" if setting == "fp32_fast" else "highest")


def _timed(run: Any) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def _child(name: str, setting: str, threads: int) -> None:
    """For every line [n, pass] on standard input: run it, and answer [seconds, megabytes]."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print must not come between
    warnings.filterwarnings("ignore")
    set_up(setting, threads)
    torch.manual_seed(0)
    layer = {**OURS, **PEERS}[name]().eval()
    known: tuple[int, str] | None = None
    for line in sys.stdin:
        n, which = json.loads(line)
        learn, new = which == LEARN, (n, which) != known
        x = torch.randn(1, n, DIM, requires_grad=learn)

        def run(x: torch.Tensor = x, learn: bool = learn) -> None:
            with torch.set_grad_enabled(learn), torch.autocast("cpu", torch.bfloat16, enabled=setting == "bf16"):
                y = layer(x)
            if learn:
                y.float().sum().backward()
                layer.zero_grad()

        before = start_peak() if new else 0.0
        seconds = _timed(run)
        print(json.dumps([seconds, peak_since(before) if new else 0.0]), file=answers, flush=True)
        known = (n, which)


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2], int(sys.argv[3]))
