"""The engine of ``launcher=ray``: each task is one of Ray's, with the processors and GPUs that it is given; its command
is a child process of Ray's worker there."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from hvlm.errors import UserError
from hvlm.sweep.engine import Ended, Handle, Task
from hvlm.sweep.processes import BUSY as ENDED_BUSY
from hvlm.sweep.worker import BUSY, KILL, SAVE, STOP, Worker, say


class Ray:
    """Where ``launcher=ray`` runs jobs.

    Args:
        address: of a running Ray (``auto`` finds it); None starts one here, which ends with the sweep.
        cpus: that a Ray started here counts; None: the machine's.
        threads: of each task, as many processors as it asks for.
        gpus: of each task; None: as many as its settings name devices on GPUs.
        resources: of each task, besides: {name: how much}.
    """

    def __init__(
        self,
        address: str | None,
        cpus: int | None,
        threads: int,
        gpus: float | None,
        resources: Mapping[str, float],
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(f"launcher=ray needs Ray ({error}): pip install 'hvlm[ray]'") from error
        self._ray, self.threads, self.gpus, self.resources = ray, threads, gpus, dict(resources)
        how: dict[str, Any] = {"address": address} if address else {"num_cpus": cpus, "include_dashboard": False}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        try:
            ray.init(**how, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"hydra.launcher.address={address}: Ray does not answer ({said})") from error

    def submit(self, tasks: Sequence[Task]) -> Sequence[Handle]:
        return [self._submit(task) for task in tasks]

    def _submit(self, task: Task) -> Handle:
        (task.folder / STOP).unlink(missing_ok=True)
        needs = task.needs
        gpus = self.gpus if self.gpus is not None else float((needs.devices or 1) if needs.gpu else 0)
        remote = self._ray.remote(_run).options(
            name=task.name, num_cpus=self.threads, num_gpus=gpus, resources=self.resources or None, max_retries=0
        )
        return OfRay(task, self._ray, remote.remote(Worker(task, os.getcwd())))

    def adopt(self, task: Task, place: str) -> Handle | None:
        return None  # Ray ends the tasks of a driver that is gone; a command that goes on alone holds its lock

    def close(self) -> None:
        self._ray.shutdown()


def _run(worker: Worker) -> int:
    return worker()


class OfRay:
    """A task of Ray's."""

    def __init__(self, task: Task, ray: Any, reference: Any) -> None:
        self._task, self._ray, self._reference = task, ray, reference
        self.place = f"Ray task {reference.hex()[:12]}"
        self._ended: Ended | None = None

    def poll(self) -> Ended | None:
        if self._ended is None and self._ray.wait([self._reference], timeout=0)[0]:
            try:
                code = self._ray.get(self._reference)
                self._ended = ENDED_BUSY if code == BUSY else Ended(code)
            except Exception as error:  # a worker or a machine that was lost: every kind is named, none ends a sweep
                lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
                self._ended = Ended(None, f"{self.place}: {type(error).__name__}: {lines[0]}"[:300])
        return self._ended

    def ask_to_stop(self) -> None:
        say(self._task.folder, SAVE)

    def kill(self) -> None:
        say(self._task.folder, KILL)
        with contextlib.suppress(Exception):  # one that still waits for its resources never begins
            self._ray.cancel(self._reference, force=False)
