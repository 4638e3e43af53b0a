"""Static query, coarse→fine, mean and dense, side by side at equal steps and at equal time, on easy and hard needles.

    python -m experiments.connectors [--seeds 1 2 3] [--time-seeds 1 2 3] [--jobs 2]

Every seed trains one vision stage that all connectors start from. Then easy questions, captions of hard clips, hard
questions. "Equal steps": those of conf/experiment/connectors.yaml for each. "Equal time": each connector gets as many
steps as fit into the processor seconds that coarse→fine took (one thread each; reading included), counted from its own
speed in the equal-steps run. Everything resumes: finished stages are not trained again. Writes results.json beside
this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hvlm import results
from hvlm.config import plan

HERE = Path(__file__).parent
ROOT = Path("runs/connectors")
BLIND = "blind"
REFERENCE = "coarse_fine"
STEPS = {label: cfg["stage"]["steps"] for label, cfg in plan(["experiment=connectors"]).items() if label != "vision"}
ASKED = ("easy", "hard")  # the stages after which the benchmark is run
VARIANTS = {
    "static": ["connector=foveated", "connector.mode=coarse"],
    REFERENCE: ["connector=foveated"],
    "mean": ["connector=mean"],
    "dense": ["connector=patches"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--time-seeds", type=int, nargs="*", help="seeds of the runs at equal time; default: --seeds")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--collect", action="store_true", help="train nothing: write down what is finished")
    options = parser.parse_args()
    seeds = {"steps": options.seeds, "time": options.seeds if options.time_seeds is None else options.time_seeds}
    if not options.collect:
        run(seeds, options.jobs)
    records = list(collect(seeds))
    results.write(HERE / "results.json", records)
    show(records)


def run(seeds: dict[str, list[int]], jobs: int) -> None:
    # One after the other: the first makes the data that the others read.
    for seed in sorted({*seeds["steps"], *seeds["time"]}):
        call(
            "train.py", "experiment=connectors", *common(seed, 2), f"run=connectors/seed{seed}/shared", *only("vision")
        )
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda job: train(*job, "steps", STEPS), grid(seeds["steps"], VARIANTS)))
        others = [name for name in VARIANTS if name != REFERENCE]
        list(pool.map(lambda job: train(*job, "time", equal_time_steps(*job)), grid(seeds["time"], others)))


def grid(seeds: Iterable[int], variants: Iterable[str]) -> list[tuple[int, str]]:
    return [(seed, variant) for seed in seeds for variant in variants]


def common(seed: int, threads: int = 1) -> list[str]:
    return [f"seed={seed}", f"trainer.threads={threads}", "callback.media=0", "evaluate=false"]


def folder(seed: int, variant: str, budget: str) -> Path:
    """Coarse→fine is what the time budget is made from, so its two runs are one."""
    return ROOT / f"seed{seed}" / (f"{variant}-steps" if variant == REFERENCE else f"{variant}-{budget}")


def train(seed: int, variant: str, budget: str, steps: dict[str, int]) -> None:
    run = folder(seed, variant, budget)
    start = f"{ROOT}/seed{seed}/shared"
    for label, n in steps.items():
        call("train.py", "experiment=connectors", *VARIANTS[variant], *common(seed), f"run={run.relative_to('runs')}",
             *only(label), f"init_from={start}", f"stage.steps={n}")  # fmt: skip
        start = f"{run}/{label}"
        if label in ASKED:
            call("eval.py", f"checkpoint={start}", f"out={start}/eval", "trainer.threads=1")


def only(label: str) -> list[str]:
    """Overrides that leave one stage of the chain."""
    return [f"~chain.{other}" for other in ("vision", *STEPS) if other != label]


def equal_time_steps(seed: int, variant: str) -> dict[str, int]:
    def speed(name: str, label: str) -> float:
        """Processor seconds of a step."""
        done = json.loads((folder(seed, name, "steps") / label / "finished.json").read_text())
        return done["cpu_seconds"] / done["steps_here"]

    return {label: round(n * speed(REFERENCE, label) / speed(variant, label)) for label, n in STEPS.items()}


def call(script: str, *overrides: str) -> None:
    """Run a script unless it has left its result; its output goes to a log beside it."""
    out = next((Path(o.removeprefix("out=")) for o in overrides if o.startswith("out=")), None)
    if out is not None and (out / "results.json").exists():
        return
    name = next(o for o in overrides if o.startswith(("run=", "checkpoint="))).split("=")[1].replace("/", "-")
    ROOT.mkdir(parents=True, exist_ok=True)
    print(script, *overrides, flush=True)
    with open(ROOT / f"{script.removesuffix('.py')}-{name}.log", "a") as log:
        done = subprocess.run([sys.executable, script, *overrides], stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(overrides)} failed, see {log.name}")


def collect(seeds: dict[str, list[int]]) -> Iterable[results.Record]:
    """Records averaged over the seeds that are finished (they are named), with the columns ``set`` (easy, hard) and
    ``budget`` (steps, time)."""
    for variant in VARIANTS:
        for budget in seeds:
            for label in ASKED if seeds[budget] else ():
                files = [folder(seed, variant, budget) / label / "eval" / "results.json" for seed in seeds[budget]]
                runs = [results.read(file) for file in files if file.exists()]
                if not runs:
                    continue
                columns = {"set": label, "budget": budget}
                renamed = [[rename(r, variant) | columns for r in run] for run in runs]
                yield from results.merge_seeds(renamed)


def rename(record: results.Record, variant: str) -> results.Record:
    name = f"{variant}_{BLIND}" if record["variant"] == BLIND else variant
    command = "python -m experiments.connectors"
    return record | {"question": "connectors", "variant": name, "command": command}


def show(records: list[results.Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    metrics = list(dict.fromkeys(r["metric"] for r in records if not r["metric"].startswith("accuracy_4of4/")))
    table = Table("set", "budget", "variant", *[m.removeprefix("accuracy/") for m in metrics])
    for label in ASKED:
        for budget in ("steps", "time"):
            for variant in VARIANTS:
                row = {r["metric"]: r for r in records
                       if (r["set"], r["budget"], r["variant"]) == (label, budget, variant)}  # fmt: skip
                cells = [f"{row[m]['value']:.3f}±{row[m]['stderr']:.3f}" if m in row else "" for m in metrics]
                table.add_row(label, budget, variant, *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
