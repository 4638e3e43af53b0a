"""What a search may choose from: one map of keys, read by Optuna's sampler and written as the YAML of a W&B sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hvlm.errors import UserError


@dataclass(frozen=True)
class Param:
    """One key of the command line and what it may be: ``choices`` as Hydra writes them, or a range of numbers.

    whole: whether the numbers are whole ones. step: between whole numbers. only: overrides (``merger=tome``) of keys
    that stand before it, with one of which it is a setting at all; empty: always.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    step: int = 1
    only: tuple[str, ...] = ()

    def applies(self, chosen: Sequence[str]) -> bool:
        """Whether the key is chosen at all, beside these overrides."""
        return not self.only or any(o in chosen for o in self.only)

    def ends(self) -> list[str]:
        """Values to try whether the setting takes them: all choices, or both ends of the range."""
        if self.choices:
            return list(self.choices)
        return [str(int(v)) if self.whole else repr(float(v)) for v in (self.low, self.high)]

    def suggest(self, trial: Any) -> str:
        """The value that an Optuna trial gets, as Hydra reads it."""
        if self.choices:
            return str(trial.suggest_categorical(self.key, list(self.choices)))
        if self.whole:
            step = {} if self.log else {"step": self.step}
            return str(trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log, **step))
        return repr(float(trial.suggest_float(self.key, self.low, self.high, log=self.log)))

    def as_wandb(self) -> dict[str, Any]:
        """As W&B writes it."""
        if self.choices:
            return {"values": [yaml.safe_load(c) for c in self.choices]}
        if self.whole and not self.log:
            if self.step != 1:
                return {"distribution": "q_uniform", "min": int(self.low), "max": int(self.high), "q": self.step}
            return {"distribution": "int_uniform", "min": int(self.low), "max": int(self.high)}
        kind = ("q_" if self.whole else "") + ("log_uniform_values" if self.log else "uniform")
        whole = {"q": 1} if self.whole else {}
        return {"distribution": kind, "min": self.low, "max": self.high, **whole}


def with_conditions(params: Sequence[Param], only: Mapping[str, Sequence[str]]) -> list[Param]:
    """The parameters with ``only`` at the keys that it names.

    Raises:
        UserError: it names a key that is not searched, or what no key that stands before it can be.
    """
    known = [p.key for p in params]
    unknown = [key for key in only if key not in known]
    if unknown:
        raise UserError(
            f"hydra.sweeper.only: {unknown[0]} is not searched; hydra.sweeper.params has {', '.join(known)}"
        )
    found: list[Param] = []
    for param in params:
        for override in only.get(param.key, ()):
            if override not in {f"{p.key}={choice}" for p in found for choice in p.choices}:
                raise UserError(
                    f"hydra.sweeper.only.{param.key}: {override} is no choice of a key that stands before it in "
                    "hydra.sweeper.params"
                )
        found.append(Param(**{**vars(param), "only": tuple(only[param.key])}) if param.key in only else param)
    return found


def wandb_sweep(
    params: Sequence[Param], objectives: Sequence[str], command: Sequence[str], sampler: str, trials: int
) -> str:
    """The YAML that ``wandb sweep`` takes, for the same space.

    Args:
        objectives: of the search. W&B knows one metric, and a result's name there holds the variant of the model, so
            it is the validation loss.
        command: what runs a job, without what is searched.
    """
    text = [
        "# Made by sweep=optuna from the same space: wandb sweep FILE, then wandb agent ID.",
        f"# The metric is what every run logs under one name; the search itself goes by {', '.join(objectives)}.",
        *(
            f"# W&B has no conditions: {p.key} counts only with {' or '.join(p.only)}; other runs with it are refused."
            for p in params
            if p.only
        ),
    ]
    asked = {
        "method": "random" if sampler == "random" else "bayes",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "parameters": {p.key: p.as_wandb() for p in params},
        "run_cap": trials,
        "command": ["${env}", *command, "logger=wandb", "logger.offline=false", "${args_no_hyphens}"],
    }
    return "\n".join(text) + "\n" + yaml.safe_dump(asked, sort_keys=False)
