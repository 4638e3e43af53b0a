"""A decoder that hangs, dies or takes too much costs its deadline and its sample, and nothing else."""

from __future__ import annotations

import json
import mmap
import os
import pickle
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Pipe
from pathlib import Path

import _hanging
import numpy as np
import pytest
from _clips import VIDEO, FakeChat, dataset

from hvlm.config.compose import compose
from hvlm.data import decode as decoding
from hvlm.data import decode_process
from hvlm.data.datamodule import DataModule
from hvlm.data.decode import decode, decode_images, frames_of
from hvlm.data.decode_process import DecodeTimeout, result, results
from hvlm.data.video import VideoDecodeError
from hvlm.data.views import Questions
from hvlm.dataset import _needles_make
from hvlm.dataset._haystack import Video as Listed
from hvlm.dataset.shards import Shards
from hvlm.errors import UserError
from hvlm.types import InputSpec

HANGS = {"asleep": _hanging.asleep, "holding the lock": _hanging.stuck}


def module(folder: Path, decode_timeout: float, **changes) -> DataModule:
    inputs = InputSpec(order="question_first", num_frames=8, image_size=64)
    arguments = dict(view=Questions(), rows_per_clip=2, loss="answer", batch_size=4, steps=3, num_workers=0, seed=3)
    source = Shards(str(folder), decode_timeout=decode_timeout)
    return DataModule(source, FakeChat(), inputs, **(arguments | changes))


@pytest.mark.fault(44)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", HANGS)
def test_a_decoder_that_hangs_costs_its_deadline_and_one_sample(kind, workers, tmp_path, monkeypatch):
    dataset(tmp_path, {"train": 12}, bad={"train0003": _hanging.MARK + VIDEO})
    monkeypatch.setattr(decoding, "sampled", HANGS[kind])  # workers inherit it, their processes are told its name
    data = module(tmp_path, 1.0, num_workers=workers, quarantine=tmp_path / "bad.jsonl")
    decode(VIDEO, 1, name="k", timeout=60)  # so that starting a process is not measured
    started = time.monotonic()
    batches = list(data.train_dataloader())
    assert time.monotonic() - started < 1.0 + (3.0 if workers == 0 else 12.0)
    assert len(batches) == 3 and sum(batch.num_clips for batch in batches) == 12
    assert data.quarantine.bad == 1 and data.quarantine.read == 13
    (line,) = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert line["key"] == "train0003" and line["field"] == "video"
    assert "not decoded within 1 s" in line["error"] and "dataset.decode_timeout" in line["error"]


@pytest.mark.fault(44)
def test_a_decoder_that_dies_costs_one_sample(tmp_path, monkeypatch):
    dataset(tmp_path, {"train": 8}, bad={"train0003": _hanging.MARK})
    monkeypatch.setattr(decoding, "sampled", _hanging.dying)
    data = module(tmp_path, 30.0, steps=2, quarantine=tmp_path / "bad.jsonl")
    assert sum(batch.num_clips for batch in data.train_dataloader()) == 8
    assert "killed by signal 6" in (tmp_path / "bad.jsonl").read_text()


