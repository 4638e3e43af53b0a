"""The engine of ``launcher=process``: every task a child process on this machine."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Sequence

from hvlm.sweep.engine import LOCK, LOG, Ended, Handle, Task

BUSY = Ended(None, "already runs in a process that an earlier call started", busy=True)


class Processes:
    """threads: of each task."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def submit(self, tasks: Sequence[Task]) -> Sequence[Handle]:
        return [Child(task) for task in tasks]

    def adopt(self, task: Task, place: str) -> Handle | None:
        return None  # a child of an earlier call holds its lock; nobody can wait for it but its parent

    def close(self) -> None:
        pass


class Child:
    """A child process, or none where another process has the task's lock."""

    def __init__(self, task: Task) -> None:
        self._process: subprocess.Popen | None = None
        self.place = ""
        # The lock lives as long as the child does, even when this process is killed: no job ever runs twice at once.
        lock = os.open(task.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(task.folder / LOG, "ab") as log:
                self._process = subprocess.Popen(
                    list(task.command),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **task.environment},
                    pass_fds=(lock,),
                )
                self.place = f"process {self._process.pid}"
        except BlockingIOError:
            pass
        finally:
            os.close(lock)

    def poll(self) -> Ended | None:
        if self._process is None:
            return BUSY
        code = self._process.poll()
        return None if code is None else Ended(code)

    def ask_to_stop(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
