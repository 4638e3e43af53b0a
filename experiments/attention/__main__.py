"""Which mechanism carries evidence across a long clip? Of 2,048 visual tokens the language model gets every 64th.

    python -m experiments.attention [--seeds 1 2 3] [--only none mamba] [--budgets steps time] [--collect] [--out FILE]

conf/experiment/attention.yaml for every mechanism and, as the control, for none. All start from one encoder and one
language model that has learned to read short clips token by token; what a seed changes is the mixing's first weights
and the order of the clips. "Equal steps": the configuration's; "equal time": as many as fit into the processor seconds
that ``full`` took. The parameters of whole models with mixing differ by less than 5 % and stand in the records; of the
two controls ``none`` has 4 to 8 % fewer, ``alone`` as many as attention, but every token attends to itself only. One
run after the other in one process and on one thread, so that a frame is decoded and encoded once for all. Everything
resumes. Adds to results.json beside this file, or to ``--out``: what began with another encoder is not comparable.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments import curriculum
from experiments.attention import _runs
from hvlm import feature_cache
from hvlm.evaluation import results
from hvlm.io.checkpoint import find_checkpoint, load_weights

HERE = Path(__file__).parent
COMMAND = "python -m experiments.attention"
REFERENCE = "full"
RATE = "stage.trainable={attention:3.0e-3}"
VARIANTS = {
    "none": ["attention=none"],
    "alone": ["attention=strided", "attention.stride=1000000", "attention.phase=999999", RATE],  # sees itself alone
    REFERENCE: ["attention=full", RATE],
    "strided": ["attention=strided", "attention.stride=16", RATE],  # one and the same patch of every frame
    "strided_4": ["attention=strided", "attention.stride=4", RATE],
    "local_global": ["attention=local_global", RATE],
    "cross_memory": ["attention=cross_memory", RATE],
    "performer": ["attention=performer", RATE],
    "mamba": ["attention=mamba", "attention.expand=1", RATE],
    "mamba2": ["attention=mamba2", "attention.expand=1", "attention.state_size=16", RATE],
}
BUDGETS = ("steps", "time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=BUDGETS)
    parser.add_argument("--collect", action="store_true", help="train nothing: write down what is finished")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    if not options.collect:
        run(options.seeds, list(dict.fromkeys([REFERENCE, *options.only])), options.budgets)
    records = list(collect())
    results.update(options.out, records)
    show(records)


def run(seeds: Sequence[int], variants: Sequence[str], budgets: Sequence[str]) -> None:
    start = _runs.start()
    with feature_cache.shared():
        _runs.encode_all(start)
        for budget in budgets:
            for seed in seeds:
                for name in variants:
                    steps = _runs.steps_of(*_runs.MIXED)
                    if budget == "time":
                        steps = equal_time(steps, folder(seed, REFERENCE, "steps"), folder(seed, name, "steps"))
                    _runs.train(folder(seed, name, budget), start, seed, VARIANTS[name], steps)


def folder(seed: int, variant: str, budget: str) -> Path:
    """Full attention is what the time budget is made from, so its two runs are one."""
    return _runs.ROOT / f"seed{seed}" / (f"{variant}-steps" if variant == REFERENCE else f"{variant}-{budget}")


def equal_time(steps: dict[str, int], reference: Path, own: Path) -> dict[str, int]:
    def seconds(of: Path, label: str) -> float:
        return curriculum.cpu_seconds_a_step(of, label)

    return {label: round(n * seconds(reference, label) / seconds(own, label)) for label, n in steps.items()}


def collect() -> Iterator[results.Record]:
    """Over the seeds that are finished; they are named in the records."""
    found = sorted(int(path.name.removeprefix("seed")) for path in _runs.ROOT.glob("seed*"))
    for variant in VARIANTS:
        for budget in BUDGETS:
            columns = {"budget": budget}
            folders = [folder(seed, variant, budget) / _runs.LONG for seed in found]
            folders = [path for path in folders if (path / "eval" / "results.json").exists()]
            yield from curriculum.collect([f / "eval" for f in folders], "attention", variant, COMMAND, columns)
            if folders:
                count = sum(weight.numel() for weight in load_weights(find_checkpoint(folders[0])).values())
                ours = {"stderr": None, "n": len(folders), "chance": None, "seeds": [0], "seconds": 0}
                for metric, value in (("parameters", count), *_runs.spent(folders)):
                    yield results.make("attention", variant, metric, value, command=COMMAND, columns=columns, **ours)


def show(records: Sequence[results.Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    metrics = [m for m in dict.fromkeys(r["metric"] for r in records) if "4of4/" not in m]
    table = Table("budget", "variant", *[m.removeprefix("accuracy/") for m in metrics])
    for budget in BUDGETS:
        for variant in dict.fromkeys(r["variant"] for r in records):
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
