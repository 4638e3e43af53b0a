"""One process at a time writes a run's folder, and who it is can be read there."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from hvlm.console import duration
from hvlm.errors import UserError
from hvlm.io.files import LOCK

log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path, key: str, children_write: bool = False) -> Iterator[None]:
    """Hold ``folder``'s lock, which the operating system frees when the process ends, however it ends.

    Args:
        folder: made if it does not exist; the lock is the file ``.lock`` in it, with process, machine and time.
        key: what the user wrote to name the folder (``run=demo``), for the message.
        children_write: processes forked inside the block write there, too, and hold the lock until the last of them
            has ended. Else they do not hold it: one that reads may outlive a killed owner for a while (its decoder
            hangs), and the same command must be able to continue at once.

    Raises:
        UserError: another process holds it; the message says which one, on what machine, and for how long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="utf-8") as file, nullcontext() if children_write else _not_shared(file):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{key}: {_owner(folder)}; wait for it, stop it, or use another name") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            log.warning(f"{folder}: this file system has no locks, so a second run in the same folder is not noticed")
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}) + "\n")
        file.flush()
        yield


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        age = duration(max(0.0, time.time() - owner["since"]))
        return f"process {owner['pid']} on {owner['host']} has been writing {folder} for {age}"
    # It has the lock and has not yet said who it is, or somebody else wrote something there.
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return f"another process is writing {folder}"


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Hold the lock of a file, made if it does not exist, once it is free: who comes second waits for the first, and
    for the processes that were forked inside the block."""
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


_held: list[IO[Any]] = []


@contextmanager
def _not_shared(file: IO[Any]) -> Iterator[None]:
    """A process that is forked inside the block does not hold the file's lock."""
    _held.append(file)
    try:
        yield
    finally:
        if file in _held:
            _held.remove(file)


def _let_go() -> None:
    for file in _held:
        file.close()  # the lock stays with the parent, whose file this is, too
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
