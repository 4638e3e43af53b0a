"""A kill cannot damage a checkpoint, damage is noticed, and a checkpoint cannot run code."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import stat
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from _tiny import ROOT
from lightning.fabric.plugins.environments import SLURMEnvironment
from omegaconf import OmegaConf

from hvlm.errors import UserError
from hvlm.io.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_into,
    load_weights,
    read_checkpoint,
    verify,
    weights_hash,
)
from hvlm.io.files import read_metrics
from hvlm.io.lock import locked
from hvlm.training.checkpoint_io import AtomicCheckpointIO
from hvlm.training.file_logger import FileLogger
from hvlm.training.identity import config_id, default_run
from hvlm.training.ranks import refuse_left_over_rank
from hvlm.training.resume_callbacks import GracefulStop, RngState, requeue
from hvlm.training.run_dir import RunDir
from hvlm.training.trainer import make_trainer, make_trainer_kwargs, max_seconds

IO = AtomicCheckpointIO()


def content(value: float) -> dict[str, Any]:
    return {"state_dict": {"model.w": torch.full((50,), value)}, "global_step": int(value)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(content(1), path)
    return path


@pytest.mark.fault(10)
def test_round_trip(file: Path) -> None:
    assert load_checkpoint(file)["global_step"] == 1 and verify(file) is None
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    done = subprocess.run(["sha256sum", "-c", "last.ckpt.sha256"], cwd=file.parent, capture_output=True)
    assert done.returncode == 0
    IO.remove_checkpoint(file)
    assert list(file.parent.iterdir()) == []


# Every step of a save at which the process may die; ``os.replace`` is called for the sums, the file, the sums again.
@pytest.mark.fault(10)
@pytest.mark.parametrize("at", ["write", "replace 1", "replace 2", "replace 3"])
def test_a_crash_leaves_a_whole_file(file: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        pass

    def half(checkpoint: Any, f: Any) -> None:
        f.write(b"half a file")
        raise Crash

    calls, replace = [], os.replace

    def dying(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == int(at[-1]):
            raise Crash
        replace(source, target)

    if at == "write":
        monkeypatch.setattr(torch, "save", half)
    else:
        monkeypatch.setattr(os, "replace", dying)
    monkeypatch.setattr(Path, "unlink", lambda *a, **k: None)  # a killed process does not tidy up
    with pytest.raises(Crash):
        IO.save_checkpoint(content(2), file)
    monkeypatch.undo()
    assert verify(file) is None
    assert load_checkpoint(file)["global_step"] == (2 if at == "replace 3" else 1)
    IO.save_checkpoint(content(3), file)
    assert load_checkpoint(file)["global_step"] == 3
    assert sorted(p.name for p in file.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


@pytest.mark.fault(12)
def test_full_disk_names_the_file_and_keeps_the_old_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(checkpoint: Any, f: Any) -> None:
        f.write(b"x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"last.ckpt not written.*No space.*MB are free"):
        IO.save_checkpoint(content(2), file)
    monkeypatch.undo()
    assert load_checkpoint(file)["global_step"] == 1
    assert not list(file.parent.glob("*.part"))


@pytest.mark.fault(15)
def test_damage_is_noticed(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="last.ckpt: its content differs from its checksum"):
        load_checkpoint(file)


@pytest.mark.fault(57, 58, 59)
def test_no_code_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Canary:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "canary"),)

    path = tmp_path / "bad.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Canary()}, protocol=2))  # torch.load's own; it warns about others
    torch.save({"state_dict": Canary()}, tmp_path / "bad2.ckpt")
    for name, reason in (
        ("bad.ckpt", "it is no zip archive"),
        ("bad2.ckpt", "what torch.save wrote is damaged, or holds"),
    ):
        with pytest.raises(UserError, match=f"not a readable checkpoint of tensors and plain values: {reason}"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "canary").exists()
    with pytest.raises(UserError, match="weights_only"):
        IO.load_checkpoint(path, weights_only=False)
    with pytest.raises(UserError, match="files on this machine"):
        load_checkpoint("https://example.org/x.ckpt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match="unset it"):
        load_checkpoint(path)


@pytest.mark.fault(61)
@pytest.mark.parametrize("bad", [np.float64(1), Path("x"), OmegaConf.create({"a": 1}), np.zeros(2)])
def test_only_plain_values_are_saved(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\['a'\]\[1\] is a "):
        IO.save_checkpoint({"a": [0, bad]}, tmp_path / "x.ckpt")
    assert not list(tmp_path.iterdir())


def test_weights_hash() -> None:
    a = {"x": torch.arange(4.0), "y": torch.ones(2, dtype=torch.bfloat16), "z": torch.tensor(True)}
    assert weights_hash(a) == weights_hash(dict(reversed(a.items())))
    changed = {**a, "x": a["x"].clone()}
    changed["x"][0] = -0.0
    assert weights_hash(a) != weights_hash(changed)
    assert weights_hash(a) != weights_hash({**a, "x": a["x"].reshape(2, 2)})


def test_another_architecture_names_part_and_shapes() -> None:
    def model(width: int, extra: bool = False) -> torch.nn.Module:
        parts = {"vision": torch.nn.Linear(3, 3), "connector": torch.nn.Linear(3, width)}
        return torch.nn.ModuleDict(parts | ({"adapter": torch.nn.Linear(1, 1)} if extra else {}))

    target = model(4)
    with pytest.raises(UserError, match=r"x.ckpt was made .*: connector differ .*\(5, 3\) there and \(4, 3\) here"):
        load_into(target, model(5).state_dict(), "x.ckpt")
    with pytest.raises(UserError, match="adapter"):
        load_into(target, model(4, extra=True).state_dict(), "x.ckpt")
    source = model(4)
    assert load_into(model(4, extra=True), source.state_dict(), "x.ckpt", strict=False) == [
        "adapter.weight",
        "adapter.bias",
    ]
    load_into(target, source.state_dict(), "x.ckpt")
    assert weights_hash(target.state_dict()) == weights_hash(source.state_dict())


# ---------------------------------------------------------------------------------------------------- run folders

CONFIG = {"seed": 1, "stage": {"steps": 5}, "logger": {"name": "csv"}, "trainer": {"num_workers": 0, "devices": 1}}


def test_run_folder_belongs_to_a_configuration(tmp_path: Path) -> None:
    folder = RunDir("a", "sft", tmp_path)
    folder.prepare(CONFIG)
    IO.save_checkpoint(content(1), folder.checkpoints / "step-1.ckpt")
    folder.prepare({**CONFIG, "logger": {"name": "wandb"}, "trainer": {"num_workers": 2, "devices": 1}})
    with pytest.raises(UserError, match=r"stage.steps: 5 -> 6.*run="):
        folder.prepare({**CONFIG, "stage": {"steps": 6}})
    for name in ("../x", "/x", "", "a/../../x"):
        with pytest.raises(UserError, match="run="):
            RunDir(name, "sft", tmp_path)


def test_default_run_name_is_stable() -> None:
    name = default_run({"sft": CONFIG}, [])
    assert name == default_run({"sft": {**CONFIG, "run": "x", "resume": "must"}}, [])
    assert name != default_run({"sft": {**CONFIG, "seed": 2}}, []) and name.startswith("sft-")
    assert default_run({"sft": CONFIG}, ["experiment=demo"]) == f"demo-{config_id(CONFIG)}"


@pytest.mark.fault(109)
def test_a_folder_in_which_no_step_was_saved_can_be_had_for_other_settings(tmp_path: Path) -> None:
    folder = RunDir("a", "sft", tmp_path)
    folder.prepare(CONFIG)
    folder.prepare({**CONFIG, "seed": 2}, start="a" * 64)
    IO.save_checkpoint(content(1), folder.checkpoints / "step-1.ckpt")
    with pytest.raises(UserError, match="seed: 2 -> 1"):
        folder.prepare(CONFIG, start="a" * 64)


@pytest.mark.fault(82, 99, 109)
@pytest.mark.parametrize(
    "changes",
    [
        {"trainer": {"devices": 2, "num_nodes": 2, "strategy": "ddp", "threads": 4, "accelerator": "gpu"}},
        {"trainer": {"max_steps": 9, "max_time": "00:01:00:00", "num_workers": 2, "log_every": 1, "cache_mb": 0}},
        {"vision": {"cache_gb": 2.0, "frames_at_once": 8, "gradient_checkpointing": True}},
        {"dataset": {"path": "data", "access": "index", "decode_timeout": 1.0, "generate_workers": 4}},
        {"logger": {"name": "wandb"}, "callback": {"media": 0}, "evaluate": False, "benchmark": {"limit": 1}},
        {"dataset": {"path": "elsewhere/", "access": "index"}, "init_from": "copied/demo"},
    ],
)
def test_what_cannot_change_a_result_may_change_on_resume(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = {**CONFIG, "dataset": {"path": "data", "access": "index"}, "init_from": "runs/demo"}
    folder = RunDir("a", "sft", tmp_path)
    folder.prepare(config, "a" * 64, "b" * 64)
    IO.save_checkpoint(content(1), folder.checkpoints / "step-1.ckpt")
    folder.prepare({**config, **changes}, "a" * 64, "b" * 64)


@pytest.mark.fault(109)
def test_an_older_version_s_idea_of_what_counts_stops_no_run(tmp_path: Path) -> None:
    folder = RunDir("a", "sft", tmp_path)
    folder.prepare(CONFIG, "a" * 64)
    IO.save_checkpoint(content(1), folder.checkpoints / "step-1.ckpt")
    written = json.loads(folder.identity_file.read_text()) | {"vision.cache_gb": 0.0}
    folder.identity_file.write_text(json.dumps(written))
    folder.prepare(CONFIG, "a" * 64)


@pytest.mark.fault(68)
def test_the_weights_and_the_data_it_began_with_belong_to_a_folder(tmp_path: Path) -> None:
    folder = RunDir("a", "sft", tmp_path)
    folder.prepare(CONFIG, "a" * 64, "b" * 64)
    IO.save_checkpoint(content(1), folder.checkpoints / "step-1.ckpt")
    with pytest.raises(UserError, match="start.weights_sha256: aaaaaaaaaaaa -> cccccccccccc.*resume=never"):
        folder.prepare(CONFIG, "c" * 64, "b" * 64)
    with pytest.raises(UserError, match="data.sha256: bbbbbbbbbbbb -> dddddddddddd"):
        folder.prepare(CONFIG, "a" * 64, "d" * 64)
    folder.prepare(CONFIG, "a" * 64)  # data that is gone cannot be compared
    with pytest.raises(UserError, match="seed"):
        folder.prepare({**CONFIG, "seed": 2, "resume": "never"}, "c" * 64)
    folder.prepare({**CONFIG, "resume": "never"}, "c" * 64)  # all steps are about to go
    assert folder.resume_from("never") is None
    folder.identity_file.unlink()
    IO.save_checkpoint(content(1), folder.checkpoints / "step-1.ckpt")
    with pytest.raises(UserError, match="older version"):
        folder.prepare(CONFIG, "c" * 64)


@pytest.mark.fault(14, 16, 88)
def test_resume_takes_the_furthest_sound_step_whatever_the_clock_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunDir("a", "sft", tmp_path)
    folder.prepare(CONFIG)
    assert folder.resume_from("auto") is None
    with pytest.raises(UserError, match="resume=must"):
        folder.resume_from("must")
    for step in (9, 10, 11):  # the names are in another order than the steps
        path = folder.checkpoints / f"step-{step}.ckpt"
        IO.save_checkpoint(content(step), path)
        os.utime(path, ns=((20 - step) * 10**9, (20 - step) * 10**9))  # and the times in the reverse of it
    furthest = folder.checkpoints / "step-11.ckpt"
    data = bytearray(furthest.read_bytes())
    data[len(data) // 2] ^= 1
    furthest.write_bytes(data)
    (folder.checkpoints / "step-12.ckpt").write_bytes(data[:100])
    assert folder.latest_checkpoint() == folder.checkpoints / "step-10.ckpt"
    assert "step-11.ckpt skipped" in caplog.text
    with caplog.at_level("INFO"):
        folder.resume_from("auto")
    assert "continues from step-10.ckpt" in caplog.text
    assert folder.resume_from("never") is None
    assert not list(folder.checkpoints.iterdir())


@pytest.mark.fault(77)
def test_only_the_writing_process_touches_files(tmp_path: Path) -> None:
    first, other = RunDir("a", "sft", tmp_path), RunDir("a", "sft", tmp_path, writes=False)
    other.prepare(CONFIG)
    assert not list(tmp_path.iterdir())
    first.prepare(CONFIG)
    IO.save_checkpoint(content(1), first.checkpoints / "step-1.ckpt")
    assert other.resume_from("never") is None and (first.checkpoints / "step-1.ckpt").exists()
    assert first.resume_from("never") is None and not (first.checkpoints / "step-1.ckpt").exists()


@pytest.mark.fault(97)
def test_checkpoints_that_the_trainer_wrote_by_itself_join_the_others(tmp_path: Path) -> None:
    folder = RunDir("a", "sft", tmp_path)
    folder.prepare(CONFIG)
    IO.save_checkpoint(content(5), folder.path / "hpc_ckpt_1.ckpt")
    folder.prepare(CONFIG)
    assert folder.resume_from("auto") == folder.checkpoints / "hpc_ckpt_1.ckpt"
    assert not list(folder.path.glob("hpc*"))


def finished_stage(run: Path, label: str, value: int, start: int | None = None, **config: Any) -> RunDir:
    """The folder of a stage whose weights are all ``value``."""
    folder = RunDir(run.name, label, run.parent)
    folder.prepare({**CONFIG, **config}, None if start is None else f"{start:064d}")
    IO.save_checkpoint(content(value), folder.last)
    folder.finish(f"{value:064d}", steps=value, took={"seconds": 1.0})
    return folder


def test_weights_from_a_run_folder(tmp_path: Path) -> None:
    run = tmp_path / "a"
    with pytest.raises(UserError, match="no such"):
        load_weights(run)
    folder = RunDir("a", "align", tmp_path)
    folder.prepare(CONFIG)
    IO.save_checkpoint(content(1), folder.last)
    for path in (run, run / "align"):
        with pytest.raises(UserError, match="no stage of this run is finished|this stage is not finished"):
            load_weights(path)
    assert not folder.is_finished()
    folder.finish(f"{1:064d}", steps=1, took={"seconds": 1.0})
    assert folder.is_finished() and not folder.is_finished(steps=2) and folder.finished()["steps"] == 1
    assert load_weights(run)["w"][0] == 1 == load_weights(run / "align")["w"][0]


@pytest.mark.fault(88)
def test_the_last_stage_is_the_one_that_nothing_started_from_whatever_the_clock_says(tmp_path: Path) -> None:
    run = tmp_path / "a"
    for label, value, start in (("b", 1, None), ("c", 2, 1), ("a", 3, 2)):
        folder = finished_stage(run, label, value, start)
        record = json.loads(folder.finished_file.read_text())
        folder.finished_file.write_text(json.dumps(record | {"finished_at": record["finished_at"] - 3600 * value}))
    assert find_checkpoint(run) == run / "a" / "checkpoints" / "last.ckpt"
    finished_stage(run, "other", 4, 2)  # c was gone on with twice
    with pytest.raises(UserError, match="a, other are finished and none comes last"):
        find_checkpoint(run)


@pytest.mark.fault(88)
def test_the_chain_orders_stages_that_do_not_say_what_they_started_from(tmp_path: Path) -> None:
    run = tmp_path / "a"
    chain: dict[str, list[str]] = {"z": [], "b": [], "a": []}
    for label, value in (("a", 3), ("z", 1), ("b", 2)):
        finished_stage(run, label, value, chain=chain)
    assert find_checkpoint(run).parts[-3] == "a"


@pytest.mark.fault(83)
def test_of_a_finished_stage_the_furthest_sound_checkpoint_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = finished_stage(tmp_path / "a", "sft", 8)
    IO.save_checkpoint(content(7), folder.checkpoints / "step-7.ckpt")
    folder.last.write_bytes(folder.last.read_bytes()[:-1])
    assert load_weights(tmp_path / "a")["w"][0] == 7
    assert "last.ckpt skipped" in caplog.text and "of 8 steps step-7.ckpt holds 7" in caplog.text
    assert not folder.is_finished(8) and folder.resume_from("auto") == folder.checkpoints / "step-7.ckpt"
    IO.save_checkpoint(content(8), folder.checkpoints / "step-8.ckpt")
    assert folder.is_finished(8) and load_weights(tmp_path / "a")["w"][0] == 8


@pytest.mark.fault(84)
def test_a_checkpoint_is_read_and_hashed_once_while_it_stays_the_same(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed, loaded, digest, load = [], [], hashlib.file_digest, torch.load
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: (hashed.append(1), digest(*a))[1])
    monkeypatch.setattr(torch, "load", lambda *a, **k: (loaded.append(1), load(*a, **k))[1])
    for _ in range(3):
        assert read_checkpoint(file)["global_step"] == 1 and load_weights(file)["w"][0] == 1
    assert len(hashed) == len(loaded) == 1
    IO.save_checkpoint(content(2), file)
    assert read_checkpoint(file)["global_step"] == 2 and load_weights(file)["w"][0] == 2


def hold(folder: Path, holding: Any) -> None:
    with locked(folder, "run=a"):
        holding.set()
        time.sleep(60)


@pytest.mark.fault(86, 99)
def test_a_second_process_in_one_folder_is_refused_and_a_killed_one_leaves_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    holding = context.Event()
    child = context.Process(target=hold, args=(tmp_path / "a", holding))
    child.start()
    assert holding.wait(20)
    with (
        pytest.raises(UserError, match=rf"run=a: process {child.pid} on .* has been writing .*/a for 0:\d\d; wait"),
        locked(tmp_path / "a", "run=a"),
    ):
        pass
    child.kill()
    child.join()
    with locked(tmp_path / "a", "run=a"):
        pass


def hold_and_fork(folder: Path, pipe: Any, writes: bool) -> None:
    """The owner of a folder, with a process of its own that lives on when it is killed."""
    with locked(folder, "run=a", children_write=writes):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        pipe.send(child)
        time.sleep(60)


@pytest.mark.parametrize("writes", [False, True])
def test_the_folder_of_a_killed_run_is_kept_by_a_process_that_writes_and_not_by_one_that_reads(
    tmp_path: Path, writes: bool
) -> None:
    """One that reads outlives the run as long as its decoder hangs, up to dataset.decode_timeout."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    owner = context.Process(target=hold_and_fork, args=(tmp_path / "a", theirs, writes))
    owner.start()
    assert mine.poll(20)
    child = mine.recv()
    try:
        with pytest.raises(UserError, match="has been writing"), locked(tmp_path / "a", "run=a"):
            pass
        owner.kill()
        owner.join()
        os.kill(child, 0)  # it is still there
        after = pytest.raises(UserError, match="has been writing") if writes else nullcontext()
        with after, locked(tmp_path / "a", "run=a"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------- callbacks


class Noisy(L.LightningModule):
    """A model whose weights depend on dropout, and that can be told to receive SIGTERM at a step."""

    def __init__(self, sigterm_at: int | None = None, sent: int = signal.SIGTERM) -> None:
        super().__init__()
        self.model = torch.nn.Linear(4, 4)
        self.sigterm_at, self.sent = sigterm_at, sent

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if self.sigterm_at is not None and self.global_step == self.sigterm_at:
            self.sigterm_at = None
            os.kill(os.getpid(), self.sent)
        loss = torch.nn.functional.dropout(self.model(batch), 0.5).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(
    folder: Path, sigterm_at: int | None = None, ckpt: Path | None = None, deadline: float | None = None, sent: int = 15
) -> Noisy:
    L.seed_everything(3, verbose=False)
    module = Noisy(sigterm_at, sent)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=12,
        max_epochs=-1,
        accumulate_grad_batches=2,
        logger=FileLogger(folder),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=[IO],
        callbacks=[RngState(), GracefulStop(deadline)],
    )
    data = torch.utils.data.DataLoader(torch.ones(100, 4), batch_size=2)
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    return module


