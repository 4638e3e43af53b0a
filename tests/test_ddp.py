"""Two processes that share each global batch compute what one process computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _small import once
from _tiny import ROOT

from experiments.parts.__main__ import OTHERS, WAYS, apart, moved
from experiments.parts.__main__ import STAGES as ALONE
from experiments.parts.__main__ import train as train_each
from hvlm.io.checkpoint import load_weights
from hvlm.io.head_patterns import read_pattern
from hvlm.training.chain import run

STAGES = ["vision", "align", "sft", "dpo"]
LOGGED = ("train/loss", "train/reward_margin", "train/distill", "train/gates_l1", "val/loss", "grad_norm")


def logged(folder: Path, also: str = "train/loss") -> dict[str, list[float]]:
    """{metric: its values in the order of the steps}, and ``val/loss`` of the end. also: how further names begin."""
    found: dict[str, list[float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        for name, value in json.loads(line).items():
            if name in LOGGED or name.startswith(also):
                found.setdefault(name, []).append(value)
    return found


def train(*overrides: str) -> None:
    """A whole train.py of its own, which starts the second process itself."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, (child.stdout + child.stderr)[-4000:]


def far(one: Path, other: Path) -> tuple[float, float]:
    """(largest, root mean square) difference of the weights."""
    alone, together = load_weights(one), load_weights(other)
    assert alone.keys() == together.keys()
    apart = torch.cat([(together[name] - value).float().flatten() for name, value in alone.items()])
    return apart.abs().max().item(), apart.square().mean().sqrt().item()


DDP, FSDP = "ddp_find_unused_parameters_true", "fsdp"


