"""Does the steered gaze matter, does its depth, and does it help to know the question? Hard needles, three seeds.

    python -m experiments.foveation [--seeds 1 2 3] [--jobs 2] [--collect]

- ``deep``, ``static``, ``dense``: the runs of ``experiments.connectors`` (coarse→fine and static at equal steps, dense
  at equal time), trained first if they are not there.
- ``deep_fed_coarse``: the deep model's weights, given its coarse tokens instead of its fine ones.
- ``shallow``: queries that read the encoder's last layer only, in stage 0 too; equal steps.
- ``video_first``: the deep model in fVLM's published order, in which no query can know what is asked; as many steps as
  fit into the processor time that ``deep`` took (coarse→fine is then read once per clip, not once per question).

Everything resumes. Writes results.json beside this file (the rows of ``long`` and ``full`` are theirs).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments import curriculum
from experiments.connectors.__main__ import REFERENCE
from experiments.connectors.__main__ import folder as connector_folder
from experiments.connectors.__main__ import run as run_connectors
from experiments.connectors.__main__ import shared as deep_start
from experiments.curriculum import ASKED, STEPS
from hvlm.evaluation import results

HERE = Path(__file__).parent
ROOT = Path("runs/foveation")
COMMAND = "python -m experiments.foveation"
BORROWED = {"deep": (REFERENCE, "steps"), "static": ("static", "steps"), "dense": ("dense", "time")}
FED_COARSE = "deep_fed_coarse"
PROBE_STEPS = 40  # to learn how fast a variant is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--collect", action="store_true", help="train nothing: write down what is finished")
    options = parser.parse_args()
    if not options.collect:
        run(options.seeds, options.jobs)
    records = list(collect(options.seeds))
    results.update(HERE / "results.json", records)
    show(records)


def run(seeds: Sequence[int], jobs: int) -> None:
    steps = [(seed, variant, "steps") for seed in seeds for variant in (REFERENCE, "static", "dense")]
    run_connectors([*steps, *((seed, "dense", "time") for seed in seeds)], jobs)
    for seed in seeds:
        curriculum.vision(folder(seed, "shallow_start"), seed, ["stage.depth=shallow"])
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(fed_coarse, seeds))
        list(pool.map(video_first, seeds))
        list(pool.map(shallow, seeds))


def folder(seed: int, variant: str) -> Path:
    return ROOT / f"seed{seed}" / variant


def shallow(seed: int) -> None:
    start = folder(seed, "shallow_start") / "vision"
    curriculum.train(folder(seed, "shallow"), start, seed, ["connector=foveated", "connector.depth=shallow"])


def video_first(seed: int) -> None:
    overrides, start = ["connector=foveated", "order=video_first"], deep_start(seed) / "vision"
    curriculum.train(folder(seed, "probe"), start, seed, overrides, {"captions": PROBE_STEPS, "hard": PROBE_STEPS}, [])
    deep = connector_folder(seed, REFERENCE, "steps")
    share = {
        label: curriculum.cpu_seconds_a_step(deep, label) / curriculum.cpu_seconds_a_step(folder(seed, "probe"), label)
        for label in ("captions", "hard")
    }
    share["easy"] = share["hard"]  # questions both; the probe asks the hard ones only
    steps = {label: round(n * share[label]) for label, n in STEPS.items()}
    curriculum.train(folder(seed, "video_first"), start, seed, overrides, steps)


def fed_coarse(seed: int) -> None:
    trained = connector_folder(seed, REFERENCE, "steps") / "hard"
    curriculum.ask(trained, folder(seed, FED_COARSE) / "hard" / "eval", "connector.mode=coarse")


def collect(seeds: Sequence[int]) -> Iterator[results.Record]:
    """Accuracies with the column ``set``; what an answer costs, with the column ``set`` = hard."""
    for variant in (*BORROWED, FED_COARSE, "shallow", "video_first"):
        for label in ASKED:
            if variant in BORROWED:
                name, budget = BORROWED[variant]
                folders = [connector_folder(seed, name, budget) / label / "eval" for seed in seeds]
            else:
                folders = [folder(seed, variant) / label / "eval" for seed in seeds]
            yield from curriculum.collect(folders, "foveation", variant, COMMAND, {"set": label})


def show(records: Sequence[results.Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    hard = [r for r in records if r["set"] == "hard" and not r["variant"].endswith("_blind")]
    metrics = list(dict.fromkeys(r["metric"] for r in hard if not r["metric"].startswith("accuracy_4of4")))
    table = Table("hard", *[m.removeprefix("accuracy/") for m in metrics])
    for variant in dict.fromkeys(r["variant"] for r in hard):
        row = {r["metric"]: r for r in hard if r["variant"] == variant}
        cells = [
            (f"{row[m]['value']:.4g}" + (f"±{row[m]['stderr']:.3f}" if m.startswith("accuracy") else ""))
            if m in row
            else ""
            for m in metrics
        ]
        table.add_row(variant, *cells)
    Console(width=240).print(table)


if __name__ == "__main__":
    main()