def steps_logged(folder: Path) -> list[int]:
    return [line["step"] for line in read_metrics(folder) if "loss" in line]


@pytest.mark.fault(5, 17, 18, 86)
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_saves_the_step_and_its_metrics_and_resumes_exactly(tmp_path: Path, sent: int, code: int) -> None:
    whole = fit(tmp_path / "whole")
    before = signal.getsignal(sent)
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path / "cut", sigterm_at=5, sent=sent)
    assert stopped.value.code == code
    assert signal.getsignal(sent) == before
    path = tmp_path / "cut" / "checkpoints" / "stopped.ckpt"
    assert load_checkpoint(path)["global_step"] == 6  # the step that was under way is finished
    assert steps_logged(tmp_path / "cut") == list(range(6))
    resumed = fit(tmp_path / "cut", ckpt=path)
    assert weights_hash(resumed.state_dict()) == weights_hash(whole.state_dict())
    assert steps_logged(tmp_path / "cut") == list(range(12))


@pytest.mark.fault(71)
def test_every_call_has_its_own_time_saves_what_it_did_and_comes_further(tmp_path: Path) -> None:
    whole, path = fit(tmp_path / "whole"), None
    for step in (1, 2, 3):
        with pytest.raises(UserError, match=rf"max_time is over: step {step} of 12 is saved in .*stopped.ckpt"):
            fit(tmp_path / "cut", ckpt=path, deadline=time.monotonic())
        path = tmp_path / "cut" / "checkpoints" / "stopped.ckpt"
        assert load_checkpoint(path)["global_step"] == step
    resumed = fit(tmp_path / "cut", ckpt=path, deadline=time.monotonic() + 600)
    assert weights_hash(resumed.state_dict()) == weights_hash(whole.state_dict())


