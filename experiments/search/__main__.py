"""Does a search find a better front than chance with as many trials?

    python -m experiments.search [--trials 24] [--seeds 1 2 3] [--samplers nsga2 tpe random] [--steps 80] [--clips 60]
        [--jobs 2] [--collect]

conf/sweep/rooms.yaml (connector, merger and its share, attention, two learning rates) on the demo's data, every trial
a short ``stage=sft`` from the demo's encoder, which is trained first where it is not there. Objectives: accuracy,
operations and cache bytes of an answer. Each search is ``train.py -m sweep=rooms``; started again, this goes on with
what is missing.

``hypervolume`` is what the front dominates, in units of the box between the best and the worst of all finished trials
of all searches (1: the front is one point, best in everything), ``hypervolume_mean`` its mean over seeds with its
error. Adds to results.json beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.started import as_started
from hvlm.config.compose import compose
from hvlm.evaluation import results
from hvlm.io.files import FINISHED

HERE, ROOT = Path(__file__).parent, Path(__file__).parent.parent.parent
COMMAND = "python -m experiments.search"
RUNS, START = Path("runs"), "search/start"
SAMPLERS = ("nsga2", "tpe", "random")
SIGN = {"maximize": -1.0, "minimize": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--clips", type=int, default=60, help="that the benchmark asks about")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument("--collect", action="store_true", help="train nothing: write down what is finished")
    options = parser.parse_args()
    if not options.collect:
        if not (RUNS / START / "vision" / FINISHED).exists():
            train("experiment=demo", "stage=vision", "evaluate=false", f"run={START}")
        for seed, sampler in itertools.product(options.seeds, options.samplers):
            search(sampler, seed, options)
    records = collect()
    if records:
        results.update(HERE / "results.json", records)


def search(sampler: str, seed: int, options: argparse.Namespace) -> None:
    """One search; what ends it early is left for the next start."""
    words = [
        "-m", "sweep=rooms", "stage=sft", f"init_from={RUNS / START}", f"stage.steps={options.steps}",
        "stage.warmup=0.1", "stage.trainable.vision=0", "vision.cache_gb=2", "dataset.set=easy",
        f"trainer.val_every={max(1, options.steps // 4)}",
        "trainer.limit_val_batches=4", f"benchmark.limit={options.clips}", "benchmark.tries=1",
        "benchmark.blind=false", "callback.media=0",
        f"run={name(sampler, seed)}",
        f"hydra.sweeper.sampler={sampler}", f"hydra.sweeper.seed={seed}", f"hydra.sweeper.trials={options.trials}",
        f"hydra.sweeper.prune.start={options.steps // 2}",
        f"hydra.launcher.jobs={options.jobs}", "hydra.launcher.threads=1",
    ]  # fmt: skip
    folder = RUNS / name(sampler, seed)
    started = time.time()
    train(*words, check=False)
    with open(folder / "seconds.txt", "a", encoding="utf-8") as file:
        file.write(f"{time.time() - started:.0f}\n")


def name(sampler: str, seed: int) -> str:
    return f"search/{sampler}-{seed}"


def train(*words: str, check: bool = True) -> None:
    subprocess.run([sys.executable, str(ROOT / "train.py"), *words], check=check)


# ------------------------------------------------------------------------------------------------------- results


def collect() -> list[results.Record]:
    """Records of the searches whose trials have all ended."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted((RUNS / "search").glob("*/search.json")):
        sampler, _, seed = path.parent.name.rpartition("-")
        done = json.loads(path.read_text(encoding="utf-8"))
        states = [t["state"] for t in done["trials"] if "same_as" not in t]
        if sampler in SAMPLERS and not {"running", "waiting"} & set(states):
            found[sampler, int(seed)] = done
    if not found:
        return []
    objectives = next(iter(found.values()))["objectives"]
    points = {key: points_of(done, objectives) for key, done in found.items()}
    every = [p for some in points.values() for p in some]
    volumes = {key: hypervolume(scaled(some, every)) for key, some in points.items()}
    records: list[results.Record] = []
    command = as_started(COMMAND)
    for sampler in SAMPLERS:
        seeds = sorted(seed for s, seed in found if s == sampler)
        for seed in seeds:
            label, took = results.Label("search", sampler, seed, command), seconds_of(sampler, seed)
            trials = found[sampler, seed]["trials"]
            complete = [t for t in trials if t["values"]]
            known = {"hypervolume": volumes[sampler, seed], "front": sum(t["front"] for t in trials)}
            known |= {state: sum(t["state"] == state for t in trials) for state in ("complete", "pruned", "fail")}
            if complete:
                known["best_accuracy"] = max(t["values"]["accuracy"] for t in complete)
            records += [label.record(m, float(v), n=len(trials), seconds=took) for m, v in known.items()]
        if len(seeds) > 1:
            values = [volumes[sampler, seed] for seed in seeds]
            records.append(
                results.make(
                    "search", sampler, "hypervolume_mean", statistics.fmean(values), n=len(seeds), seeds=seeds,
                    chance=None, stderr=statistics.stdev(values) / len(values) ** 0.5, command=command,
                    seconds=sum(seconds_of(sampler, seed) for seed in seeds),
                )
            )  # fmt: skip
    return records


def seconds_of(sampler: str, seed: int) -> float:
    """Of a search, all its starts together."""
    path = RUNS / name(sampler, seed) / "seconds.txt"
    return sum(map(float, path.read_text(encoding="utf-8").split())) if path.exists() else 0.0


def points_of(done: Mapping[str, Any], objectives: Mapping[str, str]) -> list[list[float]]:
    """The finished trials as points of which less is better."""
    return [[SIGN[d] * t["values"][n] for n, d in objectives.items()] for t in done["trials"] if t["values"]]


def scaled(points: Sequence[Sequence[float]], every: Sequence[Sequence[float]]) -> list[list[float]]:
    """The points in the box of all points, 0 the best and 1 the worst of each objective."""
    low, high = [min(c) for c in zip(*every, strict=True)], [max(c) for c in zip(*every, strict=True)]
    return [[(v - a) / (b - a) if b > a else 0.0 for v, a, b in zip(p, low, high, strict=True)] for p in points]


def hypervolume(points: Sequence[Sequence[float]]) -> float:
    """The share of the unit box that the points dominate, less being better: its cells between all coordinates."""
    if not points:
        return 0.0
    edges = [sorted({*(p[axis] for p in points), 1.0}) for axis in range(len(points[0]))]
    total = 0.0
    for cell in itertools.product(*(itertools.pairwise(axis) for axis in edges)):
        corner = [low for low, _ in cell]
        if any(all(v <= c for v, c in zip(p, corner, strict=True)) for p in points):
            volume = 1.0
            for low, high in cell:
                volume *= high - low
            total += volume
    return total


if __name__ == "__main__":
    compose(["stage=sft"])  # a mistake in the settings before hours of work
    main()
