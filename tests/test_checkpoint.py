"""A kill cannot damage a checkpoint, damage is noticed, and a checkpoint cannot run code."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from hvlm.errors import UserError
from hvlm.io import checkpoint as ck
from hvlm.io.checkpoint import AtomicCheckpointIO, load_checkpoint, load_into, load_weights, verify, weights_hash
from hvlm.training.resume_callbacks import GracefulStop, RngState
from hvlm.training.run_dir import RunDir, config_id, default_run

IO = AtomicCheckpointIO()


def content(value: float) -> dict[str, Any]:
    return {"state_dict": {"model.w": torch.full((50,), value)}, "global_step": int(value)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(content(1), path)
    return path


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


def save_for_ever(path: Path) -> None:
    step = 0
    while True:
        step += 1
        IO.save_checkpoint({"step": step, "w": torch.full((300_000,), float(step))}, path)


def test_sigkill_while_saving(tmp_path: Path) -> None:
    """A process that does nothing but save is killed at scattered moments; some of them in the middle of a write."""
    path, rng, halves = tmp_path / "last.ckpt", np.random.default_rng(0), 0
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(path,))
        process.start()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(float(rng.uniform(0.01, 0.06)))
        process.kill()
        process.join()
        halves += any(tmp_path.glob("*.part"))
        loaded = load_checkpoint(path)
        assert (loaded["w"] == loaded["step"]).all()
    assert halves > 0, "no kill landed in a write, so nothing was tested"
    ck.clean_parts(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


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


def test_damage_is_noticed(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="last.ckpt: its content differs from its checksum"):
        load_checkpoint(file)


def test_no_code_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Canary:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "canary"),)

    path = tmp_path / "bad.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Canary()}))
    torch.save({"state_dict": Canary()}, tmp_path / "bad2.ckpt")
    for name in ("bad.ckpt", "bad2.ckpt"):
        with pytest.raises(UserError, match="not a readable checkpoint"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "canary").exists()
    with pytest.raises(UserError, match="weights_only"):
        IO.load_checkpoint(path, weights_only=False)
    with pytest.raises(UserError, match="files on this machine"):
        load_checkpoint("https://example.org/x.ckpt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match="unset it"):
        load_checkpoint(path)


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


def test_latest_checkpoint_passes_over_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunDir("a", "sft", tmp_path)
    folder.prepare(CONFIG)
    assert folder.resume_from("auto") is None
    with pytest.raises(UserError, match="resume=must"):
        folder.resume_from("must")
    for step in (1, 2, 3):
        path = folder.checkpoints / f"step-{step}.ckpt"
        IO.save_checkpoint(content(step), path)
        os.utime(path, ns=(step * 10**9, step * 10**9))
    newest = folder.checkpoints / "step-3.ckpt"
    newest.write_bytes(newest.read_bytes()[:100])
    os.utime(newest, ns=(9 * 10**9, 9 * 10**9))
    assert folder.latest_checkpoint() == folder.checkpoints / "step-2.ckpt"
    assert "step-3.ckpt skipped" in caplog.text
    assert folder.resume_from("never") is None


def test_weights_from_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such"):
        load_weights(tmp_path / "a")
    for label, value in (("sft", 2), ("align", 1)):  # not in alphabetical order: the one finished last counts
        folder = RunDir("a", label, tmp_path)
        folder.prepare(CONFIG)
        IO.save_checkpoint(content(value), folder.last)
        with (
            pytest.raises(UserError, match="no stage of this run is finished")
            if label == "sft"
            else contextlib.nullcontext()
        ):
            load_weights(tmp_path / "a")
        assert not folder.is_finished()
        folder.finish("0" * 64, steps=value, took={"seconds": 1.0})
        assert folder.is_finished() and folder.finished()["steps"] == value
    assert load_weights(tmp_path / "a")["w"][0] == 1
    assert load_weights(tmp_path / "a" / "sft")["w"][0] == 2


# ---------------------------------------------------------------------------------------------------- callbacks


class Noisy(L.LightningModule):
    """A model whose weights depend on dropout, and that can be told to receive SIGTERM at a step."""

    def __init__(self, sigterm_at: int | None = None) -> None:
        super().__init__()
        self.model = torch.nn.Linear(4, 4)
        self.sigterm_at = sigterm_at

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if self.sigterm_at is not None and self.global_step == self.sigterm_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.nn.functional.dropout(self.model(batch), 0.5).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(folder: Path, sigterm_at: int | None = None, ckpt: Path | None = None) -> Noisy:
    L.seed_everything(3, verbose=False)
    module = Noisy(sigterm_at)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=12,
        max_epochs=-1,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=[IO],
        callbacks=[RngState(), GracefulStop()],
    )
    data = torch.utils.data.DataLoader(torch.ones(100, 4), batch_size=2)
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    return module


def test_sigterm_saves_exits_143_and_resumes_exactly(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path / "cut", sigterm_at=5)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    path = tmp_path / "cut" / "checkpoints" / "stopped.ckpt"
    assert load_checkpoint(path)["global_step"] == 6  # the step that was under way is finished
    resumed = fit(tmp_path / "cut", ckpt=path)
    assert weights_hash(resumed.state_dict()) == weights_hash(whole.state_dict())
