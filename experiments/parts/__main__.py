"""Does a step lose the same when two processes, or two parts one after the other, share its batch?

    python -m experiments.parts [--steps 3] [--only dpo duo]

Every stage and several heads from nothing with the same seed and batches in float32 (gloo, on needles, no dropout): the
largest difference of a step's loss, relative to the loss, at the first step and over all. Beside it how far that loss
moves from the first step's: what never moves is the same however it is divided. Writes results.json beside this file
(with ``--only``, the other records stay); needs a few minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

from experiments.strategies.__main__ import TINY, losses
from experiments.strategies.processes import together
from hvlm.console import setup_logging
from hvlm.evaluation import results
from hvlm.evaluation.report import table
from hvlm.training.chain import run

HERE = Path(__file__).parent
COMMAND = "python -m experiments.parts"
EVENTS = ["dataset.set=events", "dataset.root=events", "dataset.min_seconds=10", "dataset.max_seconds=12",
          "dataset.fps=2", "dataset.text_chats=0"]  # fmt: skip
HEADS = "{detect:{dim:16,levels:3,dropout:0},retrieve:{dim:8},match:{},classify:{labels:['2','3']}}"
STAGES = {
    "align": ["stage=align", "stage.interleave=0.3"],
    "sft": ["stage=sft", "stage.interleave=0.3"],
    # Rates and weights with which a few steps from nothing change the loss: that of dpo begins at ln 2 for any pairs,
    # and the distillation of duo at 0, with gates that give up nothing.
    "dpo": ["stage=dpo", "stage.warmup=0", "stage.beta=1",
            "stage.trainable={vision:1e-3,connector:1e-3,language:1e-3}"],
    "task_classify": ["stage=task", "head=classify", "dataset.set=binding", "dataset.root=binding"],
    "task_detect": ["stage=task", "head=detect", "head.dim=16", "head.levels=3", "head.dropout=0", *EVENTS],
    "task_retrieve": ["stage=task", "head=retrieve", "head.dim=8", *EVENTS],
    "task_match": ["stage=task", "head=match", *EVENTS],
    "task_several": ["stage=task", "head=several", f"head.heads={HEADS}", "stage.weights={classify:0.5}", *EVENTS],
    "duo": ["stage=duo", "kvcache=duo", "dataset.set=keys", "dataset.keys=2", "dataset.root=keys", "connector=patches",
            "order=video_first", "stage.interleave=0.5", "stage.sink=1", "stage.recent=2",
            "stage.trainable.kvcache=0.3", "stage.l1_weight=0.01", "stage.schedule=constant", "stage.warmup=0"],
}  # fmt: skip
WAYS = {"processes": ["trainer=ddp", "trainer.accelerator=cpu"], "accumulate": ["trainer.accumulate=2"]}
# {way: stages whose loss compares the clips of a part alone, and is therefore another}
OTHERS: dict[str, tuple[str, ...]] = {"processes": (), "accumulate": ("task_retrieve", "task_match", "task_several")}


def words(name: str, steps: int) -> list[str]:
    """What train.py is given for a stage."""
    return [*TINY, "connector.standardise=true", f"stage.steps={steps}", *STAGES[name]]


def train(folder: Path, steps: int, names: list[str]) -> None:
    """Into ``folder``/runs/WAY/NAME, WAY being ``one``, ``processes`` or ``accumulate``."""
    with contextlib.chdir(folder):
        for name in names:
            run([*words(name, steps), f"run=one/{name}"])
            run([*words(name, steps), *WAYS["accumulate"], f"run=accumulate/{name}"])
        together([[*words(name, steps), *WAYS["processes"], f"run=processes/{name}"] for name in names], folder)


def apart(folder: Path, way: str, name: str) -> list[float]:
    """Of each step's loss, relative to it."""
    alone, shared = (losses(folder / "runs" / which / name) for which in ("one", way))
    return [abs(a - b) / abs(a) for a, b in zip(alone, shared, strict=True)]


def moved(folder: Path, name: str) -> float:
    """The largest difference of a step's loss from the first step's, relative to it, of one process."""
    first, *others = losses(folder / "runs" / "one" / name)
    return max(abs(loss - first) / abs(first) for loss in others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="NAME")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps {options.steps}: whether a loss moves shows in the second step; use 2 or more")
    setup_logging()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        train(folder, options.steps, options.only)
        seconds = time.monotonic() - began
        records = []
        for name in options.only:
            found = {("one", "moved"): moved(folder, name)}
            for way in WAYS:
                steps = apart(folder, way, name)
                found |= {(way, "first"): steps[0], (way, "largest"): max(steps)}
            for (variant, metric), value in found.items():
                label = results.Label("parts", variant, 0, COMMAND)
                records.append(label.record(f"{metric}/{name}", value, n=options.steps, seconds=seconds))
    (results.update if set(options.only) < set(STAGES) else results.write)(HERE / "results.json", records)
    print("\n".join(table(records)))


if __name__ == "__main__":
    main()
