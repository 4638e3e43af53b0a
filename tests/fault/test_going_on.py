"""Training that goes on: steps that would spoil it are left out, what would stop it is said before its first step, and
a run that was stopped is continued exactly or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning
import pytest
import test_resume
import torch
from _clips import FakeChat, dataset
from lightning.pytorch.callbacks import ModelCheckpoint

from hvlm.data.datamodule import DataModule
from hvlm.data.views import Questions
from hvlm.dataset.shards import Shards
from hvlm.errors import UserError
from hvlm.io.checkpoint import weights_hash
from hvlm.stage._base import Stage
from hvlm.training import chain, preflight
from hvlm.training.checkpoint_io import AtomicCheckpointIO
from hvlm.training.guard import ENOUGH, SKIPPED, Guard
from hvlm.types import InputSpec

STEPS = 30
LATE = ENOUGH + 14


class Two(NamedTuple):
    """A batch of two samples."""

    x: torch.Tensor
    uids: list[str]


class Module(lightning.LightningModule):
    """A linear model behind running statistics, whose loss is what a step's number says it is."""

    def __init__(self, factors: dict[int, float]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
        self.factors = factors
        self.before: dict[int, str] = {}

    def training_step(self, batch: Two, index: int) -> torch.Tensor:
        if index % 2 == 0:  # the first of a step's two parts
            self.before[self.global_step] = weights_hash(self.state_dict())
        factor = self.factors.get(self.global_step, 1.0)
        x = batch.x * factor if math.isnan(factor) else batch.x  # what is no number gets into the statistics, too
        return (self.model(x) - 1).square().mean() * (1.0 if math.isnan(factor) else factor)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01, fused=True)


def fit(folder: Path, factors: dict[int, float], steps: int = STEPS, most: int = 3, ckpt: Path | None = None) -> Module:
    generator = torch.Generator().manual_seed(1)
    batches = [Two(torch.randn(2, 4, generator=generator), [f"s{2 * i}", f"s{2 * i + 1}"]) for i in range(2 * STEPS)]
    start = 0 if ckpt is None else torch.load(ckpt, weights_only=True)["global_step"]
    module = Module(factors)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, accumulate_grad_batches=2, logger=False,
        callbacks=[Guard(100.0, most, folder), ModelCheckpoint(folder, filename="at", every_n_train_steps=steps)],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(batches[2 * start :], batch_size=None)
    trainer.fit(module, loader, ckpt_path=ckpt, weights_only=True)
    return module


def skipped(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SKIPPED).read_text(encoding="utf-8").splitlines()]


def test_a_step_without_numbers_and_a_spike_change_nothing_and_name_their_samples(tmp_path: Path) -> None:
    module = fit(tmp_path, {3: math.nan, 5: math.inf, LATE: 1e6})
    for step in (3, 5, LATE):
        assert module.before[step + 1] == module.before[step], f"weights, moments and statistics of step {step}"
    assert module.before[5] != module.before[4] and module.before[LATE + 2] != module.before[LATE + 1]
    assert all(value.isfinite().all() for value in module.state_dict().values())
    lines = skipped(tmp_path)
    assert [line["step"] for line in lines] == [4, 6, LATE + 1]
    assert [line["norm"] is None for line in lines] == [True, True, False]
    assert lines[0]["uids"] == ["s12", "s13", "s14", "s15"], "of both parts of the step"
    assert "times as large as usual" in lines[2]["why"] and lines[2]["norm"] > 100 * lines[2]["usual"]


def test_a_spike_before_there_is_anything_to_compare_it_with_hides_no_later_one(tmp_path: Path) -> None:
    fit(tmp_path, {2: 1e6, LATE: 1e6})
    assert [line["step"] for line in skipped(tmp_path)] == [LATE + 1]


