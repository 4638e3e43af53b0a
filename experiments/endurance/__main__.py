"""Does reading grow? Memory and open files over as many steps of the demo's data path as eight hours of training take.

    python -m experiments.endurance [--hours 8] [--rate 4.13] [--minutes 20] [--workers 1] [--stage sft]

The loader of a stage of ``experiment=demo`` with its processes, as training asks it for batches, and nothing that
trains: time is simulated, a step takes as long as reading takes. ``--rate`` is how many steps a second the demo trains
(finished.json of its stage); ``--minutes`` ends it sooner, and then ``hours`` says how much of the way was gone. Read
from ``/proc`` every hundredth of the steps: resident memory and open files of this process and of those that it
started. ``growth`` is the most of the last half less the most between a twentieth and half of the way,
``median_growth`` the median of the one less that of the other (batches on their way to this process are open files, now
more and now fewer), ``from_start`` less what stood at the first look. Writes results.json beside this file; needs
Linux.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.processes import descendants
from hvlm import assembly
from hvlm.config.compose import plan
from hvlm.console import setup_logging
from hvlm.evaluation import results
from hvlm.evaluation.report import table
from hvlm.training.start import start_stage

HERE = Path(__file__).parent
QUESTION, COMMAND = "endurance", "python -m experiments.endurance"
LOOKS = 200


class Look(NamedTuple):
    """resident memory in MB and open files, of the main process and of the largest of the others."""

    main: float
    others: float
    main_files: int
    others_files: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=4.13, help="steps a second of the demo's training")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--stage", default="sft")
    options = parser.parse_args()
    setup_logging()
    steps = int(options.hours * 3600 * options.rate)
    words = ["experiment=demo", f"trainer.num_workers={options.workers}", "trainer.threads=1", "vision.cache_gb=0"]
    cfg = assembly.settled(plan(words)[options.stage])
    cfg = {**cfg, "stage": {**cfg["stage"], "steps": steps}}
    data = assembly.dataset(cfg)
    data.prepare()
    stage, chat = start_stage(cfg, data, None)
    loader = assembly.datamodule(cfg, stage, data, chat, None).train_dataloader()
    begun, looks, done = time.monotonic(), [], 0
    for done, _ in enumerate(loader, 1):
        if done % max(1, steps // LOOKS // 10) == 0 or done == 1:
            gc.collect()
            looks.append(look())
        if time.monotonic() - begun > options.minutes * 60:
            break
    seconds = time.monotonic() - begun
    label = results.Label(QUESTION, options.stage, 0, COMMAND, {"workers": options.workers})
    values = {"steps": done, "hours": done / options.rate / 3600, **growth(looks)}
    records = [label.record(metric, value, n=len(looks), seconds=seconds) for metric, value in values.items()]
    results.update(HERE / "results.json", records)
    print("\n".join(table(records)))


def look() -> Look:
    """What the processes hold now."""
    mine, others = os.getpid(), [one.pid for one in descendants(os.getpid())]
    return Look(
        resident(mine), max(map(resident, others), default=0.0), files(mine), max(map(files, others), default=0)
    )


def resident(pid: int) -> float:
    """MB in memory, 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)


def files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def growth(looks: Sequence[Look]) -> dict[str, float]:
    """{metric: value}: see above."""
    warm, late = looks[max(1, len(looks) // 20) : len(looks) // 2], looks[len(looks) // 2 :]
    found: dict[str, float] = {}
    for name in Look._fields:
        before, after = (max(getattr(one, name) for one in part) for part in (warm, late))
        found |= {f"{name}_growth": after - before, f"{name}_from_start": after - getattr(looks[0], name), name: after}
        early, later = (statistics.median(getattr(one, name) for one in part) for part in (warm, late))
        found[f"{name}_median_growth"] = later - early
    return found


if __name__ == "__main__":
    main()
