"""How far the asking is and how long it will take: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

EVERY = 30.0  # seconds between lines, where there is no terminal


class Asking:
    """A context manager.

    Args:
        what: is asked, for the reader.
        total: clips. done: of them, before.
        every: seconds between lines.
    """

    def __init__(self, what: str, total: int, done: int = 0, every: float = EVERY) -> None:
        self.what, self.total, self.done, self.before, self.every = what, total, done, done, every
        self.questions, self.started = 0, time.monotonic()
        self._said = self.started
        self._terminal = Console().is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("videos"))
        self._bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())

    def __enter__(self) -> Asking:
        if self._terminal:
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done)
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            self._bar.stop()

    def at(self, done: int, questions: int) -> None:
        """So many clips are done in all, and so many questions were asked since the start."""
        self.done, self.questions = done, questions
        if self._terminal:
            self._bar.update(self._task, completed=done)
        elif (now := time.monotonic()) - self._said >= self.every:
            self._said = now
            log.info(self.line())

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take; None as long as nothing was done."""
        new = self.done - self.before
        return (time.monotonic() - self.started) / new * (self.total - self.done) if new else None

    def line(self) -> str:
        took = max(time.monotonic() - self.started, 1e-9)
        rate = f", {self.questions / took:.3g} questions a second" if self.questions else ""
        left = "" if self.left is None else f", {duration(self.left)} left"
        return f"{self.what}: {self.done} of {self.total} videos{rate}{left}"


def duration(seconds: float) -> str:
    """3725 -> 1 h 2 min, 125 -> 2 min 5 s."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
