"""What the console shows: our own lines in one format, and of the libraries' messages those that somebody can act on;
what stopped a command in one line; and the command itself as it was typed.

``setup_logging()`` is called once, where a command starts. What is silenced is listed here by its words, each with the
reason; every other warning is shown.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hvlm.errors import UserError

# What a disk, a folder or a limit refuses: a matter of the machine, for which a traceback helps nobody.
OF_THE_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
    errno.EIO, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ELOOP, errno.ESTALE, errno.EEXIST, errno.EAGAIN,
}  # fmt: skip
TOO_MANY = "too many open files"  # in the words of the system, and of torch
NO_MEMORY = "can't allocate memory"  # in torch's own words
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST = 2000  # characters of an error
LOG_LINES = (
    r".*\[lit(logger|models)\]",  # advertisements
    r"`weights_only` was not set",  # our checkpoint reader knows no other way
    r"`Trainer\.fit` stopped: `max_steps=",  # the intended end of every stage
    r"Using \w+ Automatic Mixed Precision",  # the trainer's precision line says so, and why
    r"[GT]PU available: False",  # the same
    r"Restor(ing|ed all) states from the checkpoint",  # the run folder's "continues from" says so
)
WARNINGS = (
    r"Be aware that when using `ckpt_path`, callbacks used to create",  # trainer.checkpoint_every may change
    r"Checkpoint directory .* exists and is not empty",  # of course: the run continues
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
    r"Total length of `\w+` across ranks is zero",  # data without a val split; hvlm.data.datamodule says so
    r"Found \d+ module\(s\) in eval mode at the start of training",  # what does not train stays as it is
    r"You're resuming from a checkpoint that ended before the epoch ended",  # the datamodule keeps the place exactly
)


class Console(logging.Handler):
    """Lines on stdout, whoever has taken its place at that moment: a progress bar moves out of the way of ``print``."""

    lost = False  # whether stdout takes nothing any more, and that was said

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), flush=True)
        except BrokenPipeError:
            self.handleError(record)
        except OSError as error:
            if not self.lost:
                self.lost = True
                print(f"warning: stdout: {error.strerror}; what happens is not shown any more", file=sys.stderr)
        except Exception:
            self.handleError(record)


class OneFormat(logging.Formatter):
    """The message alone; from warnings on, with the level before it."""

    def format(self, record: logging.LogRecord) -> str:
        text = harmless(super().format(record))
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def worth_showing(record: logging.LogRecord) -> bool:
    """Not the lines above, and of several processes only the first one's, unless it is a warning."""
    # Not imported for this: a command that needs no Lightning is one process and starts in half the time.
    ranks = sys.modules.get("lightning.pytorch.utilities.rank_zero")
    if record.levelno < logging.WARNING and ranks is not None and ranks.rank_zero_only.rank:
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


def size_in_words(number: float) -> str:
    """Bytes as people write them."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


@contextmanager
def error_line() -> Iterator[None]:
    """Prints a ``UserError``, and what a disk, a folder or the memory refuses, as one line on stderr and exits 1; after
    Ctrl-C exits 130, without a word and with 141 where nobody reads its output any more. HYDRA_FULL_ERROR=1 shows the
    whole traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name of a file need not be text that can be printed
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except (UserError, OSError, KeyboardInterrupt, MemoryError, RuntimeError) as e:
        if isinstance(e, BrokenPipeError) and _nobody_reads():
            raise SystemExit(128 + signal.SIGPIPE) from None
        machine = e if isinstance(e, OSError) and e.errno in OF_THE_MACHINE else None
        memory = isinstance(e, MemoryError) or NO_MEMORY in str(e)
        files = TOO_MANY in str(e).lower() and not isinstance(e, UserError)
        ours = isinstance(e, UserError | KeyboardInterrupt) or machine is not None or memory or files
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not ours:
            raise
        if isinstance(e, KeyboardInterrupt):
            print("error: stopped by Ctrl-C; the same command continues", file=sys.stderr)
            raise SystemExit(130) from None
        text = f"{machine.filename or 'writing'}: {machine.strerror}; the same command continues" if machine else str(e)
        if files:
            text = (
                "too many open files: raise the limit (ulimit -n), or use fewer processes that read "
                "(trainer.num_workers); the same command continues"
            )
        elif memory and not isinstance(e, UserError):
            reason = text.rpartition(NO_MEMORY)[2].strip(": ") or "no more is left"
            text = (
                f"not enough memory ({reason}); choose smaller sizes of rooms, batch_size or num_frames; "
                "HYDRA_FULL_ERROR=1 shows for what it was"
            )
        print(f"error: {one_line(text)}", file=sys.stderr)
        raise SystemExit(1) from None


def one_line(text: str) -> str:
    """A message as one line of a length that can be read: what it quotes may be anybody's, and hold line ends, codes
    that steer a terminal, or millions of characters."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def harmless(text: str) -> str:
    """A text of data for a terminal or a file: codes that steer a terminal or turn the direction of reading, and halves
    of characters, as escapes. Line ends and tabs stay."""
    return text if text.isprintable() else STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def _nobody_reads() -> bool:
    """Whether whoever read this process's output has gone (``hvlm train --help | head``). Then it goes nowhere, so that
    nothing complains when the process ends."""
    try:
        place = sys.stdout.fileno()
        asked = select.poll()
        asked.register(place, select.POLLOUT)
        gone = any(event & select.POLLERR for _, event in asked.poll(0))
    except (OSError, ValueError, AttributeError):  # no file, or a system without poll
        return False
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), place)
    return gone


def typed() -> list[str]:
    """This process as one would type it: ``hvlm train ...`` or ``python train.py ...``."""
    return ["hvlm", *sys.argv[1:]] if is_hvlm() else ["python", *sys.argv]


def program(script: str | None = None) -> list[str]:
    """What starts another process with the command of this one, without its arguments.

    Args:
        script: a Python file to start in its place.
    """
    if script is None and is_hvlm():
        # As a module, for an installed command is no Python file everywhere. -P: a folder hvlm that happens to lie in
        # the working directory is not imported, unless this process itself was started so.
        module = [] if Path(sys.argv[0]).name == "__main__.py" else ["-P"]
        return [sys.executable, *module, "-m", "hvlm", *sys.argv[1:2]]
    return [sys.executable, str(Path(script or sys.argv[0]).resolve())]


def is_hvlm() -> bool:
    """Whether this process is the command ``hvlm`` (or ``python -m hvlm``), not a script of a clone."""
    path = Path(sys.argv[0])
    return path.stem == "hvlm" or (path.name == "__main__.py" and path.parent.name == "hvlm")
