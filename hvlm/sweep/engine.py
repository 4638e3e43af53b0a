"""The contract of everything that runs the jobs of a sweep somewhere: an engine.

An engine takes ``Task``s, each one command in one folder, and gives a ``Handle`` for each; the launcher asks the
handles what became of them, and knows nothing of where they run. What an engine promises:

- A task's command runs in a process of its own, with its output at the end of ``folder/log.txt``, while that process
  or another of the same task holds the lock of ``folder/lock``; so no task ever runs twice at once, whoever started it.
- A handle's ``poll`` gives None while the command waits or runs, then what it came to; it never raises for what a
  command, a machine or a cluster did.
- ``ask_to_stop`` lets a command save what it has (SIGTERM); ``kill`` ends it.

tests/test_sweep_engines.py holds for every engine.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

LOG, LOCK = "log.txt", "lock"


@dataclass(frozen=True)
class Needs:
    """What a job's settings ask of a machine: nodes, processes on each, and whether each wants a GPU.

    devices: None where the settings leave it to the machine (``trainer.devices=auto``).
    """

    nodes: int = 1
    devices: int | None = 1
    gpu: bool = False


@dataclass(frozen=True)
class Task:
    """One command for an engine. folder: for its log and lock, made by the launcher. environment: put on top of the
    one that the command finds where it runs."""

    name: str
    command: Sequence[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    needs: Needs = field(default_factory=Needs)


@dataclass(frozen=True)
class Ended:
    """What a command came to. returncode: negative for the signal that killed it; None: it never ended by itself, and
    ``error`` says why (a lost machine, a cancelled job). busy: another process already runs this task."""

    returncode: int | None
    error: str = ""
    busy: bool = False

    @property
    def signal(self) -> str | None:
        """The name of the signal that ended it."""
        return signal.Signals(-self.returncode).name if self.returncode is not None and self.returncode < 0 else None


class Handle(Protocol):
    """A submitted task."""

    place: str  # where it runs, for people and for ``Engine.adopt``: "process 123", "SLURM job 12_3"

    def poll(self) -> Ended | None: ...

    def ask_to_stop(self) -> None: ...

    def kill(self) -> None: ...


class Engine(Protocol):
    """Where tasks run. threads: of each task, for ``OMP_NUM_THREADS``."""

    threads: int

    def submit(self, tasks: Sequence[Task]) -> Sequence[Handle]:
        """Start or queue the tasks, together where that costs less (an array of SLURM)."""
        ...

    def adopt(self, task: Task, place: str) -> Handle | None:
        """The handle of a task that an earlier call submitted, where it still waits or runs there; None where not."""
        ...

    def close(self) -> None: ...


def stop(handles: Sequence[Handle], patience: float = 60.0) -> None:
    """Ask those that still run to save and end; kill those that have not ended after ``patience`` s, or all of them at
    the next Ctrl-C."""
    alive = [handle for handle in handles if handle.poll() is None]
    try:
        for handle in alive:
            handle.ask_to_stop()
        _wait(alive, time.monotonic() + patience)
    except KeyboardInterrupt:
        pass
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # they end in a moment, and the table is still to be written
    try:
        for handle in alive:
            if handle.poll() is None:
                handle.kill()
        _wait(alive, time.monotonic() + patience)
    finally:
        signal.signal(signal.SIGINT, before)


def _wait(handles: Sequence[Any], until: float) -> None:
    while any(handle.poll() is None for handle in handles) and time.monotonic() < until:
        time.sleep(0.05)