@pytest.mark.fault(44)
def test_stills_ask_and_the_haystack_have_a_deadline_too(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    path.write_bytes(_hanging.MARK)
    monkeypatch.setattr(decoding, "shown", _hanging.asleep_at)
    monkeypatch.setattr(decoding, "decoded_stills", _hanging.asleep_at)
    with pytest.raises(DecodeTimeout, match="v.mp4: video: not decoded within 0.5 s"):
        next(frames_of(path, 1.0, (8, 8), 0.5))
    with pytest.raises(DecodeTimeout, match="k: image: not decoded within 0.5 s"):
        decode_images([b""], 1, name="k", fps=1.0, timeout=0.5)
    monkeypatch.setattr(_needles_make, "decode_source", _hanging.asleep_at)
    assert "not decoded within 0.5 s" in _needles_make.decode(Listed(path, "v", "v", 0), tmp_path / "o", 64, 0.5)


def test_the_deadline_is_of_the_clip_or_of_every_frame(monkeypatch):
    with pytest.raises(DecodeTimeout):
        list(results(_hanging.slow, b"", timeout=0.8))
    assert len(list(results(_hanging.slow, b"", timeout=0.8, each=True))) == 4
    began = time.monotonic()
    taken = results(_hanging.slow, b"", timeout=5.0)
    next(taken)
    time.sleep(1.0)  # what is done with a frame here does not count
    assert len(list(taken)) == 3 and time.monotonic() - began < 5.0


def test_what_comes_back_is_what_decoding_here_gives():
    for size in (None, (32, 48)):
        here, at = decode(VIDEO, 8, name="k", size=size)
        there, when = decode(VIDEO, 8, name="k", size=size, timeout=60.0)
        assert np.array_equal(here, there) and np.array_equal(at, when)
    for i, array in enumerate(results(_hanging.numbers, 4, 100_000, timeout=60.0)):
        assert array.shape == (100_000 * (i + 1),) and np.all(array == i)
    with pytest.raises(VideoDecodeError, match="^clip7: video: .*Invalid data"):
        decode(b"<html>", 8, name="clip7", timeout=60.0)


def test_the_process_stays_until_it_is_killed_and_is_one_of_its_owner():
    first = result(_hanging.identity, timeout=60.0)
    assert first != os.getpid() and result(_hanging.identity, timeout=60.0) == first
    taken = results(_hanging.numbers, 4, 10, timeout=60.0)
    next(taken)
    taken.close()  # half read: the process is told, and goes on
    assert result(_hanging.identity, timeout=60.0) == first
    for asked in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # a run is asked to stop, in all its processes
        os.kill(first, asked)
    assert os.getpgid(first) == first and result(_hanging.identity, timeout=60.0) == first
    os.kill(first, signal.SIGKILL)  # by somebody else, between two clips
    time.sleep(0.3)
    assert result(_hanging.identity, timeout=60.0) not in (first, os.getpid())
    if (pid := os.fork()) == 0:
        os._exit(0 if result(_hanging.identity, timeout=60.0) != first else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert result(_hanging.identity, timeout=60.0) != first


def test_too_little_memory_is_a_bad_sample_and_a_mistake_is_not():
    with pytest.raises(VideoDecodeError, match="not enough memory"):
        result(_hanging.greedy, timeout=60.0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a mistake of ours"):
        result(_hanging.wrong, timeout=60.0)


@pytest.mark.slow
def test_the_process_does_not_outlive_its_owner(monkeypatch):
    """Neither an idle one nor one that hangs, which the kernel's alarm clock ends."""
    code = (
        "import sys, os, _hanging; from hvlm.data import decode_process as p; p.GRACE_S = 0.1\n"
        "print(p.result(_hanging.identity, timeout=60.0), flush=True)\n"
        "request = __import__('pickle').dumps((_hanging.asleep, (b'hang',), 0.5, False))\n"
        "p._own()._ask(request) if sys.argv[1] else None\n"
        "os.kill(os.getpid(), 9)"
    )
    monkeypatch.setattr(decode_process, "GRACE_S", 0.1)
    for hangs in ("", "x"):
        places = os.pathsep.join(path or os.getcwd() for path in sys.path)
        done = subprocess.run(
            [sys.executable, "-c", code, hangs], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": places}
        )
        process, waited = int(done.stdout), time.monotonic()
        while Path(f"/proc/{process}").exists() and "Z" not in Path(f"/proc/{process}/stat").read_text().split()[2]:
            assert time.monotonic() - waited < 0.5 + decode_process.GRACE_S + 8.0
            time.sleep(0.05)


@pytest.mark.parametrize("unread", ["ready", "end"])
def test_the_process_ends_without_a_word_when_its_owner_is_killed_before_it_read_the_last_answer(unread: str) -> None:
    mine, theirs = Pipe()
    memory = decode_process._shared_file()
    os.ftruncate(memory, mmap.PAGESIZE)
    code = f"import hvlm.data.decode as d; d.decode_process.serve({theirs.fileno()}, {memory})"
    places = os.pathsep.join(path or os.getcwd() for path in sys.path)
    with theirs:
        child = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=(theirs.fileno(), memory), stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": places},
        )  # fmt: skip
    os.close(memory)
    with mine:
        assert mine.poll(60)
        if unread == "end":
            mine.recv_bytes()
            mine.send_bytes(pickle.dumps((_hanging.identity, (), 10.0, False)))
            mine.recv_bytes()
            mine.send_bytes(b"next")
            assert mine.poll(60)
    assert (child.communicate(timeout=60)[1], child.returncode) == (b"", 0)


def test_the_deadline_is_a_setting_of_both_datasets():
    for name, more in (("needles", []), ("shards", ["dataset.path=."])):
        cfg = compose([f"dataset={name}", *more, "dataset.decode_timeout=2.5", "dataset.decoder=decord"])
        assert cfg["dataset"]["decode_timeout"] == 2.5 and cfg["dataset"]["decoder"] == "decord"
        for bad in ("decode_timeout=0", "decoder=opencv"):
            with pytest.raises(UserError, match=f"dataset.{bad.split('=')[0]}"):
                compose([f"dataset={name}", *more, f"dataset.{bad}"])
