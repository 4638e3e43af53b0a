"""What do the heads find: when something happens, and which video a text belongs to?

    python -m experiments.heads [--seeds 1 2 3] [--cells detect retrieve ...] [--collect]

``detect`` learns the built-in events (30 to 120 s, 2 to 6 events of a clip) and is scored by mAP at tIoU 0.3 to 0.7.
Beside it stand other ways to find the ends, a causal head, connectors and attention rooms on the same encoder, and
three controls: ``detect_blind`` sees black frames, ``class_prior`` answers every clip with where events of each class
mostly are, ``uniform`` with segments all over it. ``retrieve`` learns pairs and is scored by R@k among 1,000 held-out
clips, with hard negatives (the same words in another binding) beside. ``captions`` describes the clips of pairs.

The encoder of each set comes from stage 0 and stays as it is, so that its features are kept in memory. One cell after
the other, in one process on one thread; what is finished is not done again, what was stopped goes on. Adds to
results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hvlm import assembly
from hvlm.commands.eval import evaluate as eval_py
from hvlm.config.compose import compose
from hvlm.console import setup_logging
from hvlm.data import samples
from hvlm.data.tar import TEXT_FIELDS
from hvlm.evaluation import results
from hvlm.evaluation.ask import BLIND
from hvlm.evaluation.evaluate import RESULTS
from hvlm.evaluation.report import table
from hvlm.io.json_lines import read_lines
from hvlm.training import chain

HERE = Path(__file__).parent
ROOT = Path("runs/heads")
QUESTION, COMMAND = "heads", "python -m experiments.heads"
COMMON = ["trainer.threads=1", "callback.media=0", "trainer.cache_mb=1500", "stage.warmup=0.1"]
DATA = {
    "events": ["dataset.set=events", "dataset.fps=2", "dataset.num_frames=96", "dataset.train_clips=600"]
    + ["dataset.val_clips=8", "dataset.test_clips=100"],
    "pairs": ["dataset.set=pairs", "dataset.frames=9", "dataset.num_frames=6", "dataset.train_clips=4000"]
    + ["dataset.val_clips=8", "dataset.test_clips=1000"],
}
VISION = ["stage=vision", "stage.steps=1000", "stage.batch_size=48", "stage.rows_per_clip=1", "stage.place_weight=0.1"]
FROZEN = ["vision.cache_gb=3", "stage.trainable={vision:0,connector:1.0e-3,language:1.0e-3}"]
MOMENTS = ["stage=task", "head=detect", "head.dim=96", "stage.steps=1400", "stage.batch_size=8", *FROZEN]
# {cell: (set, what its command says)}
CELLS: dict[str, tuple[str, list[str]]] = {
    "detect": ("events", [*MOMENTS, "connector=mean"]),
    "trident": ("events", [*MOMENTS, "connector=mean", "head.boundary=trident", "head.bins=8"]),
    "causal": ("events", [*MOMENTS, "connector=mean", "head.causal=true", "head.look_ahead=6"]),
    "longvlm": ("events", [*MOMENTS, "connector=longvlm"]),
    "foveated": ("events", [*MOMENTS, "connector=foveated", "connector.mode=coarse"]),
    "local_global": ("events", [*MOMENTS, "connector=mean", "attention=local_global"]),
    "full": ("events", [*MOMENTS, "connector=mean", "attention=full"]),
    "mamba2": ("events", [*MOMENTS, "connector=mean", "attention=mamba2"]),
    "retrieve": (
        "pairs",
        ["stage=task", "head=retrieve", "head.negatives=1", "stage.steps=1500", "stage.batch_size=64", *FROZEN]
        + ["connector=mean"],
    ),
    "captions": (
        "pairs",
        ["stage=align", "stage.steps=400", "stage.batch_size=32", "stage.rows_per_clip=1", "stage.interleave=0"]
        + FROZEN
        + ["connector=mean", "stage.schedule=cosine", "stage.converge_to=null", "benchmark=captions"],
    ),
}  # fmt: skip
MAIN = ("detect", "retrieve")
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--collect", action="store_true", help="train nothing: write down what is finished")
    options = parser.parse_args()
    setup_logging()
    if not options.collect:
        for cell in options.cells:  # the main ones of every seed first
            for seed in options.seeds if cell in MAIN else options.seeds[:1]:
                print(f"--- seed {seed}: {cell}", flush=True)
                train(seed, cell)
    records = results.merge_seeds([found for seed in range(1, 10) if (found := list(of_seed(seed)))])
    results.update(HERE / RESULTS, records)
    print("\n".join(table(records)))


def vision(seed: int, data: str) -> Path:
    """Stage 0 on the set. Returns its folder."""
    run = ROOT / f"seed{seed}" / f"vision-{data}"
    chain.run([*VISION, *DATA[data], *COMMON, f"seed={seed}", f"run={run.relative_to('runs')}", "evaluate=false"])
    return run / "vision"


def train(seed: int, cell: str) -> None:
    """A cell and its examination, unless both are there."""
    data, words = CELLS[cell]
    run = ROOT / f"seed{seed}" / cell
    if not (run / "eval" / RESULTS).exists():
        start = vision(seed, data)
        given = [*words, *DATA[data], *COMMON, f"seed={seed}", f"init_from={start}"]
        chain.run([*given, f"run={run.relative_to('runs')}", "evaluate=false"])
        benchmark = ["benchmark=captions"] if cell == "captions" else ["benchmark.blind=true"]
        eval_py([f"checkpoint={run}", f"out={run / 'eval'}", "trainer.threads=1", *benchmark])
    if cell == "detect":
        controls(seed, run)


# ------------------------------------------------------------------------------------------------------------ controls


def controls(seed: int, run: Path) -> None:
    """What answers are worth that no frame was looked at for, on the clips of ``run``'s examination."""
    out = run / "controls.json"
    if out.exists():
        return
    cfg = compose([*CELLS["detect"][1], *DATA["events"]])
    head, train = assembly.head_alone(cfg), assembly.dataset(cfg).manifest().split("train")
    learned = [
        samples.parse(train.read(i, TEXT_FIELDS), train.keys[i], train.domains[i])["events"] for i in range(len(train))
    ]
    seconds = [json.loads(train.read(i, TEXT_FIELDS)["json"]) for i in range(len(train))]
    long = [one["frames"] / one["fps"] for one in seconds]
    asked = [line for line in read_lines(run / "eval" / "head.jsonl") if line["variant"] != BLIND]
    label = results.Label(QUESTION, "", seed, COMMAND)
    records = []
    for variant, answer in (("class_prior", prior(learned, long)), ("uniform", uniform(learned))):
        lines = [line | {"segments": answer(line["duration"])} for line in asked]
        for row in head.score(lines):
            own = label._replace(variant=variant)
            records.append(own.record(row["metric"], row["value"], n=row["n"], seconds=0))
    results.write(out, records)


