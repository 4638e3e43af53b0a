"""Static query, coarse→fine, mean and dense, side by side at equal steps and at equal time, on easy and hard needles.

    python -m experiments.connectors [--seeds 1 2 3] [--jobs 2] [--collect]

Every seed trains one vision stage that all connectors start from. Then easy questions, captions of hard clips, hard
questions. "Equal steps": those of conf/experiment/connectors.yaml for each. "Equal time": each connector gets as many
steps as fit into the processor seconds that coarse→fine took (one thread each; reading included), counted from its own
speed in the equal-steps run. Everything resumes: finished stages are not trained again. Writes results.json beside
this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments import curriculum
from experiments.curriculum import ASKED, STEPS
from hvlm.evaluation import results

HERE = Path(__file__).parent
ROOT = Path("runs/connectors")
COMMAND = "python -m experiments.connectors"
REFERENCE = "coarse_fine"
VARIANTS = {
    "static": ["connector=foveated", "connector.mode=coarse"],
    REFERENCE: ["connector=foveated"],
    "mean": ["connector=mean"],
    "dense": ["connector=patches"],
}
BUDGETS = ("steps", "time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--collect", action="store_true", help="train nothing: write down what is finished")
    options = parser.parse_args()
    if not options.collect:
        jobs = [(seed, variant) for seed in options.seeds for variant in VARIANTS]
        run([(*job, budget) for budget in BUDGETS for job in jobs], options.jobs)
    records = list(collect(options.seeds))
    results.write(HERE / "results.json", records)
    show(records)


def run(runs: Sequence[tuple[int, str, str]], jobs: int) -> None:
    """Train and ask (seed, variant, budget) each. Those at equal time need those at equal steps, which come first."""
    for seed in sorted({seed for seed, _, _ in runs}):  # one after the other: the first makes the data
        curriculum.vision(shared(seed), seed)
    with ThreadPoolExecutor(jobs) as pool:
        for budget in BUDGETS:
            list(pool.map(lambda job: train(*job), [job for job in runs if job[2] == budget]))


def shared(seed: int) -> Path:
    return ROOT / f"seed{seed}" / "shared"


def folder(seed: int, variant: str, budget: str) -> Path:
    """Coarse→fine is what the time budget is made from, so its two runs are one."""
    return ROOT / f"seed{seed}" / (f"{variant}-steps" if variant == REFERENCE else f"{variant}-{budget}")


def train(seed: int, variant: str, budget: str) -> None:
    steps = STEPS
    if budget == "time":
        speeds = {
            name: {label: curriculum.cpu_seconds_a_step(folder(seed, name, "steps"), label) for label in STEPS}
            for name in (REFERENCE, variant)
        }
        steps = {label: round(n * speeds[REFERENCE][label] / speeds[variant][label]) for label, n in STEPS.items()}
    curriculum.train(folder(seed, variant, budget), shared(seed) / "vision", seed, VARIANTS[variant], steps)


def collect(seeds: Sequence[int]) -> Iterable[results.Record]:
    """Records averaged over the seeds that are finished (they are named), with the columns ``set`` (easy, hard) and
    ``budget`` (steps, time)."""
    for variant in VARIANTS:
        for budget in BUDGETS:
            for label in ASKED:
                folders = [folder(seed, variant, budget) / label / "eval" for seed in seeds]
                yield from curriculum.collect(folders, "connectors", variant, COMMAND, {"set": label, "budget": budget})


def show(records: list[results.Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    metrics = list(dict.fromkeys(r["metric"] for r in records if r["metric"].startswith("accuracy")))
    metrics = [m for m in metrics if not m.startswith("accuracy_4of4/")]
    table = Table("set", "budget", "variant", *[m.removeprefix("accuracy/") for m in metrics])
    for label in ASKED:
        for budget in BUDGETS:
            for variant in VARIANTS:
                row = {r["metric"]: r for r in records
                       if (r["set"], r["budget"], r["variant"]) == (label, budget, variant)}  # fmt: skip
                cells = [f"{row[m]['value']:.3f}±{row[m]['stderr']:.3f}" if m in row else "" for m in metrics]
                table.add_row(label, budget, variant, *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
