"""Run a chat template, a program that anybody may have written, for so long and no longer.

Jinja's sandbox keeps a template from files and from the program, and a loop from more than 100,000 rounds; loops within
loops, macros that call themselves and powers of numbers it lets run for ever.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jinja2 import Environment

MOST_SECONDS = 1.5  # of this thread's computing, for steps that are long themselves
MOST_STEPS = 300_000  # lines of the template and calls; a conversation of a hundred turns takes some thousands
_FILE = "<template>"  # what Jinja calls the code that it makes of one


class TooLong(BaseException):
    """No Exception: a filter that answers failures with a value must not swallow it."""


@contextmanager
def bounded(steps: int = MOST_STEPS) -> Iterator[None]:
    """Raises TooLong inside the block when a template has taken so many steps, or ``MOST_SECONDS``."""
    left, end = steps, time.thread_time() + MOST_SECONDS

    def tick(frame: FrameType, event: str, given: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or (left % 16 == 0 and time.thread_time() > end):
            raise TooLong
        return tick if frame.f_code.co_filename == _FILE else None

    before = sys.gettrace()
    sys.settrace(tick)
    try:
        yield
    finally:
        sys.settrace(before)


def takes_powers(source: str) -> bool:
    """Whether a template raises a number to a power: one step that may take for ever."""
    last = "("
    for _, kind, text in Environment().lex(source):
        if kind == "operator" and text == "**" and last not in ("(", ","):  # else a call's own arguments
            return True
        if kind != "whitespace":
            last = text
    return False
