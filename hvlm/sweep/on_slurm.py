"""The engine of ``launcher=submitit``: tasks as jobs of SLURM, those that are submitted together as one array; or, with
submitit's local executor, as processes of this machine that go the same way.

A job that the cluster warns (preempted, or nearly out of time) saves through its own checkpoints and is put into the
queue again by submitit; there the same command continues. What submitit writes lies in ``<sweep>/submitit``, pickled:
who can write there can run code, so it must be the user's own folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hvlm.errors import UserError
from hvlm.sweep.engine import Ended, Handle, Needs, Task
from hvlm.sweep.processes import BUSY as ENDED_BUSY
from hvlm.sweep.worker import BUSY, KILL, SAVE, STOP, Worker, say

SIGNAL = "SUBMITIT_PREEMPT_SIGNAL"
WAITING = ("PENDING", "REQUEUED", "CONFIGURING", "READY", "UNKNOWN")
ALIVE = (*WAITING, "RUNNING", "COMPLETING", "SUSPENDED", "RESIZING", "PREEMPTED")


def package() -> Any:
    """submitit; UserError where it is not installed."""
    try:
        import submitit
    except ImportError as error:
        raise UserError(f"launcher=submitit needs submitit ({error}): pip install 'hvlm[submitit]'") from error
    return submitit


def own(folder: Path) -> Path:
    """The folder, made for its owner alone. UserError where it is a link, or somebody else may write there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(
            f"{folder}: submitit reads pickled results there, and it is not a folder that you alone may write into; "
            "remove it, or chmod go-w it if what it holds is yours"
        )
    return folder


class Submitit:
    """Where ``launcher=submitit`` runs jobs.

    Args:
        folder: of the sweep.
        cluster: slurm, or local.
        threads: of each task, as many processors as it asks for.
        parameters: of submitit's executor: timeout_min, slurm_partition, ...
        retries: how often a job that ran out of time is queued again.
    """

    def __init__(
        self,
        folder: Path,
        cluster: Literal["slurm", "local"],
        threads: int,
        parameters: Mapping[str, Any],
        retries: int,
    ) -> None:
        submitit = package()
        if cluster == "slurm" and shutil.which("srun") is None:
            raise UserError(
                "hydra.launcher.cluster=slurm: there is no srun here; start the sweep where jobs can be submitted, or "
                "use hydra.launcher.cluster=local"
            )
        if os.environ.get(SIGNAL, "USR2") != "USR2":
            raise UserError(
                f"{SIGNAL}={os.environ[SIGNAL]} in the environment: jobs keep that signal for themselves; unset it, "
                "for USR2 is what launcher=submitit answers"
            )
        self.cluster, self.threads, self.parameters = cluster, threads, dict(parameters)
        self.folder = folder / "submitit"
        self.retries = retries
        self._submitit = submitit

    def executor(self, needs: Needs) -> Any:
        """submitit's executor for jobs of these needs."""
        folder = str(own(self.folder).resolve())
        if self.cluster == "local":
            executor = self._submitit.LocalExecutor(folder, max_num_timeout=self.retries)
        else:
            executor = self._submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=self.retries)
        try:
            executor.update_parameters(**self.parameters, **placed(needs, self.cluster, self.threads))
        except (NameError, ValueError, TypeError) as error:
            raise UserError(f"hydra.launcher.parameters: {' '.join(str(error).split())[:300]}") from error
        return executor

    def submit(self, tasks: Sequence[Task]) -> Sequence[Handle]:
        handles: dict[str, Handle] = {}
        groups: dict[Needs, list[Task]] = {}
        for task in tasks:
            groups.setdefault(task.needs, []).append(task)
        for needs, same in groups.items():
            executor = self.executor(needs)
            for task in same:
                (task.folder / STOP).unlink(missing_ok=True)
            workers = [Worker(task, os.getcwd()) for task in same]
            try:
                with executor.batch() if len(same) > 1 else contextlib.nullcontext():
                    jobs = [executor.submit(worker) for worker in workers]
            except self._submitit.core.utils.FailedJobError as error:  # what sbatch refuses
                raise UserError(f"launcher=submitit: {' '.join(str(error).split())}") from error
            for task, job in zip(same, jobs, strict=True):
                handles[task.name] = Submitted(task, job, f"{self.cluster} job {job.job_id}")
        return [handles[task.name] for task in tasks]

    def adopt(self, task: Task, place: str) -> Handle | None:
        """A job of SLURM that an earlier call submitted and that still waits or runs. Processes of a local executor
        cannot be found again; the task's lock speaks for them."""
        kind, _, number = place.partition(" job ")
        if self.cluster != "slurm" or kind != "slurm" or not number:
            return None
        ranks = list(range(task.needs.nodes * (task.needs.devices or 1)))
        job = self._submitit.SlurmJob(folder=str(own(self.folder).resolve()), job_id=number, tasks=ranks)
        alive = job.watcher.get_state(number, mode="force").split(" ")[0] in ALIVE and not job.done()
        return Submitted(task, job, place) if alive else None

    def close(self) -> None:
        pass


def placed(needs: Needs, cluster: str, threads: int) -> dict[str, Any]:
    """What submitit asks a cluster for: on SLURM every rank of a job is a task of it; on this machine a job starts its
    own ranks, as it does without a launcher."""
    gpus = (needs.devices or 1) if needs.gpu else 0
    if cluster == "local":
        return {"gpus_per_node": gpus}
    found = {"nodes": needs.nodes, "tasks_per_node": needs.devices or 1, "cpus_per_task": threads}
    return {**found, "gpus_per_node": gpus} if gpus else found


class Submitted:
    """A job of submitit's."""

    def __init__(self, task: Task, job: Any, place: str) -> None:
        self._task, self._job, self.place = task, job, place
        self._ended: Ended | None = None

    def poll(self) -> Ended | None:
        if self._ended is None and self._job.done():
            self._ended = self._result()
        return self._ended

    def _result(self) -> Ended:
        try:
            codes = self._job.results()
        except (
            Exception
        ) as error:  # of the cluster, or of what it was asked for: every kind is named, none ends a sweep
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            state = str(self._job.state)
            return Ended(None, f"{self.place}: {state}: {lines[-1]}"[:300])
        if BUSY in codes:
            return ENDED_BUSY
        return Ended(next((code for code in codes if code), 0))

    def ask_to_stop(self) -> None:
        say(self._task.folder, SAVE)
        if str(self._job.state).split(" ")[0] in WAITING:  # it has nothing to save yet
            self._cancel()

    def kill(self) -> None:
        say(self._task.folder, KILL)
        if self.place.startswith("slurm"):
            self._cancel()

    def _cancel(self) -> None:
        with contextlib.suppress(Exception):  # it may have ended in this moment
            self._job.cancel()
