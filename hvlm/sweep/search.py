"""``sweep=optuna``: Hydra's sweeper that lets an Optuna study choose the jobs, for any launcher.

The space is ``hydra.sweeper.params`` in the language of every other sweep (``foveated,mean``, ``interval(0.2,1)``,
``int(interval(1,8))``, ``range(1,9,2)``, ``tag(log,interval(1e-4,1e-2))``); what the command line sweeps is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hvlm.config.schema import did_you_mean
from hvlm.errors import UserError
from hvlm.io.files import write_atomically
from hvlm.io.lock import locked
from hvlm.sweep.clusters import RayLauncher, SubmititLauncher
from hvlm.sweep.launcher import JobLauncher, plain, register
from hvlm.sweep.space import Param, wandb_sweep, with_conditions
from hvlm.sweep.study import DIRECTIONS, SAMPLERS, Prune, Search, open_study, optuna

KEY = "hydra.sweeper"
STUDY = "study.db"  # in the sweep's folder, where hydra.sweeper.storage names no other


class OptunaSweeper(Sweeper):
    """Settings as in conf/sweep/optuna.yaml. storage: a URL of Optuna's; None: ``study.db`` in the sweep's folder."""

    __module__ = "hydra_plugins.hvlm"

    def __init__(
        self,
        trials: int,
        sampler: str,
        seed: int,
        startup: int,
        objectives: DictConfig,
        params: DictConfig,
        only: DictConfig | None = None,
        prune: DictConfig | None = None,
        storage: str | None = None,
    ) -> None:
        if sampler not in SAMPLERS:
            raise UserError(f"{KEY}.sampler={sampler}: no such sampler;{did_you_mean(sampler, list(SAMPLERS))}")
        for name, value in (("trials", trials), ("startup", startup)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{KEY}.{name}={value}: expected a whole number of 1 or more")
        if not isinstance(seed, int):
            raise UserError(f"{KEY}.seed={seed}: expected a whole number")
        self.objectives = plain(objectives)
        bad = next((n for n, d in self.objectives.items() if d not in DIRECTIONS), None)
        if bad is not None or not self.objectives:
            said = f".{bad}={self.objectives[bad]}" if bad else "={}"
            raise UserError(f"{KEY}.objectives{said}: expected {{name: maximize or minimize}}")
        self.trials, self.sampler, self.seed, self.startup = trials, sampler, seed, startup
        self.given, self.only, self.storage = plain(params), plain(only), storage
        self.prune = _prune(plain(prune)) if prune is not None else None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        optuna()  # before anything is done, where it is not installed
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        assert isinstance(launcher, JobLauncher), launcher
        self.job_launcher = launcher
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        """Run the search, or the rest of it."""
        setup_globals()
        launcher = self.job_launcher
        params, fixed = self._space()
        folder, name = launcher.folder, launcher.sweep
        if not (folder / STUDY).exists():  # it is made after this, and refuses another space
            self._check(params, fixed)
        with locked(folder, f"run={name}"):
            made_with = {
                "command": sorted([*launcher.common, *fixed]),
                "params": [vars(p) for p in params],
                "objectives": self.objectives,
                "sampler": self.sampler,
                "seed": self.seed,
                "startup": self.startup,
            }
            storage = self.storage or f"sqlite:///{folder}/{STUDY}"
            study = open_study(storage, name, self.objectives, made_with)
            self._write_wandb(params, fixed)
            search = Search(
                study, params, self.objectives, lambda chosen, job: launcher.plan_job([*fixed, *chosen], job), folder,
                trials=self.trials, sampler=self.sampler, seed=self.seed, startup=self.startup,  # type: ignore[arg-type]
                prune=self.prune, together=launcher.jobs != 1,
            )  # fmt: skip
            launcher.waits_for_busy = True
            try:
                launcher.run(search, search.jobs, f"{self.trials} trials by {self.sampler}, {len(search.jobs)} before")
            finally:
                front = search.write()
        launcher.console.print(f"front of {', '.join(f'{n} ({d})' for n, d in self.objectives.items())}:", markup=False)
        launcher.console.print("\n".join(front), markup=False, soft_wrap=True)
        launcher.console.print(f"all trials: {folder}/search.md and search.json", markup=False, soft_wrap=True)
        bad = [job.name for job in search.jobs if job.status not in ("done", "pruned")]
        if bad:
            raise UserError(
                f"{len(bad)} of {len(search.jobs)} trials did not end ({', '.join(bad[:3])}): see {folder}/sweep.md; "
                "the same command tries them again"
            )

    # ------------------------------------------------------------------------------------------------ the space

    def _space(self) -> tuple[list[Param], list[str]]:
        """(what is searched, overrides of ``params`` that say one value)."""
        params: dict[str, Param] = {}
        fixed: list[str] = []
        for key, value in self.given.items():
            text = f"choice({','.join(map(str, value))})" if isinstance(value, list) else value
            text = str(text).lower() if isinstance(text, bool | None.__class__) else text
            try:
                override = OverridesParser.create().parse_override(f"{key}={'null' if text == 'none' else text}")
            except HydraException as error:
                raise UserError(f"{KEY}.params.{key}={text}: cannot be read ({str(error).splitlines()[-1]})") from error
            if override.is_sweep_override():
                params[key] = _param(override)
            else:
                fixed.append(override.input_line or f"{key}={text}")
        for override in self.job_launcher.given:
            if override.is_sweep_override():
                params[override.get_key_element()] = _param(override)
        if not params:
            raise UserError(
                f"{KEY}.params: nothing to search; give key=a,b or key=interval(low,high) on the command line, or a "
                "file sweep/<name>.yaml with hydra.sweeper.params"
            )
        return with_conditions(list(params.values()), self.only), fixed

    def _check(self, params: Sequence[Param], fixed: Sequence[str]) -> None:
        """Compose each value of each parameter once, before the first trial: beside the others' first ones."""
        for changed in params:
            for value in changed.ends():
                chosen: list[str] = []
                for param in params:
                    if param is changed or param.applies(chosen):
                        chosen.append(f"{param.key}={value if param is changed else self._first(param, changed)}")
                if changed.applies(chosen):
                    self.job_launcher.plan_job([*fixed, *chosen], "trial")

    def _first(self, param: Param, changed: Param) -> str:
        """The value of another parameter while one is tried: one with which that counts at all."""
        for override in changed.only:
            key, _, value = override.partition("=")
            if key == param.key:
                return value
        return param.ends()[0]

    def _write_wandb(self, params: Sequence[Param], fixed: Sequence[str]) -> None:
        common = [o for o in self.job_launcher.common if not o.startswith("run=")]
        text = wandb_sweep(params, list(self.objectives), [*_program(), *fixed, *common], self.sampler, self.trials)
        write_atomically(self.job_launcher.folder / "wandb_sweep.yaml", lambda f: f.write(text.encode()))


