"""Sweeps: every job is a child process with a log and a status file of its own.

Hydra's own launchers run the jobs inside the sweeping process: a job that the system kills takes the others with it,
and under DDP every rank would run the whole sweep. Here a job is ``python train.py <overrides> run=<sweep>/<job>`` (or
``hvlm train ...``, as the sweep was started), so it is a single run like any other: what is not swept reaches it word
for word, in the order in which it was written, and its configuration is made by the function that makes a single run's.
Calling the same sweep again runs what is missing.

Hydra only instantiates plugins from a top-level package ``hydra_plugins``; the class says it lives there, and
the file gives itself that name when it is imported, which spares the project that package.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console
from rich.live import Live

from hvlm.config.compose import plan
from hvlm.config.words import as_written, key_of, quoted, text_of
from hvlm.console import program
from hvlm.errors import UserError
from hvlm.io.files import write_atomically
from hvlm.io.processors import usable_processors
from hvlm.sweep.table import read_numbers, read_rows, seeds_table, table, write_table
from hvlm.training.identity import config_id

ROOT = Path("runs")


@dataclass
class Job:
    """One job of a sweep and what became of it; ``status.json`` in its folder holds the same fields."""

    name: str
    overrides: list[str]
    config: str  # config_id of its stages
    status: Literal["waiting", "running", "done", "failed", "killed", "busy"] = "waiting"
    returncode: int | None = None
    signal: str | None = None
    seconds: float = 0.0
    log: str = ""
    error: str = ""  # the log's last line, when it failed
    accuracy: float | None = None
    stderr: float | None = None  # of the accuracy
    val_loss: float | None = None  # at the end of the last stage
    process: Any = field(default=None, repr=False)
    started: float = 0.0

    def record(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("process", "started")}


class ProcessLauncher(Launcher):
    """jobs: how many run at a time. threads: of each job; None divides the machine's by ``jobs``. script: what a job
    runs; None = the script that was called."""

    __module__ = "hydra_plugins.hvlm"

    def __init__(self, jobs: int = 1, threads: int | None = None, script: str | None = None) -> None:
        if jobs < 1:
            raise UserError(f"hydra.launcher.jobs={jobs}: expected 1 or more")
        self.jobs = jobs
        self.threads = threads or max(1, usable_processors() // jobs)
        self.script = script
        self.console = Console(highlight=False)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.task = config, task_function
        self.given = OverridesParser.create().parse_overrides(as_written(config.hydra.overrides.task))
        self.common = [o.input_line for o in self.given if not o.is_sweep_override()]
        self.sweep = self._sweep_name()
        self.folder = ROOT / self.sweep
        self.finished: list[Job] = []  # of all batches: a sweeper may call launch many times
        with read_write(config), open_dict(config):  # where the sweeper writes its multirun.yaml
            config.hydra.sweep.dir = str(self.folder)

    def _sweep_name(self) -> str:
        """``run=NAME`` of the command line, else a name made from what is swept: the same command, the same folder."""
        if self.task.folder == "out" and any(key_of(o.input_line) == "out" for o in self.given):
            raise UserError("out=: each job of a sweep writes to runs/<sweep>/<job>; name the sweep with run=...")
        runs = [o for o in self.given if key_of(o.input_line) == "run"]
        if runs:
            if runs[-1].is_sweep_override():
                raise UserError(f"{runs[-1].input_line}: a sweep has one folder; give one name, or none")
            return text_of(runs[-1].input_line)
        sweeper = OmegaConf.to_container(self.config.hydra.sweeper, resolve=False)
        text = json.dumps([sorted(o.input_line for o in self.given), sweeper], sort_keys=True, default=str)
        return f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs and returns their accuracies; a failed job's return value raises when it is read."""
        setup_globals()
        jobs = [self._plan_job(as_a_single_run(self.given, filter_overrides(o))) for o in job_overrides]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.console.print(f"sweep {self.folder}: {len(jobs)} jobs, {self.jobs} at a time, {self.threads} threads each")
        before = signal.signal(signal.SIGTERM, _exit_on_sigterm)
        try:
            self._run(jobs)
        except KeyboardInterrupt:
            self.console.print("stopping: the running jobs save what they have; Ctrl-C again kills them")
            raise SystemExit(130) from None
        finally:
            stop([job.process for job in jobs if job.process is not None])
            for job in jobs:
                if job.status == "running":
                    self._finish(job)
            signal.signal(signal.SIGTERM, before)
            self.finished += jobs
            rows = read_rows(self.folder, [j.record() for j in self.finished])
            write_table(self.folder, rows)
        self.console.print(table(self.sweep, rows))
        if (seeds := seeds_table(rows)) is not None:
            self.console.print(seeds)
        self.console.print(f"written to {self.folder}/sweep.md, sweep.csv and sweep.json")
        self._report()
        return [self._job_return(job, jobs) for job in jobs]

    def _report(self) -> None:
        """All finished jobs side by side. What they cannot be put together for is said, and is no failure of theirs."""
        if not any(job.status == "done" for job in self.finished):
            return
        from hvlm.evaluation import report_runs, runs  # not before the end: the sweep's own process stays small

        try:
            found, notes = runs.find([self.folder], scored=False)
            page = report_runs.write(found, self.folder, f"hvlm report runs={self.folder}", notes)
        except (UserError, OSError) as error:
            self.console.print(f"no report: {error}", markup=False, soft_wrap=True)
        else:
            self.console.print(f"report: {page}", markup=False, soft_wrap=True)

    # ------------------------------------------------------------------------------------------------ one job

    def _plan_job(self, overrides: list[str]) -> Job:
        """Composes and checks the job's stages, before any job starts."""
        overrides = [o for o in overrides if key_of(o) != "run"]
        try:
            stages = plan(overrides, self.task.configure)
        except UserError as e:
            raise UserError(f"job {' '.join(overrides)}: {e}") from e
        return Job(name=job_name(overrides, self.common), overrides=overrides, config=config_id(*stages.values()))

    def _status_file(self, job: Job) -> Path:
        return self.folder / job.name / "status.json"

    def _is_done(self, job: Job) -> bool:
        """Whether an earlier call ran this very job to its end; then its numbers are taken over."""
        if not self._status_file(job).exists():
            return False
        old = json.loads(self._status_file(job).read_text())
        if old["status"] != "done" or old["overrides"] != job.overrides or old["config"] != job.config:
            return False
        for key in ("status", "returncode", "seconds", "log"):
            setattr(job, key, old[key])
        self._read(job)
        return True

    def _read(self, job: Job) -> None:
        """The numbers that a finished job has left in its folder."""
        job.accuracy, job.stderr, job.val_loss = read_numbers(self.folder / job.name)

    def _start(self, job: Job) -> None:
        folder = self.folder / job.name
        folder.mkdir(parents=True, exist_ok=True)
        # The lock lives as long as the child does, even when this process is killed: no job ever runs twice at once.
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            job.status, job.error = "busy", "already runs in a process that an earlier call started"
            return
        overrides = list(job.overrides)
        if not any(key_of(o) == "logger.group" for o in overrides):
            overrides.append(f"logger.group={quoted(self.sweep)}")
        where = str(folder) if self.task.folder == "out" else f"{self.sweep}/{job.name}"
        overrides.append(f"{self.task.folder}={quoted(where)}")
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        job.log, job.status, job.started = str(folder / "log.txt"), "running", time.monotonic()
        with open(job.log, "ab") as log:
            job.process = subprocess.Popen(
                [*program(self.script), *overrides],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=(lock,),
            )
        os.close(lock)

    def _finish(self, job: Job) -> None:
        code = job.process.returncode
        job.seconds = round(time.monotonic() - job.started, 1)
        job.returncode = code
        if code == 0:
            job.status = "done"
            self._read(job)
        elif code < 0:
            job.status, job.signal = "killed", signal.Signals(-code).name
            job.error = f"killed by {job.signal}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
        else:
            job.status, job.error = "failed", _last_line(Path(job.log))
        text = json.dumps(job.record(), indent=1) + "\n"
        write_atomically(self._status_file(job), lambda f: f.write(text.encode()))

    # ------------------------------------------------------------------------------------------------ all jobs

    def _run(self, jobs: list[Job]) -> None:
        waiting = [job for job in jobs if not self._is_done(job)]
        if len(waiting) < len(jobs):
            self.console.print(f"{len(jobs) - len(waiting)} of {len(jobs)} jobs are already done")
        running: list[Job] = []
        live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        with live or contextlib.nullcontext():
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    job = waiting.pop(0)
                    self._start(job)
                    if job.status == "running":
                        running.append(job)
                    self._say(job, live)
                time.sleep(0.1)
                for job in list(running):
                    job.seconds = round(time.monotonic() - job.started, 1)
                    if job.process.poll() is not None:
                        self._finish(job)
                        running.remove(job)
                        self._say(job, live)
                if live is not None:
                    live.update(table(self.sweep, [j.record() for j in jobs]), refresh=True)

    def _say(self, job: Job, live: Live | None) -> None:
        """Without a terminal: one line when a job starts and one when it ends."""
        if live is None:
            seconds = "" if job.status == "running" else f" in {job.seconds:.0f} s"
            note = f": {job.error}" if job.error else ""
            self.console.print(f"{job.status} {job.name}{seconds}{note}", markup=False, highlight=False, soft_wrap=True)

    def _job_return(self, job: Job, jobs: list[Job]) -> JobReturn:
        result = JobReturn(overrides=job.overrides, working_dir=str(self.folder / job.name), task_name=job.name)
        if job.status == "done":
            result.status, result.return_value = JobStatus.COMPLETED, job.accuracy
        else:
            bad = sum(j.status != "done" for j in jobs)
            result.status = JobStatus.FAILED
            result.return_value = UserError(f"{bad} of {len(jobs)} jobs did not finish: see {self.folder}/sweep.md")
        return result


