"""The runs of one model (a seed and a set of needles): merged reading without training, and a little training with it.

All in one process: its clips are read once, and for reading without training encoded once.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from experiments import curriculum
from experiments.connectors.__main__ import folder as connectors_folder
from hvlm import assembly
from hvlm.config.compose import plan
from hvlm.config.overlay import overlay
from hvlm.evaluation import results
from hvlm.evaluation.evaluate import RESULTS, evaluate
from hvlm.feature_cache import FrozenFeatures
from hvlm.rebuild import Loaded, load, stored_config
from hvlm.tasks import costs
from hvlm.types import Wants

log = logging.getLogger(__name__)

ROOT = Path("runs/merging")
COMMAND = "python -m experiments.merging"
EXPERIMENT = QUESTION = "merging"
SETS = ("easy", "hard")
MODEL_PARTS = ("free", "trained")
KEEPS = (0.5, 0.25, 0.125, 0.0625)
TRAINED_STEPS = 100
NONE = "none"
CACHE_MB = 8192  # the benchmark's clips are decoded, and their flow computed, once
DROPS = ("random", "stride", "dycoke")  # their tokens are single patches: sizes say nothing
MERGERS = ("adaptive", "motion", "saliency", "tome", "fastvid", *DROPS)
PROPORTIONAL = "merger.proportional=true"
PLAIN = {merger: [f"merger={merger}", *([] if merger in DROPS else [PROPORTIONAL])] for merger in MERGERS}
PLAIN_CLIPS = ["dataset.outline=false", "dataset.train_clips=8"]
PARTS_KEEP = 0.125
PARTS = {  # what parts of them are worth
    "adaptive_no_likeness": [*PLAIN["adaptive"], "merger.reach=null"],
    "adaptive_centroids": [*PLAIN["adaptive"], "merger.places=centroid"],
    "adaptive_flow": [*PLAIN["adaptive"], "merger.motion=flow"],
    "adaptive_not_proportional": ["merger=adaptive", "merger.proportional=false"],
    "adaptive_packed": [*PLAIN["adaptive"], "merger.positions=packed"],
    **{f"{merger}_not_proportional": [f"merger={merger}"] for merger in ("tome", "motion", "saliency", "fastvid")},
    "tome_packed": [*PLAIN["tome"], "merger.positions=packed"],
}


def base(seed: int, label: str) -> Path:
    """The model: the dense one of experiments.connectors, trained on."""
    start = connectors_folder(seed, "dense", "steps") / label
    if not (start / "finished.json").exists():
        raise SystemExit(f"{start} is missing: run python -m experiments.connectors --seeds {seed} first")
    run = ROOT / f"seed{seed}" / "base"
    steps = plan([f"experiment={EXPERIMENT}"])[label]["stage"]["steps"]
    curriculum.train(run, start, seed, [], {label: steps}, [], EXPERIMENT, here=True)
    return run / label


def free_variants() -> list[tuple[str, float]]:
    plain = [(merger, keep) for keep in KEEPS for merger in MERGERS]
    return [(NONE, 1.0), *plain, *((part, PARTS_KEEP) for part in PARTS)]


def trained_variants() -> list[tuple[str, float]]:
    return [(NONE, 1.0), *((merger, keep) for keep in (0.125, 0.25, 0.0625, 0.5) for merger in MERGERS)]


def free_folder(seed: int, label: str, outline: bool, variant: str, keep: float) -> Path:
    return ROOT / f"seed{seed}" / "free" / f"{label}{'' if outline else '-plain'}" / f"{variant}-{keep:g}"


def trained_folder(seed: int, label: str, outline: bool, merger: str, keep: float) -> Path:
    return ROOT / f"seed{seed}" / f"{merger}-{keep:g}" / label / ("eval" if outline else "eval-plain")


def settings(variant: str, keep: float) -> list[str]:
    return ["merger=none"] if variant == NONE else [*(PLAIN | PARTS)[variant], f"merger.keep={keep}"]


def all_of(part: str, seed: int, label: str) -> None:
    """part: ``free``, reading merged clips without training, or ``trained``."""
    torch.set_num_threads(1)
    model = base(seed, label)
    if part == "free":
        for outline in (True, False):
            read_merged(model, seed, label, outline)
        return
    for merger, keep in trained_variants():
        run = trained_folder(seed, label, True, merger, keep).parents[1]
        chosen = settings(merger, keep)
        curriculum.train(run, model, seed, chosen, {label: TRAINED_STEPS}, [], EXPERIMENT, here=True)
        for outline in (True, False):
            cfg = configuration(run / label, [] if outline else PLAIN_CLIPS)
            out = trained_folder(seed, label, outline, merger, keep)
            if not (out / RESULTS).exists():
                ask(out, load(run / label, cfg), merger, seed)


def read_merged(checkpoint: Path, seed: int, label: str, outline: bool) -> None:
    """Without training: every variant reads the same clips, as the checkpoint stands."""
    todo = [v for v in free_variants() if not (free_folder(seed, label, outline, *v) / RESULTS).exists()]
    if not todo:
        return
    cfg = configuration(checkpoint, [] if outline else PLAIN_CLIPS)
    loaded = load(checkpoint, cfg)
    model = loaded.model
    features = FrozenFeatures(model.vision, Wants(saliency="attention"), wants_patches=True)
    for variant, keep in todo:
        given = configuration(checkpoint, settings(variant, keep))
        model.merger = assembly.room(given["merger"], needs_frames=model.connector.needs_frames)
        model.features = features
        out = free_folder(seed, label, outline, variant, keep)
        ask(out, loaded, variant, seed)
        if outline:
            model.features = None  # the cost holds the encoder's
            merged = loaded._replace(config=given, inputs=assembly.input_spec(given, model))
            found = costs(merged, results.Label(QUESTION, variant, given["seed"], COMMAND))
            results.update(out / RESULTS, found)
        log.info("%s %g", variant, keep)


def ask(out: Path, loaded: Loaded, variant: str, seed: int) -> None:
    """The benchmark, unless its result is there; blind, too, for the model that merges nothing."""
    if (out / RESULTS).exists():
        return
    loaded.data.prepare()
    inputs = loaded.inputs._replace(motion=loaded.model.vision.grid(*loaded.inputs.size))  # all read the same clips
    label = results.Label(QUESTION, variant, seed, COMMAND)
    asked = loaded._replace(inputs=inputs)
    evaluate(asked, loaded.benchmark(blind=variant == NONE), label, out, contact_sheets=0)


def configuration(checkpoint: Path, overrides: list[str]) -> dict[str, Any]:
    return overlay(stored_config(checkpoint), [*overrides, f"trainer.cache_mb={CACHE_MB}"])
