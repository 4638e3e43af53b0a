"""The models of the comparison, one a seed: a chain of stages up to one that solves the task, then its gates."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from experiments import curriculum
from hvlm.config.compose import plan
from hvlm.config.overlay import overlay
from hvlm.io.checkpoint import find_checkpoint
from hvlm.rebuild import Loaded, load, stored_config

ROOT = Path("runs/duo")
EXPERIMENT = "duo"
COMMAND = "python -m experiments.duo"
LEARNED, GATES = "many", "gates"  # the stage after which the model is complete, and the one that learns gates
CLIPS = 96
# What is asked: clips of the test split, in the wording that gates have not seen.
ASKED = ["dataset.wording=second", "dataset.train_clips=8", "dataset.val_clips=8", f"dataset.test_clips={CLIPS}"]


@cache
def stages() -> dict[str, dict[str, Any]]:
    """{label: its configuration}."""
    return plan([f"experiment={EXPERIMENT}"])


def folder(seed: int) -> Path:
    return ROOT / f"seed{seed}"


def train(seed: int) -> None:
    """All stages, each a call of train.py."""
    steps = {label: cfg["stage"]["steps"] for label, cfg in stages().items()}
    curriculum.train(folder(seed), None, seed, [], steps, [], EXPERIMENT)


def pattern(seed: int) -> Path:
    """Where the learnt gates stand, as DuoAttention's files."""
    return folder(seed) / GATES / "head_pattern"


def read(seed: int) -> Loaded:
    """The complete model, with the clips that are asked about."""
    checkpoint = folder(seed) / LEARNED
    loaded = load(checkpoint, overlay(stored_config(find_checkpoint(checkpoint)), ASKED))
    loaded.data.prepare(progress=False)
    return loaded