@pytest.mark.parametrize("strategy", [DDP, FSDP])
@pytest.mark.slow
def test_two_processes_train_like_one(
    strategy: str, needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's chain with text-only batches: every stage's losses, gradients, validation and weights."""
    monkeypatch.chdir(tmp_path)
    command = [
        "experiment=demo", "trainer.precision=32-true", "stage.steps=5", "stage.batch_size=4", "evaluate=false",
        "dataset.val_clips=8", *needles,
    ]  # fmt: skip
    train(*command, "run=two", "trainer=ddp", "trainer.accelerator=cpu", f"trainer.strategy={strategy}")
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
        largest, mean = far(Path("runs/one") / stage, Path("runs/two") / stage)
        assert largest < 2e-3 and mean < 2e-5, stage


@pytest.fixture(scope="session")
def shared_steps(shared: Path) -> Path:
    """A folder with the runs of ``experiments.parts``: each stage alone, from nothing, three steps in float32."""
    return once(shared / "shared_steps", lambda folder: train_each(folder, 3, list(ALONE)))


@pytest.mark.parametrize(
    ("way", "name"),
    [(way, name) for way in WAYS for name in ALONE if name not in OTHERS[way]],
)
@pytest.mark.slow
def test_a_step_that_is_shared_loses_what_it_loses_at_once(way: str, name: str, shared_steps: Path) -> None:
    steps = apart(shared_steps, way, name)
    # After a step, weights differ where a gradient is nearly 0 (Adam turns its sign into a whole step).
    assert len(steps) == 3 and steps[0] <= 1e-6 and max(steps) <= 1e-5
    assert moved(shared_steps, name) > 1e-3, "what never moves is the same however it is divided"


@pytest.mark.fault(77, 82)
@pytest.mark.parametrize("strategy", [DDP, pytest.param(FSDP, marks=pytest.mark.slow)])
def test_another_number_of_processes_goes_on_where_two_stopped(
    strategy: str, needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two begin, anew where something was before; then one goes on, in parts, and ends like one that did it all."""
    monkeypatch.chdir(tmp_path)
    command = [
        "stage=sft", "connector=mean", "connector.standardise=false", "trainer.precision=32-true", "stage.steps=4",
        "stage.batch_size=4", "stage.interleave=0.5", "trainer.accumulate=2", "evaluate=false", "callback.media=0",
        *needles,
    ]  # fmt: skip
    whole = run([*command, "run=whole"])
    two = ["run=cut", "trainer=ddp", "trainer.accelerator=cpu", f"trainer.strategy={strategy}", "trainer.max_steps=2"]
    run([*command, "run=cut", "trainer.max_steps=1"])
    train(*command, "trainer.accumulate=2", *two, "resume=never")
    assert json.loads(Path("runs/cut/sft/finished.json").read_text())["steps_here"] == 2
    rest = run([*command, "run=cut"])
    assert rest.stages["sft"]["steps"] == 4 and rest.stages["sft"]["steps_here"] == 2
    assert logged(Path("runs/cut/sft"))["train/loss"] == pytest.approx(
        logged(whole.run / "sft")["train/loss"], rel=1e-4, abs=1e-6
    )
    largest, mean = far(whole.run / "sft", rest.run / "sft")
    assert largest < 2e-4 and mean < 2e-5


@pytest.mark.slow
def test_two_processes_learn_several_heads_like_one(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that compares the clips of all processes, one that divides by a moving average, and one for which some
    batches of a process hold nothing."""
    monkeypatch.chdir(tmp_path)
    heads = "{detect:{dim:16,levels:3,dropout:0},retrieve:{dim:8},classify:{labels:['2','3']}}"
    command = [
        "stage=task", "head=several", f"head.heads={heads}", "stage.weights={classify:0.5}", "connector=mean",
        *needles, "dataset.root=data", "dataset.set=events", "dataset.min_seconds=10", "dataset.max_seconds=12",
        "dataset.fps=2", "dataset.num_frames=4", "dataset.val_clips=5", "dataset.text_chats=0", "stage.steps=4",
        "stage.batch_size=4", "evaluate=false", "callback.media=0",
    ]  # fmt: skip
    train(*command, "run=two", "trainer=ddp", "trainer.accelerator=cpu", f"trainer.strategy={DDP}")
    run([*command, "run=one"])
    one, two = logged(Path("runs/one/task"), "train/"), logged(Path("runs/two/task"), "train/")
    assert {"train/retrieve/accuracy", "train/detect/diou", "train/classify/loss"} <= set(one)
    for name in one.keys() - {"val/loss"}:  # there a clip is compared with those of its process
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name
    largest, mean = far(Path("runs/one/task"), Path("runs/two/task"))
    assert largest < 2e-3 and mean < 2e-5


@pytest.mark.parametrize("strategy", [DDP, FSDP])
@pytest.mark.slow
def test_two_processes_learn_the_gates_that_one_learns(
    strategy: str, needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """stage=duo on rows with different numbers of answers, so that each process has its own; the pattern is written
    once, with all gates."""
    monkeypatch.chdir(tmp_path)
    command = [
        "stage=duo", "kvcache=duo", "dataset.set=keys", "dataset.keys=2", "connector=patches", "order=video_first",
        "language.num_layers=2", "stage.steps=5", "stage.batch_size=4", "stage.interleave=0.5", "stage.sink=1",
        "stage.recent=2", "stage.trainable.kvcache=0.05", "stage.l1_weight=10", "evaluate=false", "callback.media=0",
        *needles, "language.num_layers=2",
    ]  # fmt: skip
    train(*command, "run=two", "trainer=ddp", "trainer.accelerator=cpu", f"trainer.strategy={strategy}")
    run([*command, "run=one"])
    one, two = logged(Path("runs/one/duo")), logged(Path("runs/two/duo"))
    assert len(one["train/distill"]) == 5 and any(one["train/distill"])
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    gates = [load_weights(Path("runs") / name / "duo")["kvcache.gates"] for name in ("one", "two")]
    assert gates[0].min() < 0.98 and len(gates[0].unique()) > 1
    torch.testing.assert_close(gates[1], gates[0], rtol=1e-4, atol=1e-4)
    for name, learnt in zip(("one", "two"), gates, strict=True):
        torch.testing.assert_close(read_pattern(Path("runs") / name / "duo" / "head_pattern", 2, 2).gates, learnt)
    for key, value in load_weights(Path("runs/one/duo")).items():  # everything else stays as it began
        if key != "kvcache.gates":
            assert torch.equal(load_weights(Path("runs/two/duo"))[key], value), key
