"""The chain of stages that an experiment sends its models through, each stage a call of train.py, each examination a
call of eval.py. By default that of conf/experiment/connectors.yaml: easy questions, captions of hard clips, hard ones.

What is finished is not done again, so an interrupted experiment continues.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from hvlm.config.compose import plan
from hvlm.evaluation import results
from hvlm.training import chain

RUNS = Path("runs")
STEPS = {label: cfg["stage"]["steps"] for label, cfg in plan(["experiment=connectors"]).items() if label != "vision"}
ASKED = ("easy", "hard")  # the stages after which the benchmark is run
BLIND = "blind"


def vision(run: Path, seed: int, overrides: Sequence[str] = (), experiment: str = "connectors") -> None:
    """Stage 0, on two threads: it comes first and alone, for it also makes the data."""
    _train(experiment, run, "vision", "stage=vision", *_common(seed, 2), *overrides)


def train(
    run: Path,
    start: Path | None,
    seed: int,
    overrides: Sequence[str],
    steps: Mapping[str, int] = STEPS,
    asked: Sequence[str] = ASKED,
    experiment: str = "connectors",
    here: bool = False,
) -> None:
    """The stages of ``steps`` from the checkpoint ``start``, on one thread; the benchmark after those ``asked``.

    here: in this process instead of one for each stage.
    """
    for label, n in steps.items():
        begin = [] if start is None else [f"init_from={start}"]
        _train(experiment, run, label, *_common(seed), *overrides, *begin, f"stage.steps={n}", here=here)
        start = run / label
        if label in asked:
            ask(start, start / "eval")


def ask(checkpoint: Path, out: Path, *overrides: str) -> None:
    """The benchmark, unless its result is there."""
    if not (out / "results.json").exists():
        _call("eval.py", out, f"checkpoint={checkpoint}", f"out={out}", "trainer.threads=1", *overrides)


def cpu_seconds_a_step(run: Path, label: str) -> float:
    """Processor time of a finished stage, reading included. (Wall time depends on what else runs.)"""
    done = finished(run, label)
    return done["cpu_seconds"] / done["steps_here"]


def finished(run: Path, label: str) -> dict[str, float]:
    """What a finished stage says of itself."""
    return json.loads((run / label / "finished.json").read_text())


def collect(
    folders: Iterable[Path], question: str, variant: str, command: str, columns: Mapping[str, str] | None = None
) -> list[results.Record]:
    """Records in ``folders`` (a seed each; absent ones are left out) averaged over the seeds, renamed to ``variant``
    and ``<variant>_blind``."""
    runs = []
    for file in (folder / "results.json" for folder in folders):
        if file.exists():
            runs.append([
                r | {"question": question, "command": command, **(columns or {})}
                | {"variant": f"{variant}_{BLIND}" if r["variant"] == BLIND else variant}
                for r in results.read(file)
            ])  # fmt: skip
    return results.merge_seeds(runs)


def _common(seed: int, threads: int = 1) -> list[str]:
    return [f"seed={seed}", f"trainer.threads={threads}", "callback.media=0", "evaluate=false"]


def _train(experiment: str, run: Path, label: str, *overrides: str, here: bool = False) -> None:
    if (run / label / "finished.json").exists():
        return
    others = [f"~chain.{other}" for other in _labels(experiment) if other != label]
    given = [f"experiment={experiment}", f"run={run.relative_to(RUNS)}", *others, *overrides]
    if here:
        print("train.py", *given, flush=True)
        chain.run(given)
    else:
        _call("train.py", run, *given)


@cache
def _labels(experiment: str) -> tuple[str, ...]:
    return tuple(plan([f"experiment={experiment}"]))


def _call(script: str, folder: Path, *overrides: str) -> None:
    """Run a script; its output goes to a log beside the folder that it fills."""
    print(script, *overrides, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.log"), "a", encoding="utf-8") as log:
        done = subprocess.run([sys.executable, script, *overrides], stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(overrides)} failed, see {log.name}")
