"""Where may tokens go? Every merger at every budget, training-free and trained, on easy and hard needles.

    python -m experiments.merging [--seeds 1 2 3] [--sets easy hard] [--parts free trained] [--jobs 2] [--collect]

The models: the dense ones of experiments.connectors, trained on (conf/experiment/merging.yaml). Training-free: the same
model reads merged clips, with and without black outlines around the shapes. Trained: it is trained on with the merger
for a hundred steps more, at every budget, and so is the unmerged one. Mergers have the settings of their YAML but for
proportional attention, which all that merge get: it helps most of them (the variants ``*_not_proportional``).
Adaptive's settings were chosen on validation clips of seeds 1 and 2. Everything resumes. Adds to results.json beside
this file: ``accuracy_behind_adaptive`` is adaptive's mean accuracy minus the variant's, question by question.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from experiments import curriculum
from experiments.merging import _runs as runs
from experiments.merging._paired import ahead
from hvlm.evaluation import results

HERE = Path(__file__).parent
BEST = "adaptive"
BEHIND = "accuracy_behind_adaptive"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sets", nargs="+", choices=runs.SETS, default=list(runs.SETS))
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, one thread each")
    parser.add_argument("--collect", action="store_true", help="run nothing: write down what is finished")
    parser.add_argument("--parts", nargs="+", choices=runs.MODEL_PARTS, default=list(runs.MODEL_PARTS))
    parser.add_argument("--one", nargs=3, metavar=("PART", "SEED", "SET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        part, seed, label = options.one
        runs.all_of(part, int(seed), label)
        return
    if not options.collect:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(run, product(options.parts, options.seeds, options.sets)))
    records = [*collect(options.seeds)]
    results.update(HERE / "results.json", records)
    show(records)


def run(which: tuple[str, int, str]) -> None:
    """(part, seed, set) in a process of its own."""
    part, seed, label = which
    log = runs.ROOT / f"seed{seed}" / f"{label}-{part}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, "-m", "experiments.merging", "--one", part, str(seed), label],
                              stdout=file, stderr=subprocess.STDOUT)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"failed, see {log}")


def collect(seeds: Sequence[int]) -> Iterator[results.Record]:
    for label in runs.SETS:
        for outline in (True, False):
            for variant, keep in runs.free_variants():
                columns = {"set": label, "outline": outline, "keep": keep, "trained": False}
                folders, best = ([runs.free_folder(seed, label, outline, name, keep) for seed in seeds]
                                 for name in (variant, BEST))  # fmt: skip
                yield from of(variant, folders, best, seeds, columns)
            for variant, keep in runs.trained_variants():
                columns = {"set": label, "outline": outline, "keep": keep, "trained": True}
                folders, best = ([runs.trained_folder(seed, label, outline, name, keep) for seed in seeds]
                                 for name in (variant, BEST))  # fmt: skip
                yield from of(variant, folders, best, seeds, columns)


def of(
    variant: str, folders: Sequence[Path], best: Sequence[Path], seeds: Sequence[int], columns: Mapping[str, Any]
) -> Iterator[results.Record]:
    yield from curriculum.collect(folders, runs.QUESTION, variant, runs.COMMAND, columns)
    if variant not in (runs.NONE, BEST):
        yield from ahead(best, folders, seeds, question=runs.QUESTION, variant=variant, metric=BEHIND,
                         command=runs.COMMAND, columns=columns)  # fmt: skip


def show(records: Sequence[results.Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    wanted = [m for m in dict.fromkeys(r["metric"] for r in records) if m.startswith("accuracy") and "4of4" not in m]
    tables: dict[tuple[str, bool, bool], dict[tuple[float, str], dict[str, results.Record]]] = {}
    for r in records:
        if not r["variant"].endswith("blind"):
            rows = tables.setdefault((r["set"], r["outline"], r["trained"]), {})
            rows.setdefault((-r["keep"], r["variant"]), {})[r["metric"]] = r
    for (label, outline, trained), rows in tables.items():
        title = f"{label}, {'with' if outline else 'without'} outlines, {'trained' if trained else 'training-free'}"
        table = Table("keep", "merger", *[m.removeprefix("accuracy").strip("/_") for m in wanted], title=title)
        for (keep, variant), row in sorted(rows.items()):
            cells = [f"{row[m]['value']:.3f}±{row[m]['stderr']:.3f}" if m in row else "" for m in wanted]
            table.add_row(f"{-keep:g}", variant, *cells)
        Console(width=220).print(table)


if __name__ == "__main__":
    main()
