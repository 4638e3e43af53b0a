"""What a cluster runs for a job of a sweep: its command as a child process, with the log, the lock and the manners that
a child of the launcher itself would have. Nothing here imports more than Python's own library.

The launcher may be on another machine, so it speaks through a file in the job's folder, which both see: ``stop`` holds
``save`` (SIGTERM: the step is finished and saved) or ``kill``.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from hvlm.sweep.engine import LOCK, LOG, Task

STOP = "stop"
SAVE, KILL = "save", "kill"
BUSY = -1000  # in the place of a return code
RANKS = ("SLURM_PROCID", "SUBMITIT_LOCAL_GLOBALID")  # of several processes that a cluster starts for one job


def say(folder: Path, word: str) -> None:
    """Ask the job of ``folder`` to stop."""
    (folder / STOP).write_text(word, encoding="utf-8")


class Worker:
    """Callable, and can be pickled: runs ``task`` in ``where`` (a working directory) and returns its return code."""

    def __init__(self, task: Task, where: str) -> None:
        self.task, self.where = task, where
        self._process: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}

    def __call__(self) -> int:
        folder = Path(self.where, self.task.folder)
        rank = next((os.environ[name] for name in RANKS if name in os.environ), "0")
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if rank == "0":
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / STOP).exists():
                return -signal.SIGTERM
            with open(folder / (LOG if rank == "0" else f"log.{rank}.txt"), "ab") as log:
                self._process = subprocess.Popen(
                    list(self.task.command),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    cwd=self.where,
                    env={**os.environ, **self.task.environment},
                    pass_fds=(lock,),
                    preexec_fn=_deaf_to_preemption if "SUBMITIT_EXECUTOR" in os.environ else None,
                )
        except BlockingIOError:
            return BUSY
        finally:
            os.close(lock)
        try:
            return self._wait(folder)
        except KeyboardInterrupt:  # the cluster takes this process back at once
            self._process.kill()
            return int(self._process.wait())

    def _wait(self, folder: Path) -> int:
        asked = ""
        while (code := self._process.poll()) is None:
            time.sleep(0.2)
            try:
                word = (folder / STOP).read_text(encoding="utf-8")
            except OSError:
                continue
            if word and word != asked:
                asked = word
                self._process.send_signal(signal.SIGKILL if word == KILL else signal.SIGTERM)
        return int(code)

    def checkpoint(self) -> Any:
        """What submitit calls when SLURM takes the machine away or the time is nearly over: the job's own way of saving
        (SIGTERM), then this very command is put into the queue again, where it continues."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            # Not wait(): this runs in a signal's handler, perhaps in the middle of the poll() above and its lock.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        if (Path(self.where, self.task.folder) / STOP).exists():
            return None  # whoever runs the sweep wants it to end
        return DelayedSubmission(Worker(self.task, self.where))


def _deaf_to_preemption() -> None:
    """The signal by which submitit is warned goes to all processes of a job; it is the worker's to answer."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