@pytest.mark.fault(97)
def test_a_job_that_slurm_warned_is_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    requeue()
    assert not (tmp_path / "asked").exists(), "no SLURM here"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    requeue()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    requeue()
    assert (tmp_path / "asked").read_text().split() == ["requeue", "7", "requeue", "5_2"]


@pytest.mark.fault(101)
def test_metrics_on_a_full_disk_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = FileLogger(tmp_path)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(UserError, match="metrics.jsonl not written .No space left on device.; make room"):
        logger.log_metrics({"loss": 1.0}, 3)


@pytest.mark.fault(101)
@pytest.mark.parametrize(
    ("environment", "devices", "refused"),
    [
        ({"RANK": "1"}, 1, "RANK=1"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 2, "RANK=1"),
        ({"SLURM_PROCID": "1"}, 1, "SLURM_PROCID=1"),
        ({"RANK": "0", "SLURM_PROCID": "1"}, 1, None),
        ({"RANK": "1", "LOCAL_RANK": "1"}, 2, None),
        ({"LOCAL_RANK": "1"}, 2, None),
        ({}, 1, None),
    ],
)
def test_a_rank_left_in_the_environment_is_refused(
    environment: dict[str, str], devices: int, refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    trainer = {"devices": devices, "num_nodes": 1}
    if refused is None:
        refuse_left_over_rank(trainer)
    else:
        with pytest.raises(UserError, match=refused):
            refuse_left_over_rank(trainer)


@pytest.mark.fault(71, 75)
def test_max_time_is_days_hours_minutes_seconds() -> None:
    assert max_seconds({"max_time": "01:02:03:04"}) == 93784 and max_seconds({"max_time": None}) is None
    for wrong in ("5", "10:00", "a"):
        with pytest.raises(UserError, match=f"trainer.max_time={wrong}: expected days"):
            max_seconds({"max_time": wrong})


@pytest.mark.fault(97, 101)
def test_slurm_brings_no_checkpoints_of_its_own_and_a_wrong_trainer_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    settings = yaml.safe_load((ROOT / "conf" / "trainer" / "cpu.yaml").read_text())
    arguments = make_trainer_kwargs(settings | {"precision": "32-true"}, 3)
    environments = [plugin for plugin in arguments["plugins"] if isinstance(plugin, SLURMEnvironment)]
    assert [environment.auto_requeue for environment in environments] == [False]
    assert make_trainer(arguments | {"logger": False}).max_steps == 3
    with pytest.raises(UserError, match="trainer.strategy, trainer.devices, .*trainer.accelerator: .*nonsense"):
        make_trainer(arguments | {"strategy": "nonsense"})
