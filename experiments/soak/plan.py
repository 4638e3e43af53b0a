"""What happens to a run, start by start: a function of (seed, round) and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

KILLS = ("kill", "worker", "rank 1")
EVENTS = {
    "kill": "SIGKILL to the main process",
    "worker": "SIGKILL to a process that reads",
    "rank 1": "SIGKILL to the second training process",
    "hang": "every decoder hangs, and the main process is killed in it",
    "disk": "the disk of the run fills up",
    "stop": "SIGTERM to the main process",
    "shard": "a training shard is damaged when the run starts, and mended when it has refused",
}


class Leg(NamedTuple):
    """What a round may change. processes: numbers of training processes. parts: values of trainer.accumulate."""

    name: str
    processes: tuple[int, ...]
    parts: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """Whether sums are taken in the order of the run that nobody stops."""
        return len(self.processes) == 1 and self.parts == (1,)

    @property
    def events(self) -> tuple[str, ...]:
        return tuple(name for name in EVENTS if name != "rank 1" or 2 in self.processes)


ONE = Leg("one process", (1,), (1,))
TWO = Leg("two processes", (2,), (1,))
CHANGING = Leg("changing", (1, 2), (1, 2, 4))
LEGS = (CHANGING, ONE, TWO)


class Start(NamedTuple):
    """One start of the run. workers: of each process. at: the step that must be done before the event; None: it
    happens at the start. wait: seconds after that step. which: a number in [0, 1) that picks a process, a shard, a
    kind of damage. event: None: runs to its end."""

    processes: int
    workers: int
    accumulate: int
    event: str | None
    at: int | None = None
    wait: float = 0.0
    which: float = 0.0

    def __str__(self) -> str:
        several = f"{self.processes} processes" if self.processes > 1 else "1 process"
        how = f"{several}, {self.workers} workers each, accumulate {self.accumulate}"
        if self.event is None:
            return f"{how}: to the end"
        return f"{how}: {self.event}" + ("" if self.at is None else f" after step {self.at}")


def starts(leg: Leg, events: Sequence[str], steps: int, seed: int, number: int) -> list[Start]:
    """The events in a drawn order, each after a drawn step later than that of the one before, and a last start."""
    rng = np.random.default_rng([seed, number])
    order = [events[i] for i in rng.permutation(len(events))]
    moments = iter(sorted(rng.choice(np.arange(1, steps - 1), len(order), replace=False).tolist()))
    made = []
    for event in order:
        processes = 2 if event == "rank 1" else int(rng.choice(leg.processes))
        workers = int(rng.integers(1 if event == "worker" else 0, 4 if processes == 1 else 3))
        at = None if event == "shard" else next(moments)
        drawn = (int(rng.choice(leg.parts)), event, at, float(rng.uniform(0, 0.3)), float(rng.random()))
        made.append(Start(processes, workers, *drawn))
    processes = int(rng.choice(leg.processes))
    return [*made, Start(processes, int(rng.integers(0, 3)), int(rng.choice(leg.parts)), None)]


def kills(count: int, seed: int) -> list[str]:
    """So many events that kill something."""
    return np.random.default_rng([seed, count]).choice(KILLS, count).tolist()
