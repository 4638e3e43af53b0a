"""Processes and those that they started, from Linux's /proc."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """pid and when it was started, which together name a process for ever."""

    pid: int
    born: int


def born(pid: int) -> int | None:
    """When a process was started, in the kernel's ticks; None: it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_there(one: Process) -> bool:
    return born(one.pid) == one.born


def descendants(pid: int) -> list[Process]:
    """Processes that a process started, and those that these started."""
    found: list[Process] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text(encoding="utf-8").split()):
                if (when := born(child)) is not None:
                    found += [Process(child, when), *descendants(child)]
    return found