def _program() -> list[str]:
    from hvlm.console import is_hvlm, typed

    return typed()[:2] if is_hvlm() else ["python", typed()[1]]


def _prune(given: Mapping[str, Any]) -> Prune:
    known = list(Prune.__dataclass_fields__)
    unknown = next((key for key in given if key not in known), None)
    if unknown is not None:
        raise UserError(f"{KEY}.prune.{unknown}: no such setting;{did_you_mean(unknown, known)}")
    return Prune(**given)


def _param(override: Override) -> Param:
    """A swept override as a parameter."""
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or low >= high:
            raise UserError(f"{key}: interval({low},{high}) is empty; expected interval(low,high)")
        log = "log" in value.tags
        if log and low <= 0:
            raise UserError(f"{key}: interval({low},{high}) has no logarithm; expected numbers above 0")
        return Param(key, low=low, high=high, log=log, whole=isinstance(low, int) and isinstance(high, int))
    if isinstance(value, RangeSweep) and all(isinstance(v, int) for v in (value.start, value.stop, value.step)):
        inside = range(value.start, value.stop, value.step)  # type: ignore[arg-type]
        if len(inside) > 1 and value.step > 0:
            return Param(key, low=inside[0], high=inside[-1], whole=True, step=value.step)  # type: ignore[arg-type]
    return Param(key, choices=tuple(str(v) for v in override.sweep_string_iterator()))


register(OptunaSweeper, SubmititLauncher, RayLauncher)
