"""What does each of two processes hold, and do they lose what one loses, under trainer=ddp and trainer=fsdp?

    python -m experiments.strategies [--steps 3] [--only losses memory]

Every stage from nothing with the same seed and batches, by one process and by two (gloo, float32, on needles): the
largest difference of a step's loss. Bytes of weights, gradients and optimiser states in the fuller of the two
processes when a step's gradients are there, and by how much the process has grown then and at its most, for a language
model of about 26 million weights. Writes results.json beside this file (with ``--only``, the other records stay); needs
Linux, and a few minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from pathlib import Path

from experiments.strategies.processes import held, together
from hvlm.console import setup_logging
from hvlm.evaluation import results
from hvlm.evaluation.report import table
from hvlm.training.chain import run

HERE = Path(__file__).parent
COMMAND = "python -m experiments.strategies"
TWO = ("ddp", "fsdp")
TINY = [
    "dataset.size=32", "dataset.frames=8", "dataset.num_frames=4", "dataset.train_clips=24", "dataset.val_clips=8",
    "dataset.test_clips=8", "dataset.text_chats=8", "dataset.shard_clips=12", "dataset.generate_workers=1",
    "dataset.root=data", "vision.dim=32", "vision.num_layers=1", "vision.num_heads=2", "vision.image_size=32",
    "language.hidden_size=32", "language.intermediate_size=64", "language.num_layers=2", "language.num_heads=2",
    "language.num_kv_heads=2", "connector=mean", "connector.standardise=false", "trainer.precision=32-true",
    "trainer.threads=1", "trainer.log_every=1", "stage.batch_size=4", "callback.media=0", "evaluate=false",
]  # fmt: skip
STAGES = {
    "align": ["stage=align"],
    "sft": ["stage=sft", "stage.interleave=0.5"],
    "sft, LoRA alone": ["stage=sft", "adapter=lora"],
    "dpo": ["stage=dpo"],
    "dpo, reference=adapter_off": ["stage=dpo", "adapter=lora", "stage.reference=adapter_off"],
    "task, classify": ["stage=task", "head=classify", "dataset.set=binding"],
    "duo": ["stage=duo", "kvcache=duo", "dataset.set=keys", "dataset.keys=2", "connector=patches", "order=video_first",
            "stage.sink=1", "stage.recent=2", "stage.trainable.kvcache=0.05", "stage.l1_weight=10"],
}  # fmt: skip
LARGE = [
    "stage=sft", "language.hidden_size=512", "language.intermediate_size=1536", "language.num_layers=8",
    "language.num_heads=8", "language.num_kv_heads=4",
]  # fmt: skip


def folder_name(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def losses(folder: Path) -> list[float]:
    """Of the steps of the one stage of a run."""
    (file,) = folder.glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=("losses", "memory"), default=("losses", "memory"))
    options = parser.parse_args()
    setup_logging()
    records = []
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        if "losses" in options.only:
            records += compared(Path(place), options.steps)
        if "memory" in options.only:
            records += measured(Path(place))
    results.update(HERE / "results.json", records)
    print("\n".join(table(records)))


def compared(folder: Path, steps: int) -> list[results.Record]:
    """Every stage, by one process and by two."""
    began = time.monotonic()
    words = {name: [*TINY, f"stage.steps={steps}", *more] for name, more in STAGES.items()}
    for name, said in words.items():
        run([*said, f"run=one/{folder_name(name)}"])
    two = [
        [*said, f"trainer={trainer}", "trainer.accelerator=cpu", f"run={trainer}/{folder_name(name)}"]
        for name, said in words.items()
        for trainer in TWO
    ]
    together(two, folder, timeout=3000)
    records = []
    for name in STAGES:
        alone = losses(folder / "runs" / "one" / folder_name(name))
        for trainer in TWO:
            both = losses(folder / "runs" / trainer / folder_name(name))
            apart = max(abs(a - b) for a, b in zip(alone, both, strict=True))
            seconds = time.monotonic() - began
            records.append(record("losses", trainer, f"difference/{name}", apart, len(alone), seconds))
    return records


def measured(folder: Path) -> list[results.Record]:
    """A larger model, each trainer in processes of its own: what one run frees, the next would not take anew."""
    records = []
    for trainer in TWO:
        began = time.monotonic()
        said = [*TINY, *LARGE, "stage.steps=2", f"trainer={trainer}", "trainer.accelerator=cpu", f"run={trainer}/large"]
        together([said], folder, timeout=3000)
        ranks = [held(folder, rank)[f"{trainer}/large"] for rank in (0, 1)]
        for what in ranks[0]:
            seconds = time.monotonic() - began
            records.append(record("memory", trainer, what, max(r[what] for r in ranks) / 2**20, 1, seconds))
    return records


def record(question: str, trainer: str, metric: str, value: float, n: int, seconds: float) -> results.Record:
    variant = f"trainer={trainer}"
    return results.Label(f"strategies_{question}", variant, 0, COMMAND).record(metric, value, n=n, seconds=seconds)


if __name__ == "__main__":
    main()
