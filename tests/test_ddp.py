"""Two processes that share each global batch compute what one process computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _tiny import ROOT

from hvlm.io.checkpoint import load_weights
from hvlm.training.chain import run

STAGES = ["vision", "align", "sft", "dpo"]


def logged(folder: Path) -> dict[str, list[float]]:
    """{metric: its values in the order of the steps}, and ``val/loss`` of the end."""
    found: dict[str, list[float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        for name, value in json.loads(line).items():
            if name in ("train/loss", "train/reward_margin", "val/loss", "grad_norm"):
                found.setdefault(name, []).append(value)
    return found


def test_two_processes_train_like_one(needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's chain with text-only batches: every stage's losses, gradients, validation and weights."""
    monkeypatch.chdir(tmp_path)
    command = [
        "experiment=demo", "trainer.precision=32-true", "stage.steps=5", "stage.batch_size=4", "evaluate=false",
        "dataset.val_clips=8", *needles,
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *command, "run=two", "trainer=ddp", "trainer.accelerator=cpu"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, (child.stdout + child.stderr)[-4000:]
    outcome = run([*command, "run=one"])
    assert list(outcome.stages) == STAGES
    for stage in STAGES:
        one, two = logged(Path("runs/one") / stage), logged(Path("runs/two") / stage)
        assert len(one["train/loss"]) == 5 and len(one["val/loss"]) == 1
        # Adam turns the sign of a gradient that is nearly zero into a whole step, so single weights may part, and what
        # the first stage ends with is where the others begin.
        close = {"rel": 1e-4, "abs": 1e-6} if stage == STAGES[0] else {"rel": 3e-3, "abs": 3e-4}
        for name, values in one.items():
            assert two[name] == pytest.approx(values, **close), f"{stage}: {name}"
        alone, together = load_weights(Path("runs/one") / stage), load_weights(Path("runs/two") / stage)
        assert alone.keys() == together.keys()
        apart = torch.cat([(together[name] - value).float().flatten() for name, value in alone.items()])
        assert apart.abs().max() < 2e-3 and apart.square().mean().sqrt() < 2e-5, stage
