"""Sweeps: every job is a process of its own with a log and a status file, wherever it runs.

Hydra's own launchers run the jobs inside the sweeping process: a job that the system kills takes the others with it,
and under DDP every rank would run the whole sweep. Here a job is ``python train.py <overrides> run=<sweep>/<job>`` (or
``hvlm train ...``, as the sweep was started), so it is a single run like any other: what is not swept reaches it word
for word, in the order in which it was written, and its configuration is made by the function that makes a single run's.
Its own ranks are its own children, with its very command. Calling the same sweep again runs what is missing.

Where a job's process runs is an engine's matter (``hvlm.sweep.engine``); a launcher of conf/launcher is ``JobLauncher``
with one of them. Which jobs there are is said by a source: Hydra's list of combinations, or a search.

Hydra only instantiates plugins from a top-level package ``hydra_plugins``; the classes say they live there, and
the file gives itself that name when it is imported, which spares the project that package.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import signal
import sys
import time
import types
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.plugin import Plugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console
from rich.live import Live

from hvlm.config.compose import plan
from hvlm.config.words import as_written, key_of, quoted, text_of
from hvlm.console import program
from hvlm.errors import UserError
from hvlm.io.files import write_atomically
from hvlm.io.lock import locked
from hvlm.io.processors import usable_processors
from hvlm.sweep.engine import Engine, Task, stop
from hvlm.sweep.job import Job, job_name, last_line, needs_of, read_status
from hvlm.sweep.processes import Processes
from hvlm.sweep.table import read_numbers, read_rows, seeds_table, table, write_table
from hvlm.training.identity import config_id

ROOT = Path("runs")
BUSY_SECONDS = 2.0  # between two looks at a job that another process still runs
OF_THE_SEARCH = ("trials", "storage")  # of hydra.sweeper: a longer search is the same one


class Source(Protocol):
    """Which jobs a sweep has, asked for while others run."""

    def next(self) -> Job | None:
        """The next job; None: none now, and none at all once nothing runs any more."""
        ...

    def watch(self, job: Job) -> bool:
        """Whether a running job should go on."""
        ...

    def ended(self, job: Job) -> None: ...


class Listed:
    """The jobs of a list, each to its end."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)

    def next(self) -> Job | None:
        return self.jobs.pop(0) if self.jobs else None

    def watch(self, job: Job) -> bool:
        return True

    def ended(self, job: Job) -> None:
        pass


class Ended(JobReturn):
    """What became of a job. Hydra's own writes the overrides of a failed one before it raises our line."""

    @property
    def return_value(self) -> Any:
        if isinstance(self._return_value, UserError):
            raise self._return_value
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