def test_what_comes_again_after_a_kill_is_listed_once(tmp_path: Path) -> None:
    """Killed behind its checkpoint, the run comes to that step a second time."""
    fit(tmp_path / "cut", {2: math.nan}, steps=LATE)
    with open(tmp_path / "cut" / SKIPPED, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": LATE + 2, "why": "before the kill"}) + '\n\0\0\n{"step": 1')
    fit(tmp_path / "cut", {LATE + 1: math.nan}, ckpt=tmp_path / "cut" / "at.ckpt")
    assert [(line["step"], line["why"] != "before the kill") for line in skipped(tmp_path / "cut")] == [
        (3, True),
        (LATE + 2, True),
    ]


def test_of_several_processes_the_samples_of_all_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(found: list[Any], own: list[str]) -> None:
        found[:] = [own, ["of the other"]]

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    guard = Guard(None, 3, tmp_path)
    trainer: Any = SimpleNamespace(global_step=1, is_global_zero=True)
    guard._skip(trainer, "why", math.nan, 1.0, ["own"])
    assert skipped(tmp_path)[0]["uids"] == ["own", "of the other"]


def test_a_step_that_the_scaler_of_16_mixed_leaves_out_moves_no_statistics(tmp_path: Path) -> None:
    module, guard = Module({}), Guard(None, 3, tmp_path)
    trainer: Any = SimpleNamespace(precision="16-mixed", global_step=1, is_global_zero=True)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    guard.on_train_batch_start(trainer, module, Two(torch.ones(2, 4), ["a", "b"]), 0)
    module.model(torch.full((2, 4), math.inf)).sum().backward()
    guard.on_before_optimizer_step(trainer, module, module.configure_optimizers())
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert guard.skipped == 0 and all(p.grad is not None for p in module.parameters()), "the scaler looks at them"


def test_more_of_them_than_may_be_end_the_run_with_a_line_that_says_where_they_are_listed(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"trainer.max_skipped=2 .*skipped.jsonl.*the same command then continues"
    ) as at:
        fit(tmp_path, dict.fromkeys(range(4, 20), math.nan), most=2)
    assert "\n" not in str(at.value) and "s12" not in str(at.value) and "step 7 left out (3 so far)" in str(at.value)
    assert len(skipped(tmp_path)) == 3


def test_a_resumed_run_leaves_out_the_same_steps(tmp_path: Path) -> None:
    """What is usual is remembered: the spike stands soon after the place at which the second run begins."""
    whole = fit(tmp_path / "whole", {2: math.nan, LATE + 1: 1e6})
    fit(tmp_path / "cut", {2: math.nan}, steps=LATE)
    rest = fit(tmp_path / "cut", {LATE + 1: 1e6}, ckpt=tmp_path / "cut" / "at.ckpt")
    assert weights_hash(rest.state_dict()) == weights_hash(whole.state_dict())
    assert [line["step"] for line in skipped(tmp_path / "cut")] == [3, LATE + 2]


FEW = ["stage=sft", "stage.batch_size=2", "stage.interleave=0", "evaluate=false", "callback.media=0"]


def test_a_run_of_the_command_line_goes_on_past_a_step_without_numbers(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    original = Stage.training_step

    def broken(stage: Stage, batch: Any, index: int) -> Any:
        loss = original(stage, batch, index)
        return loss * math.nan if stage.trainer.global_step == 1 else loss

    monkeypatch.setattr(Stage, "training_step", broken)
    outcome = chain.run([*FEW, "run=a", "stage.steps=3", *needles])
    (line,) = skipped(outcome.run / "sft")
    assert line["step"] == 2 and len(line["uids"]) == 2 and all(uid.startswith("train/") for uid in line["uids"])
    assert math.isfinite(outcome.stages["sft"]["metrics"]["val/loss"])


def test_too_small_a_disk_is_said_before_the_first_step(
    needles: list[str], small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_disk(1))
    with pytest.raises(UserError, match=r"checkpoints of .* MB have to lie there, .* MB are free; make room") as caught:
        chain.run([*FEW, "run=a", "stage.steps=200", "trainer.checkpoint_every=1", "callback.keep=-1", *needles])
    assert "\n" not in str(caught.value)
    assert not list(Path("runs/a/sft/checkpoints").iterdir())


@pytest.mark.parametrize(
    ("artifacts", "val_every", "count"), [("none", 1, 3), ("last", 1, 4), ("best", 1, 5), ("best", None, 4)]
)
def test_the_best_checkpoint_and_the_copy_of_an_artifact_need_room_too(
    artifacts: str, val_every: int | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    trainer = {"checkpoint_every": 1, "val_every": val_every}
    cfg = {"trainer": trainer, "logger": {"name": "wandb", "artifacts": artifacts}}
    found = chain.beside(cfg, SimpleNamespace(path=tmp_path))  # type: ignore[arg-type]
    assert not chain.beside({**cfg, "logger": {"name": "csv", "artifacts": artifacts}}, SimpleNamespace(path=tmp_path))  # type: ignore[arg-type]
    stage = SimpleNamespace(steps=1, batch_size=1)
    monkeypatch.setattr(preflight, "checkpoint_bytes", lambda _: 1 << 20)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    room = (stage, tmp_path / "checkpoints", trainer, 1, 1, 1, None, found)
    with pytest.raises(UserError, match=rf"{count} checkpoints of 1\.0 MB .* takes {count}\.0 MB more"):
        preflight.check_room(*room)  # type: ignore[arg-type]
    (tmp_path / "best.ckpt").write_bytes(bytes(1 << 20))  # of a stage that continues: it is replaced
    if count == 5:
        with pytest.raises(UserError, match=r"takes 4\.0 MB more"):
            preflight.check_room(*room)  # type: ignore[arg-type]


def test_too_little_memory_and_a_folder_that_cannot_be_written_are_said_before_the_first_step(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "available_bytes", lambda _: ("memory", 1 << 16))
    with pytest.raises(UserError, match=r"gradients and optimiser take .* 0.1 MB of memory are available; train fewer"):
        chain.run([*FEW, "run=a", "stage.steps=1", *needles])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("runs").write_text("in the way")
    with pytest.raises(UserError, match=r"^run=runs/a: cannot be written \(Not a directory\); name another folder$"):
        chain.run([*FEW, "run=a", "stage.steps=1", *needles])


def test_what_is_available_is_a_number_of_this_machine() -> None:
    """What is free of it: less than all, more than a hundredth."""
    what, count = preflight.available_bytes("cpu")
    every = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert what == "memory" and count is not None and every / 100 < count <= every


@pytest.mark.fault(9)
def test_a_schedule_that_asks_for_the_number_of_steps_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking makes the trainer look at the loader before the checkpoint is there."""

    class Scheduled(test_resume.Tiny):
        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            steps = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    monkeypatch.setattr(test_resume, "Tiny", Scheduled)
    data = dataset(tmp_path, {"train": 18}, texts=5)
    whole = test_resume.fit(data, tmp_path / "whole", 0)
    first = test_resume.fit(data, tmp_path / "cut", 0, stop=True)
    second = test_resume.fit(data, tmp_path / "cut", 0, resume=True)
    assert first.seen + second.seen == whole.seen and second.digest() == whole.digest()


@pytest.mark.fault(2)
def test_a_stream_is_not_resumed_unless_somebody_says_that_other_samples_may_come(tmp_path: Path) -> None:
    dataset(tmp_path, {"train": 8})

    def stream(restored: bool, **settings: Any) -> DataModule:
        made = DataModule(
            Shards(str(tmp_path), access="stream", **settings), FakeChat(), InputSpec("question_first", 2, 64),
            view=Questions(), rows_per_clip=1, loss="answer", batch_size=2, steps=5, num_workers=0, seed=3,
        )  # fmt: skip
        if restored:
            made.load_state_dict({"consumed": 4, **made._identity()})
        return made

    assert len(stream(False).train_dataloader()) == 5
    with pytest.raises(UserError, match=r"step 2 would see other samples .*dataset.allow_inexact_resume=true"):
        stream(True).train_dataloader()
    assert len(list(stream(True, allow_inexact_resume=True).train_dataloader())) == 3
