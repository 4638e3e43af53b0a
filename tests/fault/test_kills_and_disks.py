"""Checkpoints and metrics under real kills and on real full disks, on the tests' own file system and on another."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hvlm.errors import UserError
from hvlm.io.checkpoint import furthest_checkpoint, load_checkpoint, verify
from hvlm.io.files import clean_parts, read_metrics
from hvlm.training.checkpoint_io import AtomicCheckpointIO
from hvlm.training.file_logger import FileLogger
from hvlm.training.run_dir import RunDir

IO = AtomicCheckpointIO()
KILLS = 50


def content(step: int, numbers: int = 300_000) -> dict:
    return {"global_step": step, "w": torch.full((numbers,), float(step))}


def save_for_ever(path: Path) -> None:
    step = 0
    while True:
        step += 1
        IO.save_checkpoint(content(step), path)


def kill_while_saving(folder: Path) -> None:
    """A process that does nothing but save is killed at scattered moments; some of them in the middle of a write."""
    path, rng, halves = folder / "last.ckpt", np.random.default_rng(0), 0
    for _ in range(KILLS):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(path,))
        process.start()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(float(rng.uniform(0.01, 0.04)))
        process.kill()
        process.join()
        halves += any(folder.glob("*.part"))
        loaded = load_checkpoint(path)
        assert (loaded["w"] == loaded["global_step"]).all()
    assert halves > 0, "no kill landed in a write, so nothing was tested"
    clean_parts(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


@pytest.mark.fault(10)
def test_fifty_kills_while_saving_leave_a_checkpoint_that_loads_and_no_orphan(tmp_path: Path) -> None:
    kill_while_saving(tmp_path)


@pytest.mark.fault(11)
def test_fifty_kills_on_another_file_system_leave_a_checkpoint_that_loads_and_no_orphan(
    other_file_system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where a move would come from, and would be a copy
    kill_while_saving(other_file_system)
    assert not list(tmp_path.iterdir()), "nothing is written into $TMPDIR"


@pytest.mark.fault(12)
def test_on_a_full_disk_the_old_checkpoint_stays_and_the_message_names_the_file(
    small_disk: Callable[[int], Path],
) -> None:
    path = small_disk(4) / "last.ckpt"  # two of 1.2 MB fit; one more of 3 MB does not
    IO.save_checkpoint(content(1), path)
    with pytest.raises(UserError, match=r"last.ckpt not written .*; \d+ MB are free there; the previous file is whole"):
        IO.save_checkpoint(content(2, 800_000), path)
    assert load_checkpoint(path)["global_step"] == 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    IO.save_checkpoint(content(3), path)
    assert load_checkpoint(path)["global_step"] == 3


@pytest.mark.fault(13)
def test_a_full_tmpdir_stops_no_save(
    small_disk: Callable[[int], Path],
    fill: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = small_disk(1)
    fill(full)
    with pytest.raises(OSError):
        (full / "probe").write_bytes(bytes(4096))
    monkeypatch.setenv("TMPDIR", str(full))
    monkeypatch.setattr(tempfile, "tempdir", None)
    IO.save_checkpoint(content(1), tmp_path / "last.ckpt")
    assert verify(tmp_path / "last.ckpt") is None


@pytest.mark.fault(49, 101)
def test_a_run_whose_disk_is_full_does_not_seem_to_succeed(
    small_disk: Callable[[int], Path], fill: Callable[[Path], None]
) -> None:
    """Whatever else logs into a stage's folder and keeps quiet: its metrics stand there, too, and stop the run."""
    folder = small_disk(1)
    logger = FileLogger(folder)
    logger.log_metrics({"loss": 1.0}, 1)
    fill(folder)
    with pytest.raises(UserError, match=r"metrics.jsonl not written .No space left on device.; make room there"):
        for step in range(2, 1000):
            logger.log_metrics({"loss": 1.0}, step)
    assert read_metrics(folder)[0] == {"step": 1, "loss": 1.0}


@pytest.mark.fault(14)
@pytest.mark.parametrize("left", [0, 1, 1000])
def test_a_truncated_or_empty_last_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    folder = RunDir("a", "sft", tmp_path)
    folder.checkpoints.mkdir(parents=True)
    for name, step in (("step-4.ckpt", 4), ("last.ckpt", 5)):
        IO.save_checkpoint(content(step, 1000), folder.checkpoints / name)
    os.truncate(folder.last, left)
    assert folder.resume_from("must") == folder.checkpoints / "step-4.ckpt"
    assert "last.ckpt skipped: its content differs from its checksum" in caplog.text


@pytest.mark.fault(15)
def test_no_flipped_bit_of_a_checkpoint_loads(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(content(1, 50), path)
    whole = path.read_bytes()
    for at in np.random.default_rng(0).choice(len(whole), 64, replace=False).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(UserError, match="its content differs from its checksum"):
            load_checkpoint(path)
    assert furthest_checkpoint(tmp_path) is None