def stop(processes: list[subprocess.Popen], patience: float = 60.0) -> None:
    """SIGTERM to those that still run, so that they save; SIGKILL to those that have not ended after ``patience`` s, or
    to all at the next Ctrl-C."""
    alive = [p for p in processes if p.poll() is None]
    for process in alive:
        process.terminate()
    try:
        until = time.monotonic() + patience
        for process in alive:
            process.wait(max(0.0, until - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in alive:
            process.kill()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # they end in a moment, and the table is still to be written
    try:
        for process in alive:
            process.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def _exit_on_sigterm(signum: int, frame: Any) -> None:
    raise SystemExit(128 + signum)


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return textwrap.shorten(lines[-1], 240, placeholder=" ...") if lines else "no output"


def as_a_single_run(given: Sequence[Override], chosen: Sequence[str]) -> list[str]:
    """A job's overrides as somebody would write them for this run alone.

    Hydra's sweeper keeps one override for each key and writes it anew; alone, several of one key count (maps are laid
    over each other), in their order.

    Args:
        given: the command line.
        chosen: what the sweeper made of it for this job. Keys that do not stand on the command line (``sweep=<name>``
            sets some) come first, as there.
    """
    values = {o.split("=", 1)[0]: o for o in chosen}
    keys = [o.get_key_element() for o in given]
    for override, key in zip(given, keys, strict=True):
        if override.is_sweep_override() and keys.count(key) > 1:
            raise UserError(f"{override.input_line}: {key} is given again; a key that is swept is given once")
    own = [values[k] if o.is_sweep_override() else o.input_line for o, k in zip(given, keys, strict=True)]
    return [o for key, o in values.items() if key not in keys] + own


def job_name(overrides: Sequence[str], common: Sequence[str]) -> str:
    """``connector-mean_seed-2``: a folder name from the overrides that the sweep varies (all but ``common``).

    When characters had to go, eight digits of a hash keep two jobs apart.
    """
    varied = [o for o in overrides if o not in common] or list(overrides)
    text = "_".join(f"{key_of(o)}-{text_of(o)}" if "=" in o else o for o in varied) or "only"
    name = re.sub(r"[^\w.+-]", "-", text)[:100].strip(".")
    if name != text:
        name += "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return name


def _register() -> None:
    """Makes this file importable as ``hydra_plugins.hvlm``, beside whatever plugins are really installed there."""
    try:
        package = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:
        package = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        package.__path__ = []
    package.hvlm = sys.modules["hydra_plugins.hvlm"] = sys.modules[__name__]
    Plugins.instance().register(ProcessLauncher)


_register()
