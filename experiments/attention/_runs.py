"""One run of the comparison, inside this process: its stages from the shared start, then the benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from experiments import curriculum
from hvlm import assembly
from hvlm.config.compose import plan
from hvlm.data.views import Questions
from hvlm.evaluation.evaluate import evaluate
from hvlm.evaluation.results import Label
from hvlm.io.checkpoint import find_checkpoint
from hvlm.precision import autocast, choose_precision
from hvlm.rebuild import load, stored_config
from hvlm.training.start import start_stage

ROOT = Path("runs/attention")
EXPERIMENT = "attention"
CACHE_MB = 8192  # the benchmark's clips are decoded once
VISION, READ, LONG = "vision", "read", "long"
MIXED = ("few", "short", LONG)  # what each run trains; the others are shared


@cache
def stages() -> dict[str, dict[str, Any]]:
    """{label: its configuration}."""
    return plan([f"experiment={EXPERIMENT}"])


def steps_of(*labels: str) -> dict[str, int]:
    return {label: stages()[label]["stage"]["steps"] for label in labels}


def start() -> Path:
    """The encoder, and the language model that reads what it gives: what all runs begin with."""
    run = ROOT / "start"
    curriculum.train(run, None, 1, [], steps_of(VISION), [], EXPERIMENT)
    curriculum.train(run, run / VISION, 1, [], steps_of(READ), [], EXPERIMENT)
    return run / READ


def train(run: Path, begin: Path, seed: int, overrides: Sequence[str], steps: Mapping[str, int]) -> None:
    curriculum.train(run, begin, seed, overrides, steps, [], EXPERIMENT, here=True)
    if not (run / LONG / "eval" / "results.json").exists():
        ask(run / LONG, seed)


def ask(checkpoint: Path, seed: int) -> None:
    """The benchmark, over the features that are kept."""
    cfg = stored_config(find_checkpoint(checkpoint))
    loaded = load(checkpoint, {**cfg, "trainer": cfg["trainer"] | {"cache_mb": CACHE_MB}})
    loaded.model.features = assembly.features_for(loaded.model, loaded.data.manifest())
    label = Label("attention", checkpoint.parent.name, seed)
    evaluate(loaded, loaded.benchmark(), label, checkpoint / "eval", contact_sheets=0)


def encode_all(begin: Path) -> None:
    """Decode and encode all clips before the first run, so that no run's time holds it."""
    for label in MIXED:
        cfg = stages()[label]
        data = assembly.dataset(cfg)
        data.prepare()
        stage, chat = start_stage(cfg, data, find_checkpoint(begin))
        stage.model.features = assembly.frozen_features(cfg, stage, data)
        reading = assembly.datamodule(cfg, stage, data, chat, None)
        for split in ("train", "val"):
            for batch in reading.loader(split, Questions(), 1, 32):
                with autocast(batch.frames_BTCHW.device, _precision(cfg)):
                    stage.model.features.encode(batch)


def spent(folders: Sequence[Path]) -> Iterator[tuple[str, float]]:
    """Steps and processor seconds of each stage, the mean over the seeds."""
    for label in MIXED:
        done = [curriculum.finished(path.parent, label) for path in folders]
        yield f"steps/{label}", statistics.fmean(d["steps"] for d in done)
        yield f"cpu_seconds/{label}", statistics.fmean(d["cpu_seconds"] * d["steps"] / d["steps_here"] for d in done)


def _precision(cfg: Mapping[str, Any]) -> str:
    return choose_precision(cfg["trainer"]["precision"], cfg["trainer"]["accelerator"])[0]
