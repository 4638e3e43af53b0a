"""The runs that a command names, and what their folders hold: scores, costs, settings, answers.

A word may be a run's folder, the folder of an evaluation, that of a sweep (then its jobs are meant), a folder of runs,
or a results file.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.report_data import config_of, in_order
from hvlm.io import foreign

RESULTS, PREDICTIONS, SWEEP = "results.json", "predictions.jsonl", "sweep.json"
EVAL, COST = "eval", "cost"  # where hvlm eval writes, in the checkpoint's folder


class Run(NamedTuple):
    """One run, or one evaluation of it.

    name: for a table. folder: of the results. records: all of results.json; costs: of ``task=cost``, which lie apart.
    stages: {name: resolved configuration}, in the order of training; {} where there is none. identities: {stage: the
    dotted settings that can change its weights}. trained: the run's own folder, which may be above ``folder``.
    """

    name: str
    folder: Path
    records: list[results.Record]
    costs: list[results.Record]
    stages: dict[str, dict[str, Any]]
    identities: dict[str, dict[str, Any]]
    trained: Path

    @property
    def predictions(self) -> Path | None:
        """Its file of predictions, where there is one."""
        path = self.folder / PREDICTIONS
        return path if path.is_file() else None

    @property
    def config(self) -> dict[str, Any]:
        """Of the last stage."""
        return list(self.stages.values())[-1] if self.stages else {}

    @property
    def is_evaluation(self) -> bool:
        """Whether its results are not the run's own: an evaluation's folder, or a file."""
        return self.folder != self.trained or not self.stages

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for record in self.records for seed in record["seeds"]})

    @property
    def commands(self) -> list[str]:
        """That made its records, each once."""
        return list(dict.fromkeys(r["command"] for r in self.records if r["command"]))

    def said(self) -> list[str]:
        """The ``key=value`` words of its commands, those that only name places left out."""
        words = [word for command in self.commands for word in _words(command) if "=" in word]
        return sorted({word for word in words if word.lstrip("+~").split("=")[0].split(".")[0] not in PLACES})


PLACES = ("run", "out", "checkpoint", "seed", "logger", "callback", "resume", "task", "processes")


def find(words: Sequence[str | Path], scored: bool = True) -> tuple[list[Run], list[str]]:
    """The runs that the words name, each once, and what is to be said of those that are left out.

    Args:
        words: see above.
        scored: whether a run needs results; else a folder with stages is one, too.

    Raises:
        UserError: a word that names none.
    """
    found: dict[Path, Run] = {}
    notes: list[str] = []
    for word in words:
        path = Path(word)
        runs = list(_named(path, scored, notes))
        if not runs:
            raise UserError(f"runs={word}: {_missing(path, scored)}")
        for run in runs:
            found.setdefault((run.folder / run.name).resolve() if run.folder.is_file() else run.folder.resolve(), run)
    return _with_names(list(found.values())), notes


def of_folder(path: Path, scored: bool = True) -> Run | None:
    """The run of one folder; None where it holds none."""
    trained = path if _stages_of(path) or not _stages_of(path.parent) else path.parent
    for folder in (path, path / EVAL):
        if (folder / RESULTS).is_file():
            return _read(path.name, folder, trained)
    return _read(path.name, path, trained) if not scored and _stages_of(path) else None


def _named(path: Path, scored: bool, notes: list[str]) -> Iterator[Run]:
    if path.is_file():
        yield Run(path.stem if path.name != RESULTS else path.parent.name, path, results.read(path), [], {}, {}, path)
        return
    if (path / SWEEP).is_file():
        jobs = _jobs(path / SWEEP)
        for job in jobs:
            run = of_folder(path / job["name"], scored)
            if job["status"] == "done" and run is not None:
                yield run
            else:
                why = job["status"] if job["status"] != "done" else "done, without results"
                notes.append(f"{path / job['name']} is left out: {why}{': ' if job.get('error') else ''}{job['error']}")
        return
    run = of_folder(path, scored)
    if run is not None:
        yield run
    elif path.is_dir():
        inner = [of_folder(folder, scored) for folder in sorted(path.iterdir()) if folder.is_dir()]
        yield from (run for run in inner if run is not None)


def _jobs(path: Path) -> list[dict[str, Any]]:
    jobs = foreign.json_of(path)
    text = ("text", lambda value: isinstance(value, str))
    name = ("the name of a folder", lambda value: isinstance(value, str) and Path(value).name == value != "..")
    for job in jobs if isinstance(jobs, list) or not jobs else [None]:
        wrong = foreign.wrong(job, {"name": name, "status": text}) if isinstance(job, dict) else "no list of jobs"
        if wrong:
            raise UserError(f"{path}: not the table of a sweep ({wrong}); run the sweep again, or name its jobs")
    return [{**job, "error": str(job.get("error") or "")} for job in jobs or []]


def _read(name: str, folder: Path, trained: Path) -> Run:
    records = results.read(folder / RESULTS) if (folder / RESULTS).is_file() else []
    costs = [
        record
        for place in dict.fromkeys((trained / COST, folder / COST))
        if (place / RESULTS).is_file()
        for record in results.read(place / RESULTS)
    ]
    folders = in_order(_stages_of(trained))
    stages = {stage.name: config_of(stage) for stage in folders}
    identities = {stage.name: _identity(stage, stages[stage.name]) for stage in folders}
    return Run(name if name != EVAL else trained.name, folder, records, costs, stages, identities, trained)


def _stages_of(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob("*/config.yaml"))]


def _identity(stage: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What training wrote beside the configuration; of a folder without it, all that is configured."""
    path = stage / "identity.json"
    found = foreign.json_of(path) if path.exists() else None
    return found if isinstance(found, dict) else dict(flat(config))


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("a.b", 1) of {"a": {"b": 1}}; lists stay whole."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _with_names(runs: list[Run]) -> list[Run]:
    """Runs of one name get as much of their folders' paths as tells them apart."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    folders = [run.folder.resolve() for run in runs]
    common = Path(os.path.commonpath(folders)) if len(folders) > 1 else folders[0].parent
    paths = [str(folder.relative_to(common)).removesuffix(f"/{RESULTS}") for folder in folders]
    return [
        run._replace(name=path if names.count(run.name) > 1 and path != "." else run.name)
        for run, path in zip(runs, paths, strict=True)
    ]


def _missing(path: Path, scored: bool) -> str:
    if not path.exists():
        from difflib import get_close_matches

        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, beside, 1)
        return "no such folder or file" + (f"; did you mean {path.parent / near[0]}?" if near else "")
    if scored and _stages_of(path):
        return f"a run without results; hvlm eval checkpoint={path} makes them"
    return "neither a run with results.json, nor a sweep or a folder of runs; name one of these, or a results.json"


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a text that is cut, or no command
        return command.split()
