"""Where may tokens go? Every merger at every budget, training-free and trained, on easy and hard needles.

    python -m experiments.merging [--seeds 1 2 3] [--jobs 2] [--collect]

The models: the dense ones of experiments.connectors, trained on (conf/experiment/merging.yaml). Training-free: the same
model reads merged clips, with and without black outlines around the shapes. Trained: it is trained on with the merger
for a hundred steps more at an eighth of the tokens, and so is the unmerged one. Mergers have the
settings of their YAML but for proportional attention, which all that merge get, for it helps them all. What
adaptive's settings are was chosen on validation clips of seed 1, easy set. Everything resumes. Adds to results.json
beside this file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments import curriculum
from hvlm import results

HERE = Path(__file__).parent
ROOT = Path("runs/merging")
COMMAND = "python -m experiments.merging"
EXPERIMENT = "merging"
QUESTION = "merging"
SETS = ("easy", "hard")
KEEPS = (0.5, 0.25, 0.125, 0.0625)
TRAINED_KEEPS = (0.125,)
TRAINED_STEPS = 100
NONE = "none"
DROPS = ("random", "stride", "dycoke")  # their tokens are single patches: sizes say nothing
MERGERS = ("adaptive", "motion", "saliency", "tome", "fastvid", *DROPS)
FLOW = "adaptive_flow"  # as adaptive, with optical flow instead of features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--collect", action="store_true", help="run nothing: write down what is finished")
    parser.add_argument("--no-trained", action="store_true", help="training-free only")
    parser.add_argument("--one", nargs=2, metavar=("SEED", "SET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        from experiments.merging._ask import ask_all

        return ask_all(int(options.one[0]), options.one[1])
    if not options.collect:
        run(options.seeds, options.sets, options.jobs, not options.no_trained)
    records = [*collect(options.seeds)]
    results.update(HERE / "results.json", records)
    show(records)
    return None


def run(seeds: Sequence[int], sets: Sequence[str], jobs: int, trained: bool) -> None:
    models = [(seed, label) for label in sets for seed in seeds]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda model: base(*model), models))
        list(pool.map(lambda model: training_free(*model), models))
        if trained:
            jobs_ = [(*model, merger, keep) for model in models for merger, keep in trained_variants()]
            list(pool.map(lambda job: train(*job), jobs_))


def base(seed: int, label: str) -> None:
    start = connectors_folder(seed) / label
    if not (start / "finished.json").exists():
        raise SystemExit(f"{start} is missing: run python -m experiments.connectors --seeds {seed} first")
    curriculum.train(ROOT / f"seed{seed}" / "base", start, seed, [], {label: steps_of(label)}, [], EXPERIMENT)


def connectors_folder(seed: int) -> Path:
    from experiments.connectors.__main__ import folder

    return folder(seed, "dense", "steps")


def steps_of(label: str) -> int:
    from hvlm.config import plan

    return plan([f"experiment={EXPERIMENT}"])[label]["stage"]["steps"]


def training_free(seed: int, label: str) -> None:
    """All variants in one process, which reads and encodes the clips once."""
    log = ROOT / f"seed{seed}" / f"free-{label}.log"
    with open(log, "a") as file:
        done = subprocess.run([sys.executable, "-m", "experiments.merging", "--one", str(seed), label], stdout=file,
                              stderr=subprocess.STDOUT)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"failed, see {log}")


def trained_variants() -> list[tuple[str, float]]:
    return [(NONE, 1.0)] + [(merger, keep) for keep in TRAINED_KEEPS for merger in MERGERS]


def settings(merger: str, keep: float) -> list[str]:
    if merger == NONE:
        return ["merger=none"]
    proportional = [] if merger in DROPS else ["merger.proportional=true"]
    if merger == FLOW:
        return ["merger=adaptive", "merger.motion=flow", f"merger.keep={keep}", *proportional]
    return [f"merger={merger}", f"merger.keep={keep}", *proportional]


def train(seed: int, label: str, merger: str, keep: float) -> None:
    start = ROOT / f"seed{seed}" / "base" / label
    to = ROOT / f"seed{seed}" / f"{merger}-{keep:g}"
    curriculum.train(to, start, seed, settings(merger, keep), {label: TRAINED_STEPS}, [label], EXPERIMENT)


def free_folder(seed: int, label: str, outline: bool, merger: str, keep: float) -> Path:
    return ROOT / f"seed{seed}" / "free" / f"{label}{'' if outline else '-plain'}" / f"{merger}-{keep:g}"


def free_variants() -> list[tuple[str, float]]:
    return [(NONE, 1.0)] + [(merger, keep) for keep in KEEPS for merger in (*MERGERS, FLOW)]


def collect(seeds: Sequence[int]) -> Iterator[results.Record]:
    for label in SETS:
        for outline in (True, False):
            for merger, keep in free_variants():
                columns = {"set": label, "outline": outline, "keep": keep, "trained": False}
                folders = [free_folder(seed, label, outline, merger, keep) for seed in seeds]
                yield from curriculum.collect(folders, QUESTION, merger, COMMAND, columns)
        for merger, keep in trained_variants():
            columns = {"set": label, "outline": True, "keep": keep, "trained": True}
            folders = [ROOT / f"seed{seed}" / f"{merger}-{keep:g}" / label / "eval" for seed in seeds]
            yield from curriculum.collect(folders, QUESTION, merger, COMMAND, columns)


def show(records: Sequence[results.Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    wanted = [m for m in dict.fromkeys(r["metric"] for r in records) if m.startswith("accuracy") and "4of4" not in m]
    for label, outline, trained in ((s, o, t) for s in SETS for o in (True, False) for t in (False, True)):
        title = f"{label}, {'with' if outline else 'without'} outlines, {'trained' if trained else 'training-free'}"
        table = Table("keep", "merger", *[m.removeprefix("accuracy").strip("/_") for m in wanted], title=title)
        rows: dict[tuple[float, str], dict[str, Mapping[str, Any]]] = {}
        for r in records:
            here = (r["set"], r["outline"], r["trained"]) == (label, outline, trained)
            if here and not r["variant"].endswith("blind"):
                rows.setdefault((-r["keep"], r["variant"]), {})[r["metric"]] = r
        for (keep, variant), row in sorted(rows.items()):
            cells = [f"{row[m]['value']:.3f}±{row[m]['stderr']:.3f}" if m in row else "" for m in wanted]
            table.add_row(f"{-keep:g}", variant, *cells)
        if rows:
            Console(width=200).print(table)


if __name__ == "__main__":
    main()