class JobLauncher(Launcher):
    """What all launchers do: plan jobs, hand them to an engine, and make one table of what became of them.

    jobs: how many run, or wait in a queue, at a time; None: all of them. script: what a job runs; None = the script
    that was called.
    """

    waits_for_busy = False  # whether a job that another process still runs is waited for, or named

    def __init__(self, jobs: int | None, script: str | None) -> None:
        if jobs is not None and jobs < 1:
            raise UserError(f"hydra.launcher.jobs={jobs}: expected 1 or more")
        self.jobs = jobs
        self.script = script
        self.console = Console(highlight=False)

    @abstractmethod
    def make_engine(self) -> Engine:
        """Where the jobs run; made after all of them were checked."""

    def check(self, job: Job) -> None:
        """UserError for a job that the engine cannot run, before any job starts."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.task: Any = task_function  # with what hvlm.cli has hung on it
        written = [
            o for o in as_written(config.hydra.overrides.task) if key_of(o) != "launcher"
        ]  # another: the same sweep
        self.given = OverridesParser.create().parse_overrides(written)
        self.common = [said(o) for o in self.given if not o.is_sweep_override()]
        self.sweep = self._sweep_name()
        self.folder = ROOT / self.sweep
        self.finished: list[Job] = []  # of all batches: a sweeper may call launch many times
        with read_write(config), open_dict(config):  # where the sweeper writes its multirun.yaml
            config.hydra.sweep.dir = str(self.folder)

    def _sweep_name(self) -> str:
        """``run=NAME`` of the command line, else a name made from what is swept: the same command, the same folder."""
        if self.task.folder == "out" and any(key_of(said(o)) == "out" for o in self.given):
            raise UserError("out=: each job of a sweep writes to runs/<sweep>/<job>; name the sweep with run=...")
        runs = [o for o in self.given if key_of(said(o)) == "run"]
        if runs:
            if runs[-1].is_sweep_override():
                raise UserError(f"{runs[-1].input_line}: a sweep has one folder; give one name, or none")
            return text_of(said(runs[-1]))
        sweeper: Any = OmegaConf.to_container(self.config.hydra.sweeper, resolve=False)
        sweeper = {key: value for key, value in sweeper.items() if key not in OF_THE_SEARCH}
        text = json.dumps([sorted(said(o) for o in self.given), sweeper], sort_keys=True, default=str)
        return f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs and returns their accuracies; a failed job's return value raises when it is read."""
        setup_globals()
        jobs = [self.plan_job(filter_overrides(o)) for o in job_overrides]
        with locked(self.folder, f"run={self.sweep}"):  # jobs lock their own folders; the table is this process's
            self.run(Listed(jobs), jobs, f"{len(jobs)} jobs")
        return [self._job_return(job, jobs) for job in jobs]

    def run(self, source: Source, jobs: list[Job], what: str) -> None:
        """Run the jobs of ``source``, and write the table, however that ends.

        Args:
            jobs: those that are known from the start; others are added as the source gives them.
            what: is run, for the line that says so.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        engine = self.make_engine()
        together = "all" if self.jobs is None else self.jobs
        how = f"{what}, {together} at a time, {engine.threads} threads each"
        self.console.print(f"sweep {self.folder}: {how}", soft_wrap=True)
        before = signal.signal(signal.SIGTERM, _exit_on_sigterm)
        try:
            self._run(engine, source, jobs)
        except KeyboardInterrupt:
            self.console.print("stopping: the running jobs save what they have; Ctrl-C again kills them")
            raise SystemExit(130) from None
        finally:
            stop([job.handle for job in jobs if job.handle is not None and job.status == "running"])
            for job in jobs:
                if job.status == "running":
                    self._finish(job)
            engine.close()
            signal.signal(signal.SIGTERM, before)
            self.finished += jobs
            rows = read_rows(self.folder, [j.record() for j in self.finished])
            write_table(self.folder, rows)
        self.console.print(table(self.sweep, rows))
        if (seeds := seeds_table(rows)) is not None:
            self.console.print(seeds)
        self.console.print(f"written to {self.folder}/sweep.md, sweep.csv and sweep.json")
        self._report()

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

    def plan_job(self, chosen: Sequence[str], name: str | None = None) -> Job:
        """A job of these values for what is swept, its stages composed and checked.

        Raises:
            UserError: what a single run of them would say, with the job's overrides before it.
        """
        overrides = [o for o in as_a_single_run(self.given, chosen) if key_of(o) != "run"]
        try:
            stages = plan(overrides, self.task.configure)
        except UserError as e:
            raise UserError(f"job {' '.join(overrides)}: {e}") from e
        name = job_name(overrides, self.common) if name is None else name
        job = Job(name, overrides, config_id(*stages.values()), stages=tuple(stages), needs=needs_of(stages))
        self.check(job)
        return job

    def status_of(self, job: Job) -> dict[str, Any]:
        """What an earlier call wrote down of this very job; empty where there is nothing."""
        path = self.folder / job.name / "status.json"
        old = read_status(path) if path.exists() else {}
        same = old and old["overrides"] == job.overrides and old["config"] == job.config
        return old if same else {}

    def take_over(self, job: Job, old: dict[str, Any]) -> None:
        """Make the record of an earlier call that of this job."""
        for key in ("status", "returncode", "signal", "seconds", "log", "error", "place", "values"):
            setattr(job, key, old.get(key, getattr(job, key)))
        self._read(job)

    def _is_done(self, job: Job) -> bool:
        """Whether an earlier call ran this very job to its end; then its numbers are taken over."""
        old = self.status_of(job)
        if old.get("status") != "done":
            return False
        self.take_over(job, old)
        return True

    def _read(self, job: Job) -> None:
        """The numbers that a finished job has left in its folder."""
        if job.status == "done":
            job.accuracy, job.stderr, job.val_loss = read_numbers(self.folder / job.name)

    def _task(self, job: Job, threads: int) -> Task:
        folder = self.folder / job.name
        folder.mkdir(parents=True, exist_ok=True)
        overrides = list(job.overrides)
        if not any(key_of(o) == "logger.group" for o in overrides):
            overrides.append(f"logger.group={quoted(self.sweep)}")
        where = str(folder) if self.task.folder == "out" else f"{self.sweep}/{job.name}"
        overrides.append(f"{self.task.folder}={quoted(where)}")
        environment = {**self.task.environment, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        return Task(job.name, [*program(self.script), *overrides], folder, environment, job.needs)

    def _start(self, jobs: Sequence[Job], engine: Engine) -> None:
        tasks = [self._task(job, engine.threads) for job in jobs]
        found = [self._adopted(job, task, engine) for job, task in zip(jobs, tasks, strict=True)]
        new = [task for task, handle in zip(tasks, found, strict=True) if handle is None]
        submitted = iter(engine.submit(new) if new else [])
        for job, task, handle in zip(jobs, tasks, found, strict=True):
            job.handle = next(submitted) if handle is None else handle
            job.place, job.log = job.handle.place, str(task.folder / "log.txt")
            job.status, job.error, job.started = "running", "", time.monotonic()
            ended = job.handle.poll()
            if ended is not None and ended.busy:
                job.status, job.error = "busy", ended.error
            else:
                self._write_status(job)  # by which a later call finds what still runs elsewhere

    def _adopted(self, job: Job, task: Task, engine: Engine) -> Any:
        old = self.status_of(job)
        return engine.adopt(task, old.get("place", "")) if old.get("status") == "running" else None

    def _write_status(self, job: Job) -> None:
        text = json.dumps(job.record(), indent=1) + "\n"
        write_atomically(self.folder / job.name / "status.json", lambda f: f.write(text.encode()))

    def _finish(self, job: Job) -> None:
        ended = job.handle.poll() if job.handle is not None else None
        if ended is None:  # deaf even to being killed, or a machine that does not answer
            job.status, job.error = "killed", f"did not end when it was killed ({job.place})"
            return
        job.seconds = round(time.monotonic() - job.started, 1)
        job.returncode, job.signal = ended.returncode, ended.signal
        if ended.busy:
            job.status, job.error = "busy", ended.error
            return
        if job.returncode == 0:
            job.status = "done"
            self._read(job)
        elif job.stopping:
            job.status, job.error = "pruned", job.stopping
        elif job.returncode is None:
            job.status, job.error = "killed", ended.error
        elif job.returncode < 0:
            memory = " (out of memory?)" if job.signal == "SIGKILL" else ""
            job.status, job.error = "killed", ended.error or f"killed by {job.signal}{memory}"
        else:
            job.status, job.error = "failed", ended.error or last_line(Path(job.log))
        self._write_status(job)

    # ------------------------------------------------------------------------------------------------ all jobs

    def _run(self, engine: Engine, source: Source, jobs: list[Job]) -> None:
        known, done, told = set(map(id, jobs)), 0, 0
        running: list[Job] = []
        again: list[Job] = []  # busy in another process
        live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        with live or contextlib.nullcontext():
            while True:
                ready = [job for job in again if time.monotonic() - job.started >= BUSY_SECONDS]
                again = [job for job in again if job not in ready]
                while self.jobs is None or len(running) + len(again) + len(ready) < self.jobs:
                    job = source.next()
                    if job is None:
                        break
                    if id(job) not in known:
                        jobs.append(job)
                        known.add(id(job))
                    if self._is_done(job):
                        done += 1
                        source.ended(job)
                    else:
                        ready.append(job)
                if done > told:
                    told = done
                    self.console.print(f"{done} of {len(jobs)} jobs are already done")
                if ready:
                    self._start(ready, engine)
                for job in ready:
                    busy = job.status == "busy"
                    running += [job] * (not busy)
                    again += [job] * (busy and self.waits_for_busy)
                    if not (busy and self.waits_for_busy):
                        self._say(job, live)
                if not running and not again and not ready:
                    return
                time.sleep(0.1)
                for job in list(running):
                    job.seconds = round(time.monotonic() - job.started, 1)
                    if job.handle is not None and job.handle.poll() is not None:
                        self._finish(job)
                        running.remove(job)
                        if job.status == "busy" and self.waits_for_busy:
                            again.append(job)
                            continue
                        self._say(job, live)
                        source.ended(job)
                    elif not job.stopping and job.handle is not None and not source.watch(job):
                        job.stopping = job.stopping or "stopped early"
                        job.handle.ask_to_stop()
                if live is not None:
                    live.update(table(self.sweep, [j.record() for j in jobs]), refresh=True)

    def _say(self, job: Job, live: Live | None) -> None:
        """Without a terminal: one line when a job starts and one when it ends."""
        if live is None:
            seconds = "" if job.status == "running" else f" in {job.seconds:.0f} s"
            note = f": {job.error}" if job.error else ""
            self.console.print(f"{job.status} {job.name}{seconds}{note}", markup=False, highlight=False, soft_wrap=True)

    def _job_return(self, job: Job, jobs: list[Job]) -> JobReturn:
        result = Ended(overrides=job.overrides, working_dir=str(self.folder / job.name), task_name=job.name)
        if job.status == "done":
            result.status, result.return_value = JobStatus.COMPLETED, job.accuracy
        else:
            bad = sum(j.status != "done" for j in jobs)
            result.status = JobStatus.FAILED
            result.return_value = UserError(f"{bad} of {len(jobs)} jobs did not finish: see {self.folder}/sweep.md")
        return result


class ProcessLauncher(JobLauncher):
    """jobs: how many run at a time; None: all. threads: of each job; None divides the machine's by ``jobs``, of all by
    itself. script: what a job runs; None = the script that was called."""

    __module__ = "hydra_plugins.hvlm"

    def __init__(self, jobs: int | None = 1, threads: int | None = None, script: str | None = None) -> None:
        super().__init__(jobs, script)
        self.threads = threads or max(1, usable_processors() // (jobs or usable_processors()))

    def make_engine(self) -> Engine:
        return Processes(self.threads)


def said(override: Override) -> str:
    """An override as it was written."""
    return override.input_line or ""


def plain(config: Any) -> dict[str, Any]:
    """A map of a launcher's or a sweeper's settings as a dict; null as an empty one."""
    found: Any = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    return dict(found or {})


def _exit_on_sigterm(signum: int, frame: Any) -> None:
    raise SystemExit(128 + signum)


def as_a_single_run(given: Sequence[Override], chosen: Sequence[str]) -> list[str]:
    """A job's overrides as somebody would write them for this run alone.

    Hydra's sweeper keeps one override for each key and writes it anew; alone, several of one key count (maps are laid
    over each other), in their order.

    Args:
        given: the command line.
        chosen: what the sweeper made of it for this job. Keys that do not stand on the command line (``sweep=<name>``
            sets some) come first, as there.
    """
    values = {o.split("=", 1)[0]: o for o in chosen if key_of(o) != "launcher"}
    keys = [o.get_key_element() for o in given]
    for override, key in zip(given, keys, strict=True):
        if override.is_sweep_override() and keys.count(key) > 1:
            raise UserError(f"{override.input_line}: {key} is given again; a key that is swept is given once")
    own = [values[k] if o.is_sweep_override() else said(o) for o, k in zip(given, keys, strict=True)]
    return [o for key, o in values.items() if key not in keys] + own


def register(*plugins: Callable[..., Plugin]) -> None:
    """Make these classes importable from ``hydra_plugins.hvlm``, beside whatever plugins are really installed there."""
    try:
        package = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:
        package = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        package.__path__ = []
    module = sys.modules.setdefault("hydra_plugins.hvlm", sys.modules[__name__])
    vars(package)["hvlm"] = module
    for plugin in plugins:
        setattr(module, plugin.__name__, plugin)
        Plugins.instance().register(plugin)  # type: ignore[arg-type]


register(ProcessLauncher)
