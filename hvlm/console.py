"""What the console shows: our own lines in one format, and of the libraries' messages those that somebody can act on.

``setup_logging()`` is called once, where a command starts. What is silenced is listed here by its words, each with the
reason; every other warning is shown.
"""

from __future__ import annotations

import logging
import re
import warnings

from lightning.pytorch.utilities import rank_zero_only

LOG_LINES = (
    r".*\[lit(logger|models)\]",  # advertisements
    r"`weights_only` was not set",  # our checkpoint reader knows no other way
    r"`Trainer\.fit` stopped: `max_steps=",  # the intended end of every stage
    r"Using \w+ Automatic Mixed Precision",  # the trainer's precision line says so, and why
    r"[GT]PU available: False",  # the same
    r"Restor(ing|ed all) states from the checkpoint",  # the run folder's "continues from" says so
)
WARNINGS = (
    r"Checkpoint directory .* exists and is not empty",  # of course: the run continues
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
    r"Total length of `\w+` across ranks is zero",  # data without a val split; hvlm.data.datamodule says so
    r"Found \d+ module\(s\) in eval mode at the start of training",  # what does not train stays as it is
    r"You're resuming from a checkpoint that ended before the epoch ended",  # the datamodule keeps the place exactly
)


class Console(logging.Handler):
    """Lines on stdout, whoever has taken its place at that moment: a progress bar moves out of the way of ``print``."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), flush=True)
        except Exception:
            self.handleError(record)


class OneFormat(logging.Formatter):
    """The message alone; from warnings on, with the level before it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def worth_showing(record: logging.LogRecord) -> bool:
    """Not the lines above, and of several processes only the first one's, unless it is a warning."""
    if record.levelno < logging.WARNING and rank_zero_only.rank:
        return False
    text = record.getMessage()
    return not any(re.match(line, text) for line in LOG_LINES)


def setup_logging() -> None:
    """Set up logging for a command: INFO and above, from everywhere, through one handler."""
    console = Console()
    console.setFormatter(OneFormat())
    console.addFilter(worth_showing)
    root = logging.getLogger()
    root.handlers = [console]
    root.setLevel(min(root.level or logging.INFO, logging.INFO))  # hydra.verbose=true has set it lower
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        library = logging.getLogger(name)  # has a handler of its own, on stderr, and passes nothing on
        library.handlers, library.propagate = [], True
    for words in WARNINGS:
        warnings.filterwarnings("ignore", words)


def duration(seconds: float) -> str:
    """75 -> ``1:15``, 4000 -> ``1:06:40``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
