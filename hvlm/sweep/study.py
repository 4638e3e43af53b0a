"""A search: jobs that an Optuna study asks for, and what they came to told to it.

The study is a file, and only one process at a time works on it, so a search that was killed goes on: trials that it
says are running are run again in their own folders, where their stages continue; those that failed are tried again;
finished ones are left. What chance decides depends on the seed and the trial's number alone, so a search that was
stopped asks for the same trials as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hvlm.errors import UserError
from hvlm.io.files import METRICS
from hvlm.io.foreign import number, whole
from hvlm.sweep.job import Job, read_status
from hvlm.sweep.space import Param
from hvlm.sweep.table import read_values, write_text

DIRECTIONS = ("maximize", "minimize")
SAMPLERS = ("tpe", "nsga2", "random")
FIRST, OVERRIDES, SAME_AS = "first", "overrides", "same_as"  # what a trial is told of, beside its values


@dataclass(frozen=True)
class Prune:
    """Stop a trial whose best val/loss so far is worse than what this percentile of the finished trials had reached by
    the same step. after: finished trials before any is stopped. start: first step of a stage at which one is."""

    after: int = 4
    percentile: float = 50.0
    start: int = 0

    def __post_init__(self) -> None:
        if self.after < 1 or not 0 < self.percentile < 100 or self.start < 0:
            raise UserError(
                f"hydra.sweeper.prune: after={self.after} percentile={self.percentile} start={self.start}: expected "
                "after of 1 or more, a percentile between 0 and 100, a start of 0 or more"
            )

    def stops(self, curve: Mapping[tuple[int, int], float], finished: Sequence[Mapping[tuple[int, int], float]]) -> str:
        """Why a trial with this curve is stopped; "" while it goes on."""
        if not curve:
            return ""
        at = max(curve)
        reached = sorted(best for other in finished if at in other and (best := _best(other, at)) is not None)
        if at[1] < self.start or len(reached) < self.after:
            return ""
        limit = reached[min(len(reached) - 1, math.ceil(len(reached) * self.percentile / 100) - 1)]
        best = _best(curve, at)
        if best is not None and best <= limit:
            return ""
        said = "nan" if best is None else f"{best:.4g}"
        return f"val/loss {said} at step {at[1]}: worse than {limit:.4g} of {self.percentile:g} % of finished trials"


def _best(curve: Mapping[tuple[int, int], float], at: tuple[int, int]) -> float | None:
    """The lowest loss of a stage up to a step."""
    return min((v for k, v in curve.items() if k[0] == at[0] and k <= at and math.isfinite(v)), default=None)


def read_curve(folder: Path, stages: Sequence[str]) -> dict[tuple[int, int], float]:
    """{(stage's place in the chain, step): val/loss} of the job in ``folder``, as far as it is."""
    found: dict[tuple[int, int], float] = {}
    for place, stage in enumerate(stages):
        path = folder / stage / METRICS
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # being written, or damaged
                continue
            if not isinstance(record, dict) or not whole(record.get("step")):
                continue
            value = record.get("val/loss", "")
            if value is None or number(value):
                found[place, record["step"]] = float("nan") if value is None else float(value)
    return found


def optuna() -> Any:
    """The package, quiet; UserError where it is not installed."""
    try:
        import optuna as package
    except ImportError as error:
        raise UserError(f"sweep=optuna needs Optuna ({error}): pip install 'hvlm[optuna]'") from error
    package.logging.set_verbosity(package.logging.WARNING)
    warnings.filterwarnings("ignore", category=package.exceptions.ExperimentalWarning)
    return package


def open_study(storage: str, name: str, objectives: Mapping[str, str], made_with: Mapping[str, Any]) -> Any:
    """The study of this name in ``storage`` (a URL), made where it is not there.

    Raises:
        UserError: it was made with other settings than ``made_with``, is damaged, or none of Optuna's.
    """
    package = optuna()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        study = package.create_study(
            storage=storage, study_name=name, directions=list(objectives.values()), load_if_exists=True
        )
        old = study.user_attrs.get("made_with")
    except (SQLAlchemyError, package.exceptions.OptunaError, ImportError, RuntimeError, ValueError) as error:
        why = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise UserError(
            f"hydra.sweeper.storage: {_shown(storage)} cannot be opened as a study of Optuna's ({why}); delete a file "
            "that is damaged or somebody else's, or give another URL or another name with run=..."
        ) from error
    now = json.loads(json.dumps(made_with))
    if old is not None and not isinstance(old, dict):
        raise UserError(f"{_shown(storage)} holds a study {name!r} that is no search of hvlm's; give another run=...")
    if old is None:
        study.set_user_attr("made_with", now)
    elif old != now:
        key = next(k for k in [*old, *now] if old.get(k) != now.get(k))
        raise UserError(
            f"{_shown(storage)} holds a search with another {key} ({old.get(key)}, now {now.get(key)}); give this one "
            "another name with run=..."
        )
    return study


def _shown(storage: str) -> str:
    """The URL without a password."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", storage)


class Search:
    """The source of a sweep's jobs (``hvlm.sweep.launcher.Source``).

    Args:
        study: of ``open_study``.
        params: what is chosen.
        objectives: {name: maximize | minimize}; names as ``hvlm.sweep.table.read_values`` knows them.
        plan_job: makes a job of overrides and a name; UserError where its settings do not go together.
        folder: of the sweep.
        trials: how many different ones.
        startup: of tpe: trials by chance before the model chooses; of nsga2: the size of a generation.
        together: whether several trials run at a time.
    """

    def __init__(
        self,
        study: Any,
        params: Sequence[Param],
        objectives: Mapping[str, str],
        plan_job: Callable[[list[str], str], Job],
        folder: Path,
        *,
        trials: int,
        sampler: Literal["tpe", "nsga2", "random"] = "tpe",
        seed: int = 1,
        startup: int = 10,
        prune: Prune | None = None,
        together: bool = False,
    ) -> None:
        self.study, self.params, self.objectives = study, params, objectives
        self.plan_job, self.folder, self.trials = plan_job, folder, trials
        self.sampler, self.seed, self.startup, self.together = sampler, seed, startup, together
        self.prune = prune
        self.jobs: list[Job] = []  # of all trials, for the table
        self._running: dict[str, Any] = {}  # job's name: its trial
        self._curves: dict[str, dict[tuple[int, int], float]] = {}  # of finished trials, by job
        self._read: dict[str, int] = {}  # bytes of a running job's metrics that were looked at
        self._again = self._left_over()

    # ------------------------------------------------------------------------------------------- of earlier calls

    def _left_over(self) -> list[Any]:
        """Trials that were running when an earlier call was killed; failed ones are put into the queue again, and
        finished ones become rows."""
        package = optuna()
        state = package.trial.TrialState
        frozen = self.study.get_trials(deepcopy=False)
        for trial in frozen:
            if trial.state in (state.COMPLETE, state.PRUNED):
                self._row_of(trial)
        tried_again = {t.user_attrs.get(FIRST) for t in frozen}
        for trial in frozen:
            if trial.state == state.FAIL and trial.number not in tried_again and FIRST not in trial.user_attrs:
                self._try_again(trial, trial.number)
            elif trial.state == state.FAIL and FIRST in trial.user_attrs:
                first = trial.user_attrs[FIRST]
                if trial.number == max(t.number for t in frozen if t.user_attrs.get(FIRST) == first):
                    self._try_again(trial, first)
        return [t for t in frozen if t.state == state.RUNNING]

    def _try_again(self, trial: Any, first: int) -> None:
        self.study.enqueue_trial(trial.params, user_attrs={FIRST: first})

    def _row_of(self, trial: Any) -> None:
        path = self.folder / self._name(trial) / "status.json"
        overrides = list(trial.user_attrs.get(OVERRIDES, []))
        job = Job(self._name(trial), overrides, "", "done")
        if path.exists():
            old = read_status(path)
            vars(job).update({k: v for k, v in old.items() if k in job.record()})
        if SAME_AS in trial.user_attrs:
            job.error = f"the same as trial-{trial.user_attrs[SAME_AS]}"
        if trial.state.name == "COMPLETE":
            job.status, job.values = "done", dict(zip(self.objectives, trial.values, strict=True))
            job.accuracy = job.values.get("accuracy", job.accuracy)
            stages = trial.user_attrs.get("stages", [])
            self._curves[job.name] = read_curve(self.folder / job.name, stages)
        else:
            job.status = "pruned"
        self.jobs.append(job)

    def _name(self, trial: Any) -> str:
        return f"trial-{trial.user_attrs.get(FIRST, trial.number)}"

    # ------------------------------------------------------------------------------------------------ the source

    def next(self) -> Job | None:
        while (trial := self._next_trial()) is not None:
            job = self._job_of(trial)
            if job is not None:
                return job
        return None

    def _next_trial(self) -> Any:
        if self._again:
            frozen = self._again.pop(0)
            self.study.sampler = self._sampler(frozen.number)
            return optuna().trial.Trial(self.study, frozen._trial_id)
        trials = self.study.get_trials(deepcopy=False)
        waits = any(t.state.name == "WAITING" for t in trials)
        if not waits and sum(FIRST not in t.user_attrs for t in trials) >= self.trials:
            return None
        self.study.sampler = self._sampler(len(trials))
        return self.study.ask()

    def _sampler(self, number: int) -> Any:
        samplers = optuna().samplers
        digest = hashlib.sha256(f"{self.seed}-{number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        if self.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        if self.sampler == "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=self.startup)
        return samplers.TPESampler(seed=seed, n_startup_trials=self.startup, constant_liar=self.together)

    def _job_of(self, trial: Any) -> Job | None:
        """The trial's job; None where there is nothing to run."""
        chosen: list[str] = []
        for param in self.params:
            if param.applies(chosen):
                chosen.append(f"{param.key}={param.suggest(trial)}")
        trial.set_user_attr(OVERRIDES, chosen)
        name = self._name(trial)
        if (twin := self._twin(trial, chosen)) is not None:
            trial.set_user_attr(SAME_AS, twin.number)
            self.study.tell(trial, list(twin.values))
            self._row_of(self.study.trials[trial.number])
            return None
        try:
            job = self.plan_job(chosen, name)
        except UserError as error:
            self.jobs.append(Job(name, chosen, "", "failed", error=str(error)))
            self.study.tell(trial, state=optuna().trial.TrialState.FAIL)
            return None
        trial.set_user_attr("stages", list(job.stages))
        self._running[name] = trial
        return job

    def _twin(self, trial: Any, chosen: Sequence[str]) -> Any:
        """An earlier trial that came to its end with the very same choices."""
        for other in self.study.get_trials(deepcopy=False):
            if other.state.name == "COMPLETE" and other.number != trial.number:
                if list(other.user_attrs.get(OVERRIDES, [])) == list(chosen) and SAME_AS not in other.user_attrs:
                    return other
        return None

    def watch(self, job: Job) -> bool:
        """Whether the trial goes on; its job says why not."""
        if self.prune is None:
            return True
        paths = [self.folder / job.name / stage / METRICS for stage in job.stages]
        size = sum(path.stat().st_size for path in paths if path.exists())
        if size == self._read.get(job.name):
            return True
        self._read[job.name] = size
        curve = read_curve(self.folder / job.name, job.stages)
        job.stopping = self.prune.stops(curve, list(self._curves.values()))
        return not job.stopping

    def ended(self, job: Job) -> None:
        """Tell the study what became of a trial.

        Raises:
            UserError: the job ended well without one of the objectives.
        """
        trial, state = self._running.pop(job.name), optuna().trial.TrialState
        if job.status == "done":
            values = read_values(self.folder / job.name, list(self.objectives))
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            if bad:
                job.status, job.error = "failed", f"{bad[0]} is {values[bad[0]]}"
                self.study.tell(trial, state=state.FAIL)
                return
            job.values = values
            self._curves[job.name] = read_curve(self.folder / job.name, job.stages)
            self.study.tell(trial, list(values.values()))
        else:
            self.study.tell(trial, state=state.PRUNED if job.status == "pruned" else state.FAIL)

    # ------------------------------------------------------------------------------------------------- the result

    def front(self) -> list[Any]:
        """The finished trials that no other beats in every objective, by the first of them; each setting once."""
        sign = -1 if next(iter(self.objectives.values())) == "maximize" else 1
        best = [t for t in self.study.best_trials if SAME_AS not in t.user_attrs]
        return sorted(best, key=lambda t: (sign * t.values[0], t.number))

    def write(self) -> list[str]:
        """``search.json`` and ``search.md`` in the sweep's folder: all trials, and the front, returned as lines."""
        front = self.front()
        numbers = {t.number for t in front}
        trials = [
            {
                "number": t.number,
                "job": self._name(t),
                "state": t.state.name.lower(),
                "overrides": t.user_attrs.get(OVERRIDES, []),
                "values": dict(zip(self.objectives, t.values, strict=True)) if t.values else {},
                "front": t.number in numbers,
                **{k: t.user_attrs[k] for k in (FIRST, SAME_AS) if k in t.user_attrs},
            }
            for t in self.study.get_trials(deepcopy=False)
        ]
        names = list(self.objectives)
        lines = ["| " + " | ".join(["trial", *names, "settings"]) + " |", "|" + "---|" * (len(names) + 2)]
        for t in front:
            cells = [self._name(t), *(f"{v:.4g}" for v in t.values), " ".join(t.user_attrs.get(OVERRIDES, []))]
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        states = [t["state"] for t in trials]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        head = [f"# {self.folder.name}", "", f"{len(trials)} trials: {counts}. The front:", ""]
        goal = {"objectives": dict(self.objectives), "sampler": self.sampler, "seed": self.seed, "trials": trials}
        for name, text in (
            ("search.json", json.dumps(goal, indent=1) + "\n"),
            ("search.md", "\n".join([*head, *lines]) + "\n"),
        ):
            write_text(self.folder / name, text)
        return lines
