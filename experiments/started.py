"""The command line of an experiment, for its records."""

from __future__ import annotations

import shlex
import sys


def as_started(command: str) -> str:
    """``command`` with the options that this process was started with, which decide what it measured."""
    return shlex.join([*command.split(), *sys.argv[1:]])
