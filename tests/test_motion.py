"""Motion per patch: what counts as moving, what does not, and its way from the worker into the batch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import _tiny
import cv2
import numpy as np
import pytest
import torch
from _clips import FakeChat, dataset, encode

from hvlm import assembly
from hvlm.data import cache as clip_cache
from hvlm.data import reader
from hvlm.data.batches import one_row
from hvlm.data.cache import ClipCache
from hvlm.data.collate import Item, collate
from hvlm.data.datamodule import DataModule
from hvlm.data.optical_flow import GONE, LIMIT, motion_energy
from hvlm.data.views import PatchLabels, Questions
from hvlm.dataset.shards import Shards
from hvlm.errors import UserError
from hvlm.evaluation.asking import Query
from hvlm.evaluation.likelihood import _batch
from hvlm.types import Batch, InputSpec

GRID = (8, 8)
SIDES = [32, 64, 224]
FRAMES = 5
SLOW = GONE / 20  # what counts as still


def texture(height: int, width: int, seed: int, grain: float) -> np.ndarray:
    """A smooth random picture [height, width, 3] uint8 of about the contrast of a photograph."""
    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), grain)
    noise = (noise - noise.min()) / np.ptp(noise)
    return (40 + 170 * noise).astype(np.uint8)


def scene(
    side: int,
    camera: Callable[[int], np.ndarray] | None = None,
    square: bool = True,
    frames: int = FRAMES,
    step: float = 1 / 16,
) -> tuple[np.ndarray, np.ndarray]:
    """(frames [T, 3, side, side], share of each patch that the square covers [T, 8, 8]).

    A textured square of a quarter of the frame moves right by ``step`` of it per frame over a textured background, on
    which ``camera(t)``, a 2 x 3 matrix from a background three times as large, is pointed.
    """
    wide, patch = texture(3 * side, 3 * side, 0, side / 32), texture(side, side, 5, side / 32)
    shown, covered = [], []
    for t in range(frames):
        matrix = np.eye(2, 3) if camera is None else camera(t)
        matrix[:, 2] -= matrix[:, :2] @ (side, side)  # its middle third is what an unmoved camera sees
        frame = cv2.warpAffine(wide, matrix, (side, side))
        cover = np.zeros((side, side), np.float32)
        if square:
            n, y, x = side // 4, round(0.4 * side), round((0.2 + t * step) * side)
            frame[y : y + n, x : x + n] = patch[:n, :n]
            cover[y : y + n, x : x + n] = 1
        shown.append(frame.transpose(2, 0, 1))
        covered.append(cv2.resize(cover, GRID[::-1], interpolation=cv2.INTER_AREA))
    return np.stack(shown), np.stack(covered)


def pan(side: int) -> Callable[[int], np.ndarray]:
    """Against the square and downwards, by broken numbers of pixels."""
    return lambda t: np.array([[1, 0, -t * side * 0.051], [0, 1, t * side * 0.033]])


def zoom(side: int) -> Callable[[int], np.ndarray]:
    """4 % per frame around the centre."""
    return lambda t: np.array([[1.04**t, 0, (1 - 1.04**t) * side / 2], [0, 1.04**t, (1 - 1.04**t) * side / 2]])


CAMERAS = {"still": lambda side: None, "pan": pan, "zoom": zoom}


# ------------------------------------------------------------------------------------------------- what moves, what not


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("camera", CAMERAS)
def test_a_moving_square_stands_out_whatever_the_camera_does(camera, side):
    frames, covered = scene(side, CAMERAS[camera](side))
    energy = motion_energy(frames, GRID)
    assert energy.shape == (FRAMES, *GRID) and energy.dtype == np.float32
    beside = np.stack([cv2.dilate(c, np.ones((3, 3), np.uint8)) for c in covered]) > 0
    for t in range(FRAMES):
        on, off = energy[t][covered[t] > 0.99], energy[t][~beside[t]]
        assert on.mean() > GONE / 4 and off.max() < on.min(), (t, on, off.max())
        assert off.mean() < SLOW


@pytest.mark.parametrize("side", SIDES)
def test_what_the_camera_follows_moves_as_fast_as_the_camera(side):
    frames, covered = scene(side, pan(side), step=0)
    inside = motion_energy(frames, GRID)[covered > 0.99]
    true = np.hypot(0.051, 0.033) / np.sqrt(2)
    assert 0.5 * true < np.median(inside) < 1.5 * true, np.median(inside) / true


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("camera", CAMERAS)
def test_a_camera_alone_is_not_motion(camera, side):
    frames, _ = scene(side, CAMERAS[camera](side), square=False)
    assert camera == "still" or np.abs(np.diff(frames.astype(int), axis=0)).mean() > 3, "the camera does move"
    assert motion_energy(frames, GRID).max() < SLOW


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("fraction", [0.12, 0.18])
def test_a_pan_further_than_flow_can_follow_is_not_motion(side, fraction):
    sweep = lambda t: np.array([[1, 0, (1.5 - t) * fraction * side], [0, 1, 0.02 * t * side]])  # noqa: E731
    frames, _ = scene(side, sweep, square=False, frames=4)
    assert motion_energy(frames, GRID).max() < SLOW


def test_the_unit_is_the_diagonal_per_frame():
    true = 1 / 16 / np.sqrt(2)
    for side in SIDES:
        frames, covered = scene(side)
        inside = motion_energy(frames, GRID)[covered > 0.99]
        assert 0.5 * true < np.median(inside) < 1.5 * true, (side, np.median(inside) / true)


def test_a_static_clip_has_none_and_a_single_frame_neither():
    frames, _ = scene(64)
    assert not motion_energy(np.repeat(frames[:1], 4, 0), GRID).any()
    assert motion_energy(frames[:1], GRID).shape == (1, *GRID) and not motion_energy(frames[:1], GRID).any()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("at", range(FRAMES))
@pytest.mark.parametrize("camera", ["still", "pan"])
def test_what_is_there_for_one_frame_stands_out_in_it_and_not_beside_it(side, at, camera):
    frames, _ = scene(side, CAMERAS[camera](side), square=False)
    centre, radius = (round(0.55 * side), round(0.3 * side)), max(3, side // 10)
    disc = cv2.circle(np.zeros((side, side), np.uint8), centre, radius, 1, -1)
    frames[at][:, disc > 0] = np.array([[255], [30], [30]])
    share = cv2.resize(disc.astype(np.float32), GRID[::-1], interpolation=cv2.INTER_AREA)
    energy = motion_energy(frames, GRID)
    assert energy[at][share > 0.7].min() > GONE / 2
    assert np.delete(energy, at, 0).max() < energy[at].max() / 3
    assert energy[at][cv2.dilate(share, np.ones((3, 3), np.uint8)) == 0].max() < SLOW


@pytest.mark.parametrize("side", SIDES)
def test_a_cut_is_no_motion_but_a_shot_of_one_frame_is_remarkable(side):
    one, other = (texture(side, side, seed, side / 32).transpose(2, 0, 1) for seed in (1, 2))
    assert motion_energy(np.stack([one, one, one, other, other, other]), GRID).max() < SLOW
    energy = motion_energy(np.stack([one, one, one, other, one, one]), GRID)
    assert np.allclose(energy[3], GONE) and np.delete(energy, 3, 0).max() < SLOW


@pytest.mark.parametrize(("height", "width", "grid"), [(37, 51, (5, 7)), (63, 33, (8, 8)), (225, 127, (16, 9))])
def test_odd_sizes_and_grids_that_do_not_divide_them(height, width, grid):
    wide = texture(2 * height, 2 * width, 3, 2)
    frames = np.stack([wide[10 : 10 + height, 3 + t : 3 + t + width].transpose(2, 0, 1) for t in range(4)])
    n = min(height, width) // 3
    for t in range(4):
        frames[t, :, 4 : 4 + n, 3 + 2 * t : 3 + 2 * t + n] = texture(n, n, 4, 2).transpose(2, 0, 1)
    energy = motion_energy(frames, grid)
    assert energy.shape == (4, *grid) and np.isfinite(energy).all() and 0 < energy.max() <= LIMIT
    on = energy[:, : round(n / height * grid[0]), : round(n / width * grid[1])].mean()
    assert on > 20 * energy[:, -2:, -2:].mean()


@pytest.mark.parametrize("side", [4, 8, 32, 64])
def test_constant_frames_and_noise_are_finite(side):
    plain = np.stack([np.full((3, side, side), level, np.uint8) for level in (0, 255, 0, 0, 7)])
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, side, side), dtype=np.uint8)
    for frames in (plain, plain[2:4], noise):
        energy = motion_energy(frames, (4, 4))
        assert np.isfinite(energy).all() and 0 <= energy.min() and energy.max() <= LIMIT + 1e-6
    assert np.allclose(motion_energy(plain, (2, 2))[1], GONE), "one white frame among black ones"
    assert not motion_energy(plain, (2, 2))[2:].any(), "what coding may do is no motion"


def test_the_same_input_gives_the_same_bits():
    frames, _ = scene(64, pan(64))
    first = motion_energy(frames, GRID)
    motion_energy(scene(224, zoom(224), frames=2)[0], GRID)  # another size in between leaves no trace
    cv2.setNumThreads(4)
    assert np.array_equal(motion_energy(frames, GRID), first) and cv2.getNumThreads() == 1
    assert np.array_equal(motion_energy(np.asfortranarray(frames), GRID), first)


# ------------------------------------------------------------------------------------------------------- into the batch


def module(folder: Path | str, motion: tuple[int, int] | None = GRID, **changes) -> DataModule:
    arguments = dict(
        view=Questions(), rows_per_clip=2, loss="answer", batch_size=4, steps=4, num_workers=0, seed=3,
    )  # fmt: skip
    source = folder if isinstance(folder, Shards) else Shards(str(folder))
    return DataModule(source, FakeChat(), InputSpec("question_first", 8, 64, motion), **(arguments | changes))


def moving(frames: int) -> bytes:
    return encode([np.ascontiguousarray(f.transpose(1, 2, 0)) for f in scene(64, frames=frames, step=1 / 32)[0]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """16 + 4 clips of the moving square, one of them of three frames, and texts."""
    videos = {f"{split}{i:04d}": moving(16) for split, n in (("train", 16), ("val", 4)) for i in range(n)}
    made = tmp_path_factory.mktemp("moving")
    return dataset(made, {"train": 16, "val": 4}, bad=videos | {"train0001": moving(3)}, texts=5)


def motion_is_that_of_the_frames(batch: Batch) -> None:
    for i, mask in enumerate(batch.frame_mask_BT.numpy()):
        expected = motion_energy(batch.frames_BTCHW[i].numpy()[mask], GRID)
        assert np.array_equal(batch.motion_BTYX[i].numpy()[mask], expected) and expected.max() > GONE / 4
        assert not batch.motion_BTYX[i].numpy()[~mask].any()


def test_training_validation_and_evaluation_batches_carry_it_and_padding_is_zero(folder):
    data = module(folder)
    evaluated = next(iter(data.loader("train", Questions(), None, 3)))
    assert evaluated.frame_mask_BT.sum(1).tolist() == [8, 3, 8]
    for batch in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader())), evaluated):
        assert batch.motion_BTYX.shape == (*batch.frame_mask_BT.shape, *GRID)
        assert batch.motion_BTYX.dtype == torch.float32
        motion_is_that_of_the_frames(batch)
    moved = evaluated.to(torch.device("meta"))
    assert moved.motion_BTYX.is_meta and moved.frames_BTCHW.is_meta
    assert next(iter(module(folder, motion=None).train_dataloader())).motion_BTYX is None
    row = int((evaluated.clip_K == 1).nonzero()[0])
    assert torch.equal(one_row(evaluated, row).motion_BTYX[0], evaluated.motion_BTYX[1])


@pytest.mark.parametrize("motion", [GRID, None])
def test_text_only_batches_carry_zeros_where_motion_is_asked_for(folder, motion):
    batches = list(module(folder, motion=motion, interleave=0.5, steps=8).train_dataloader())
    texts = [batch for batch in batches if not batch.frame_mask_BT.any()]
    assert texts and len(texts) < 8
    for batch in texts:
        if motion is None:
            assert batch.motion_BTYX is None
        else:
            assert batch.motion_BTYX.shape == (4, 1, *GRID) and not batch.motion_BTYX.any()


def test_workers_do_not_change_it(folder):
    one, two = (list(module(folder, num_workers=n).train_dataloader()) for n in (0, 2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.motion_BTYX, b.motion_BTYX) and a.motion_BTYX.any()


def test_a_stream_carries_it(folder):
    source = Shards(str(folder / "train-{000000..000001}.tar"), access="stream")
    (batch,) = module(source, steps=1).train_dataloader()
    motion_is_that_of_the_frames(batch)


def test_the_patches_view_cuts_it_like_the_frames(folder):
    data = module(folder, view=PatchLabels(), grid=(8, 8), rows_per_clip=2)
    seen = {key: (frames, motion) for frames, motion, key in whole(folder)}
    batch = next(iter(data.train_dataloader()))
    assert batch.motion_BTYX.shape == (4, 2, *GRID)
    for i, key in enumerate(batch.uids):
        frames, motion = seen[key]
        (at,) = [t for t in range(len(frames) - 1) if torch.equal(frames[t : t + 2], batch.frames_BTCHW[i])]
        assert torch.equal(motion[at : at + 2], batch.motion_BTYX[i]), "the neighbours outside the window count"


def whole(folder: Path):
    for batch in module(folder).loader("train", Questions(), None, 1):
        yield batch.frames_BTCHW[0], batch.motion_BTYX[0], batch.uids[0]


def test_it_is_cached_with_the_clip_and_counted(folder, monkeypatch):
    cache, calls = ClipCache(), []
    monkeypatch.setattr(reader, "SHARED", cache)
    monkeypatch.setattr(reader, "motion_energy", lambda *a: calls.append(1) or motion_energy(*a))
    read = lambda **more: list(module(folder, cache_mb=64, **more).loader("val", Questions(), None, 4))  # noqa: E731
    (plain,) = read(motion=None)
    pixels = plain.frames_BTCHW.numel()
    assert cache.bytes == pixels and not calls
    (first,), (second,) = read(), read()
    assert len(calls) == 4 and torch.equal(first.motion_BTYX, second.motion_BTYX)
    assert cache.bytes == pixels + first.motion_BTYX.numel() * 4, "the pixels are kept once, for both"
    (other,) = read(motion=(4, 4))
    assert other.motion_BTYX.shape[2:] == (4, 4) and len(calls) == 8


def test_the_cache_keeps_within_its_limit():
    cache, clip = ClipCache(), clip_cache.Clip({}, np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.float32))
    assert cache.get("clip", lambda: clip, 100) is clip and cache.bytes == 96
    cache.get("motion", lambda: np.zeros(2, np.float32), 100)
    assert cache.bytes == 96 and cache.get("clip", lambda: None, 100) is clip


def test_frames_without_the_motion_that_was_asked_for_are_refused():
    item = Item(np.zeros((2, 3, 8, 8), np.uint8), np.zeros(2, np.float32), [], uid="k7")
    with pytest.raises(ValueError, match="k7: frames without motion"):
        collate([item], pad_id=0, size=(8, 8), motion=(2, 2))
    assert collate([item], pad_id=0, size=(8, 8)).motion_BTYX is None


def test_the_benchmarks_batches_carry_it_and_the_blind_ones_zeros():
    frames, _ = scene(32)
    times = np.arange(FRAMES, dtype=np.float32)
    clips = [Query(frames, times, [], motion_energy(frames, GRID)), Query(None, None, [])]
    rows = [SimpleNamespace(clip=i, row=FakeChat().encode("what ?", "a", "answer", "question_first")) for i in (0, 1)]
    batch = _batch(FakeChat(), clips, rows, InputSpec("question_first", FRAMES, 32, GRID), everyone=False)
    assert torch.equal(batch.motion_BTYX[0], torch.from_numpy(clips[0].motion_TYX)) and batch.motion_BTYX[0].any()
    assert not batch.motion_BTYX[1].any()


# --------------------------------------------------------------------------------------------------- asked for, missing


def test_the_merger_asks_for_it():
    flow, features = (_tiny.Variant("merger", "motion", (("motion", how),)) for how in ("flow", "features"))
    wanting, other = (_tiny.model(_tiny.Case("question_first", (merger,))) for merger in (flow, features))
    assert assembly.motion_grid(wanting) == wanting.vision.grid(*[wanting.vision.image_size] * 2)
    assert assembly.motion_grid(other) is None
    assert assembly.motion_grid(assembly.Encoder(wanting.vision)) is None, "stage 0 has no merger"


def test_without_opencv_the_error_says_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    message = r"merger.motion=flow.*not installed.*opencv-python-headless.*merger.motion=features"
    with pytest.raises(UserError, match=message) as caught:
        module(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):
        motion_energy(np.zeros((2, 3, 32, 32), np.uint8), GRID)
    assert next(iter(module(folder, motion=None).train_dataloader())).motion_BTYX is None
