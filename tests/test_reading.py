"""Sampling, decoding, batches, their order, streams, and what happens to bad input."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from _clips import VIDEO, FakeChat, dataset, encode, pictures, rotate_flag

from hvlm.data import decord_reader, samples
from hvlm.data.datamodule import DataModule
from hvlm.data.decode import decode
from hvlm.data.order import Order, takes_all_alike
from hvlm.data.quarantine import SampleError
from hvlm.data.sampling import is_shown, nearest_frames, uniform_times
from hvlm.data.video import VideoDecodeError
from hvlm.data.views import Captions, Pairs, PatchLabels, Questions
from hvlm.dataset.shards import Shards
from hvlm.errors import UserError
from hvlm.types import InputSpec


def module(folder: Path, **changes) -> DataModule:
    arguments = dict(
        view=Questions(), rows_per_clip=2, loss="answer", batch_size=4, steps=6, num_workers=0, seed=3
    )  # fmt: skip
    inputs = InputSpec("question_first", 8, 64)
    return DataModule(Shards(str(folder)), FakeChat(), **({"inputs": inputs} | arguments | changes))


def keys(batch) -> list[str]:
    return list(dict.fromkeys(row["key"] for row in batch.rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"), {"train": 20, "val": 6}, texts=5)


# ------------------------------------------------------------------------------------------------ sampling and decoding


def test_uniform_times_are_bin_midpoints_and_evidence_is_half_open():
    assert uniform_times(2.0, 4).tolist() == [0.25, 0.75, 1.25, 1.75]
    pts = np.arange(16) / 8
    assert nearest_frames(pts, uniform_times(2.0, 8)).tolist() == list(range(1, 16, 2))
    assert nearest_frames(pts, uniform_times(2.0, 99)).tolist() == list(range(16))
    times = np.array([0.125, 0.375], np.float32)
    assert is_shown([[0.125, 0.25]], times) and not is_shown([[0.0, 0.125]], times)
    assert not is_shown([[0.1, 0.2], [0.5, 0.6]], times) and is_shown([], times)


def brightness(frames: np.ndarray) -> np.ndarray:
    return frames[:, :, -1, -1].mean(1)


def test_both_decoders_return_the_same_frames_at_the_same_times():
    for count in (1, 5, 8, 16, 40):
        frames, times = decode(VIDEO, count, name="k")
        assert frames.shape == (min(count, 16), 3, 64, 64) and frames.dtype == np.uint8 and times.dtype == np.float32
        assert np.allclose(brightness(frames), 10 + np.rint(times * 8) * 15, atol=4)
        same, same_times = decode(VIDEO, count, name="k", decoder="decord")
        assert np.array_equal(same, frames) and np.allclose(same_times, times, atol=1e-3)


@pytest.mark.fault(41)
def test_variable_frame_rate_is_sampled_by_time():
    pts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 40, 48, 56, 64]  # eight frames a second, then one
    video = encode(pictures(16), pts)
    frames, times = decode(video, 6, name="k")
    assert np.all(np.abs(times - uniform_times(times[-1] + (times[-1] - times[-2]) / 2, 6)) < 1.0)
    shown = np.rint((brightness(frames) - 10) / 15).astype(int)
    assert [pts[i] / 8 for i in shown] == pytest.approx(times.tolist(), abs=1e-3)
    assert np.sum(shown > 8) >= 4  # by frame number it would be half of them


@pytest.mark.fault(39)
def test_a_turned_video_is_read_upright_by_pyav_whatever_was_asked_for(caplog):
    decord_reader._logged.clear()
    video = rotate_flag(encode(pictures(16, 48, 64, (255, 0, 0))))
    for _ in range(2):
        frames, _ = decode(video, 4, name="turned", decoder="decord")
    assert frames.shape == (4, 3, 64, 48)
    assert frames[0, 0, 5, -5] > 200 and frames[0, 0, 5, 5] < 100  # top left has gone to the top right
    assert len([r for r in caplog.records if "turned" in r.message]) == 1


def test_another_size_is_scaled_and_cropped_around_the_centre():
    wide = pictures(16, 48, 96)
    frames, _ = decode(encode(wide), 2, name="k", size=(32, 32))
    assert frames.shape == (2, 3, 32, 32)
    red = frames[0, 0] > 128
    assert 14 <= red[5].sum() <= 18 and 14 <= red[:, 5].sum() <= 18  # the quarter's corner stays in the middle


def test_without_decord_pyav_reads_everything_and_asking_for_it_is_an_error(monkeypatch):
    monkeypatch.setattr(decord_reader, "decord", None)
    assert len(decode(VIDEO, 8, name="k")[0]) == 8
    with pytest.raises(VideoDecodeError, match="decord is not installed"):
        decode(VIDEO, 8, name="k", decoder="decord")


def test_stills_and_foreign_json():
    def still(picture):
        codec = av.CodecContext.create("mjpeg", "w")
        codec.height, codec.width = picture.shape[:2]
        codec.pix_fmt, codec.time_base = "yuvj420p", Fraction(1)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
        return b"".join(bytes(p) for p in codec.encode(frame) + codec.encode(None))

    members = {f"{i:03d}.jpg": still(p) for i, p in enumerate(pictures(6))}
    members["json"] = json.dumps({"user": "what ?", "chosen_assistant": "a", "rejected_assistant": "b"}).encode()
    parsed = samples.parse(members, "k", "general")
    frames, times = samples.frames(members, parsed, 3, (64, 64))
    assert times.tolist() == [1.0, 3.0, 5.0] and np.all(np.diff(brightness(frames)) > 20)
    rows = Pairs().rows(parsed, times, np.random.default_rng(0), 1)
    assert [(r.answer, r.meta["role"], r.meta["pair"]) for r in rows] == [
        ("a", "chosen", "k/q0"),
        ("b", "rejected", "k/q0"),
    ]
    alone = {"jpg": members["000.jpg"], "json": members["json"]}  # a single picture is shown eight times
    for wanted, shown in ((64, 8), (3, 3)):
        one, at = samples.frames(alone, parsed, wanted, (64, 64))
        assert len(one) == len(at) == shown and np.all(one == one[0]) and np.all(np.diff(at) > 0)
    caption = samples.parse({"json": b'{"caption": "a dog"}', "jpg": b""}, "k", "general")
    assert Captions().rows(caption, times, np.random.default_rng(0), None)[0][:2] == ("Describe this.", "a dog")
    for members in ({"json": b"{"}, {"json": b"[]"}, {"json": b"{}"}, {"mp4": b""}, {"json": b"\xff"}):
        with pytest.raises(SampleError, match="^k: json: "):
            samples.parse(members, "k", "general")


# ---------------------------------------------------------------------------------------------------- views and batches


def test_a_batch_has_the_shapes_and_masks_of_its_contract(folder):
    batch = next(iter(module(folder).loader("train", Questions(), None, 3)))
    assert batch.frames_BTCHW.shape == (3, 8, 3, 64, 64) and batch.frames_BTCHW.dtype == torch.uint8
    assert batch.frame_mask_BT.all() and batch.frame_time_BT[0, 0] == 0.125
    assert (
        batch.clip_K.tolist() == [0, 0, 1, 1, 2, 2] and len(batch.rows) == 6
    )  # frame 4 is not sampled: q2 is not asked
    text = bytes(batch.input_ids_KS[1][batch.attention_mask_KS[1]].tolist()).decode()
    assert text == "what color ?red" and batch.visual_at_K[1] == len("what color ?")
    assert batch.loss_mask_KS[1].sum() == 3 and not batch.loss_mask_KS[~batch.attention_mask_KS].any()
    assert batch.attention_mask_KS.dtype == torch.bool and batch.input_ids_KS.dtype == torch.int64


def test_text_only_batches_and_patches(folder):
    batches = list(module(folder, interleave=0.5, steps=12).train_dataloader())
    text = [b for b in batches if b.rows[0]["task"] == "chat"]
    assert 0 < len(text) < 12
    assert text[0].frames_BTCHW.shape == (4, 1, 3, 64, 64) and not text[0].frame_mask_BT.any()
    assert text[0].clip_K.tolist() == [0, 1, 2, 3]
    batch = next(iter(module(folder, view=PatchLabels(), grid=(8, 8)).train_dataloader()))
    # rows_per_clip neighbouring frames of each clip (here 2), labelled cell by cell
    assert batch.labels["shape"].shape == (4, batch.frames_BTCHW.shape[1], 8, 8) and not batch.attention_mask_KS.any()
    assert batch.frames_BTCHW.shape[1] == 2 and (batch.frame_time_BT[:, 1] > batch.frame_time_BT[:, 0]).all()
    with pytest.raises(UserError, match="no text split"):
        Order(["general"], batch_size=1, steps=1, seed=0, interleave=0.1)


def test_a_clip_of_whose_patches_nothing_is_known_is_replaced(folder, monkeypatch):
    known: set[str] = set()
    unknown = set(Shards(str(folder)).manifest().split("train").keys[::3])

    def labels(sample, times, grid):
        if sample["key"] in unknown:
            return None
        known.add(sample["key"])
        return {"shape": np.zeros((len(times), *grid), np.int64)}

    monkeypatch.setattr(Shards, "patch_labels", staticmethod(labels))
    data = module(folder, view=PatchLabels(), grid=(2, 2), steps=10)
    batches = list(data.train_dataloader())
    assert [len(batch.labels["shape"]) for batch in batches] == [4] * 10 and len(known) == 20 - len(unknown)
    monkeypatch.setattr(Shards, "patch_labels", staticmethod(lambda *given: None))
    with pytest.raises(UserError, match="no sample of domain .* has patches to show"):
        next(iter(module(folder, view=PatchLabels(), grid=(2, 2)).train_dataloader()))


def test_texts_are_mixed_in_by_themselves_where_the_data_have_some(tmp_path):
    """The usual setting fits data without text-only chats, and a share that is asked for is not dropped."""
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    dataset(tmp_path / "with", {"train": 4}, texts=3)
    dataset(tmp_path / "without", {"train": 4})
    mixed, plain = (module(tmp_path / name, interleave=None, steps=40) for name in ("with", "without"))
    texts = [any(ref.text for ref in batch) for batch in mixed.train_dataloader().order]
    assert mixed.interleave == 0.14 and 1 <= sum(texts) < 20
    assert texts == [any(r.text for r in b) for b in module(tmp_path / "with", interleave=0.14, steps=40)
                     .train_dataloader().order], "as the number says"  # fmt: skip
    assert plain.interleave == 0 and not any(ref.text for batch in plain.train_dataloader().order for ref in batch)
    with pytest.raises(UserError, match="no text split"):
        module(tmp_path / "without", interleave=0.14).train_dataloader()


def test_all_domains_are_the_data_s_own(caplog):
    """``domain=all``: whatever they are called; of the four usual ones the same clips in the same order as before."""
    usual = ["general", "sports", "tutorials", "news"]
    four = dict.fromkeys(usual, 1.0)
    own = Order(["cooking", "general"] * 4, batch_size=8, steps=1, seed=1, mixture=None)
    assert sorted(ref.index for ref in own.at(0)) == list(range(8)) and not caplog.text
    before, now = (Order(usual * 5, batch_size=4, steps=9, seed=3, mixture=mixture) for mixture in (four, None))
    assert list(before) == list(now)
    assert (
        takes_all_alike(usual, four) and takes_all_alike(["cooking"], None) and not takes_all_alike(["cooking"], four)
    )
    assert not takes_all_alike(usual, four | {"news": 0.5}) and not takes_all_alike(usual, {"news": 1.0})


def test_short_clips_are_masked_not_repeated(tmp_path):
    short = encode(pictures(3))
    dataset(tmp_path, {"train": 4}, bad={"train0001": short})
    batch = next(iter(module(tmp_path).loader("train", Captions(), 1, 4)))
    assert batch.frame_mask_BT.sum(1).tolist() == [8, 3, 8, 8] and not batch.frames_BTCHW[1, 3:].any()


# --------------------------------------------------------------------------------------------------------------- order


def test_the_order_is_a_pure_function_that_ranks_share():
    domains = ["general", "sports"] * 10
    make = lambda **more: Order(domains, batch_size=4, steps=11, seed=1, texts=3, interleave=0.3, **more)  # noqa: E731
    whole = list(make())
    assert [p for p in whole] == list(make()) and len(make(start=7)) == 11 and list(make(start=7)) == whole[7:]
    halves = [list(make(rank=r, world=2)) for r in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    clips = [p for batch in whole for p in batch if not p.text]
    epochs = [[p.index for p in clips if p.epoch == e] for e in (0, 1)]
    assert sorted(epochs[0]) == list(range(20)) and epochs[0] != epochs[1][: len(epochs[0])]
    assert all(len({p.text for p in batch}) == 1 for batch in whole)
    with pytest.raises(UserError, match="batch_size=4 cannot be shared by 3"):
        make(world=3)


def test_mixture_weights_decide_how_much_of_a_domain_an_epoch_shows():
    domains = ["general"] * 12 + ["sports"] * 8 + ["news"] * 4
    order = Order(domains, batch_size=1, steps=32, seed=1, mixture={"general": 1.0, "sports": 0.5, "tutorials": 1.0})
    picks = [batch[0] for batch in order]
    for epoch in (0, 1):
        indices = [p.index for p in picks if p.epoch == epoch]
        assert Counter(domains[i] for i in indices) == {"general": 12, "sports": 4} and len(set(indices)) == 16
    with pytest.raises(UserError, match="selects nothing; the data has the domains general, news, sports"):
        Order(domains, batch_size=1, steps=1, seed=1, mixture={"tutorials": 1.0})


def test_a_mixture_that_takes_all_the_data_alike_needs_no_warning(caplog):
    """Own data have one domain, and the usual mixture names three more."""
    alike = {"general": 1.0, "sports": 1.0, "news": 1.0}
    Order(["general"] * 4, batch_size=1, steps=1, seed=1, mixture=alike)
    assert not caplog.records
    Order(["general"] * 4, batch_size=1, steps=1, seed=1, mixture=alike | {"news": 0.5})
    assert "domain.mixture names news, sports, which the data does not have" in caplog.text
    caplog.clear()
    Order(["general", "cooking"], batch_size=1, steps=1, seed=1, mixture=alike)
    assert "domain.mixture names news, sports" in caplog.text


@pytest.mark.fault(6)
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_a_batch(folder, workers):
    one, other = (list(module(folder, num_workers=n, steps=4).train_dataloader()) for n in (0, workers))
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:8], b[:8], strict=True)) and a.rows == b.rows


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.fault(27, 28)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_replaced_by_the_next_of_its_domain_and_written_down(tmp_path, workers):
    dataset(tmp_path, {"train": 12}, bad={"train0003": b"no video"})
    log = tmp_path / "quarantine.jsonl"
    data = module(tmp_path, num_workers=workers, steps=3, quarantine=log)
    seen = Counter(key for batch in data.train_dataloader() for key in keys(batch))
    assert "train0003" not in seen and data.quarantine.bad == 1 and data.quarantine.read == 13
    batches = sum(len(set(b.clip_K.tolist())) for b in data.train_dataloader())
    assert batches == 12  # the next of the domain (0005) stands in
    row = json.loads(log.read_text().splitlines()[0])
    assert row["key"] == "train0003" and row["field"] == "video" and row["rank"] == 0 and "Invalid data" in row["error"]
    assert row["shard"].endswith("train-000000.tar")
    evaluated = [key for b in data.loader("train", Questions(), None, 5) for key in keys(b)]
    assert len(evaluated) == 11 and evaluated == sorted(evaluated)  # in evaluation it is left out


@pytest.mark.fault(28)
@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run_with_one_line(tmp_path, workers):
    bad = {f"train{i:04d}": b"no video" for i in range(30)}
    dataset(tmp_path, {"train": 40}, bad=bad)
    with pytest.raises(UserError, match="21 of .* more than the 0.01 that may be") as caught:
        list(module(tmp_path, num_workers=workers, steps=20).train_dataloader())
    assert "\n" not in str(caught.value) and "train-00" in str(caught.value)
    dataset(tmp_path, {"train": 4}, bad={f"train{i:04d}": b"" for i in range(4)})
    with pytest.raises(UserError, match="no sample of domain"):
        list(module(tmp_path).train_dataloader())


@pytest.mark.fault(20)
def test_a_cut_shard_stops_the_run(tmp_path):
    dataset(tmp_path, {"train": 8})
    data = module(tmp_path, num_workers=1)
    os.truncate(tmp_path / "train-000000.tar", 20_000)
    with pytest.raises(UserError, match="train-000000.tar: train.*the shard was cut"):
        list(data.train_dataloader())


@pytest.mark.fault(46, 47)
def test_a_hanging_or_killed_worker_is_an_error_that_names_the_clip(folder, monkeypatch):
    monkeypatch.setattr(samples, "frames", lambda *_: time.sleep(60))  # before the fork, so the workers inherit it
    data = module(folder, num_workers=1, timeout=1)
    data.dataset.decode_timeout = 0.1  # four clips of a batch may take so long each
    with pytest.raises(UserError, match=r"timed out.*train-00000\d.tar:train"):
        list(data.train_dataloader())
    started = time.monotonic()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as a finished Trainer leaves it
    monkeypatch.setattr(samples, "frames", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"exited unexpectedly.*train-00000\d.tar:train"):
        list(module(folder, num_workers=1).train_dataloader())
    assert time.monotonic() - started < 60  # noticed at once, not when the loader's timeout is over


# ------------------------------------------------------------------------------------------------------------- streams


@pytest.mark.fault(3, 26)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_has_a_length_and_stops_at_a_bad_shard(tmp_path, workers, caplog):
    dataset(tmp_path, {"train": 16})
    source = Shards(str(tmp_path / "train-{000000..000001}.tar"), access="stream")
    make = lambda: DataModule(  # noqa: E731
        source, FakeChat(), InputSpec("video_first", 4, 64), view=Questions(), rows_per_clip=1, loss="answer",
        batch_size=4, steps=5, num_workers=workers, seed=1,
    )  # fmt: skip
    loader = make().train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches) == 5 and all(b.num_clips == 4 for b in batches)
    assert "other samples than an uninterrupted one" in caplog.text
    assert [keys(b) for b in make().train_dataloader()] == [keys(b) for b in batches]
    os.truncate(tmp_path / "train-000001.tar", 5000)
    with pytest.raises(UserError, match="train-000001.tar: the shard cannot be read"):
        list(make().train_dataloader())