def prior(learned: Sequence[Sequence[dict[str, Any]]], seconds: Sequence[float]) -> Any:
    """Of each class the segments that it is seen in most often, as parts of the clip, to a tenth."""
    shares = Counter(event["label"] for events in learned for event in events)
    parts: dict[str, list[tuple[float, float]]] = {}
    for events, length in zip(learned, seconds, strict=True):
        for event in events:
            parts.setdefault(event["label"], []).append((event["start"] / length, event["end"] / length))

    def answer(duration: float) -> list[dict[str, Any]]:
        found = []
        for label, count in sorted(shares.items()):
            all_of = np.array(parts[label])
            cells = Counter(map(tuple, (all_of * 10).round().astype(int).tolist()))
            for (start, end), n in cells.most_common(10):
                if end > start:
                    segment = {"start": start / 10 * duration, "end": end / 10 * duration}
                    found.append(segment | {"label": label, "score": n / count * count / len(learned)})
        return found

    return answer


def uniform(learned: Sequence[Sequence[dict[str, Any]]]) -> Any:
    """Segments of 2, 4, 8, ... to the clip's length side by side, of every class, as likely as the class is."""
    shares = Counter(event["label"] for events in learned for event in events)

    def answer(duration: float) -> list[dict[str, Any]]:
        found = []
        for label, count in sorted(shares.items()):
            for parts in (1, 2, 4, 8, 16):
                for i in range(parts):
                    segment = {"start": i * duration / parts, "end": (i + 1) * duration / parts}
                    found.append(segment | {"label": label, "score": count / len(learned) / parts})
        return found

    return answer


# -------------------------------------------------------------------------------------------------------------- records


def of_seed(seed: int) -> Iterator[results.Record]:
    """The records of a seed's finished cells."""
    shared = {"question": QUESTION, "command": COMMAND}
    for cell in CELLS:
        run = ROOT / f"seed{seed}" / cell
        if (run / "eval" / RESULTS).exists():
            for r in results.read(run / "eval" / RESULTS):
                yield r | shared | {"variant": f"{cell}_{BLIND}" if r["variant"] == BLIND else cell}
            finished = next(run.glob("*/finished.json"))
            took = json.loads(finished.read_text())
            yield results.Label(QUESTION, cell, seed, COMMAND).record(
                "cpu_seconds_a_step", took["cpu_seconds"] / max(1, took["steps_here"]), n=took["steps_here"], seconds=0
            )
        if (run / "controls.json").exists():
            yield from results.read(run / "controls.json")


if __name__ == "__main__":
    main()
