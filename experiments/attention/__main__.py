"""Which mechanism carries evidence across a long clip? Of 2,048 visual tokens the language model gets every 64th.

    python -m experiments.attention [--seeds 1 2 3] [--only none mamba] [--jobs 2] [--collect]

conf/experiment/attention.yaml for every mechanism and, as the control, for none. "Equal steps": the configuration's;
"equal time": as many as fit into the processor seconds that ``full`` took. Every seed trains one encoder that all start
from, frozen. Parameters of the whole model differ by less than 5 %; they stand in the records. Everything resumes.
Adds to results.json beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments import curriculum
from hvlm import results
from hvlm.checkpoint import find_checkpoint, load_weights
from hvlm.config import plan

HERE = Path(__file__).parent
ROOT = Path("runs/attention")
COMMAND = "python -m experiments.attention"
EXPERIMENT, LABEL = "attention", "long"
STEPS = plan([f"experiment={EXPERIMENT}"])[LABEL]["stage"]["steps"]
REFERENCE = "full"
VARIANTS = {
    "none": ["attention=none"],
    REFERENCE: ["attention=full"],
    "strided": ["attention=strided", "attention.stride=16"],
    "local_global": ["attention=local_global"],
    "cross_memory": ["attention=cross_memory"],
    "performer": ["attention=performer"],
    "mamba": ["attention=mamba", "attention.expand=1"],
    "mamba2": ["attention=mamba2", "attention.expand=1"],
}
BUDGETS = ("steps", "time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--collect", action="store_true", help="train nothing: write down what is finished")
    options = parser.parse_args()
    if not options.collect:
        run(options.seeds, list(dict.fromkeys([REFERENCE, *options.only])), options.jobs)
    records = list(collect(options.seeds))
    results.update(HERE / "results.json", records)
    show(records)


def run(seeds: Sequence[int], variants: Sequence[str], jobs: int) -> None:
    for seed in seeds:  # one after the other: the first makes the data
        curriculum.vision(ROOT / f"seed{seed}" / "shared", seed, experiment=EXPERIMENT)
    with ThreadPoolExecutor(jobs) as pool:
        for budget in BUDGETS:
            todo = [(seed, name, budget) for seed in seeds for name in variants]
            list(pool.map(lambda job: train(*job), todo))


def folder(seed: int, variant: str, budget: str) -> Path:
    """Full attention is what the time budget is made from, so its two runs are one."""
    return ROOT / f"seed{seed}" / (f"{variant}-steps" if variant == REFERENCE else f"{variant}-{budget}")


def train(seed: int, variant: str, budget: str) -> None:
    steps = STEPS
    if budget == "time":
        whole, own = (
            curriculum.cpu_seconds_a_step(folder(seed, name, "steps"), LABEL) for name in (REFERENCE, variant)
        )
        steps = round(STEPS * whole / own)
    start = ROOT / f"seed{seed}" / "shared" / "vision"
    to = folder(seed, variant, budget)
    curriculum.train(to, start, seed, VARIANTS[variant], {LABEL: steps}, [LABEL], EXPERIMENT)


def collect(seeds: Sequence[int]) -> Iterator[results.Record]:
    for variant in VARIANTS:
        for budget in BUDGETS:
            folders = [folder(seed, variant, budget) / LABEL for seed in seeds]
            yield from curriculum.collect(
                [f / "eval" for f in folders], "attention", variant, COMMAND, {"budget": budget}
            )
            done = [f for f in folders if (f / "finished.json").exists()]
            if done:
                count = sum(weight.numel() for weight in load_weights(find_checkpoint(done[0])).values())
                yield results.make("attention", variant, "parameters", count, stderr=None, n=1, chance=None, seeds=[0],
                                   seconds=0, command=COMMAND, columns={"budget": budget})  # fmt: skip


def show(records: Sequence[results.Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    metrics = [m for m in dict.fromkeys(r["metric"] for r in records) if "4of4/" not in m]
    table = Table("budget", "variant", *[m.removeprefix("accuracy/") for m in metrics])
    for budget in BUDGETS:
        for variant in VARIANTS:
            row = {r["metric"]: r for r in records if (r["variant"], r["budget"]) == (variant, budget)}
            if row:
                table.add_row(budget, variant, *[figure(row.get(m)) for m in metrics])
    Console(width=240).print(table)


def figure(record: results.Record | None) -> str:
    if record is None:
        return ""
    return f"{record['value']:.4g}" + (f"±{record['stderr']:.3f}" if record["stderr"] is not None else "")


if __name__ == "__main__":
    main()
