"""Pictures of the gaze show the weights that the reading used."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from _clips import VIDEO
from _tiny import ASKED, Case, Variant, batch_of, clip, model, side, two_clips
from PIL import Image

import eval as evaluation
from hvlm.data.batches import one_row, one_row_per_clip
from hvlm.data.shard_index import write_shard
from hvlm.viz.gaze_maps import Maps, centres, gaze_maps, lit, write_maps

FRAMES = 3


def foveated(mode: str, vision: str = "dinov2_tiny", depth: str = "deep"):
    changes = (("mode", mode), ("depth", depth))
    return model(Case("question_first", (Variant("vision", vision), Variant("connector", "foveated", changes))))


@pytest.mark.parametrize("vision", ["convvit", "dinov2_tiny"])
@pytest.mark.parametrize("mode", ["coarse", "coarse_fine", "autoregressive"])
def test_maps_of_a_batch_are_those_of_each_clip(mode: str, vision: str) -> None:
    vlm = foveated(mode, vision)
    vlm.vision.frames_at_once = 1
    batch = one_row_per_clip(batch_of(*two_clips(vlm), size=side(vlm)), 2)
    together = gaze_maps(vlm, batch)
    assert vlm.vision.frames_at_once == 1 and vlm.vision.query.record is None
    for i, maps in enumerate(together):
        t, layers, rows, cols = maps.weights_TLYX.shape
        assert t == int(batch.frame_mask_BT[i].sum()) and layers == vlm.vision.num_layers
        assert (rows, cols) == vlm.vision.grid(side(vlm), side(vlm)) and maps.entropy_TL.shape == (t, layers)
        total = maps.weights_TLYX.sum((2, 3))
        assert (total <= 1 + 1e-5).all() and (total > 0).all()
        assert (maps.entropy_TL <= math.log(rows * cols + 1) + 1e-5).all()
        (alone,) = gaze_maps(vlm, one_row_per_clip(one_row(batch, i), 1))
        np.testing.assert_allclose(alone.weights_TLYX[:t], maps.weights_TLYX, atol=1e-5)
    if mode != "coarse":
        other = batch_of(clip(5, FRAMES, ASKED[1:2], vlm.order, side(vlm)), size=side(vlm))
        same = batch_of(clip(5, FRAMES, ASKED[:1], vlm.order, side(vlm)), size=side(vlm))
        assert np.abs(gaze_maps(vlm, other)[0].weights_TLYX - gaze_maps(vlm, same)[0].weights_TLYX).max() > 1e-4


def test_a_shallow_gaze_has_one_layer_and_others_none() -> None:
    vlm = foveated("coarse_fine", depth="shallow")
    batch = batch_of(clip(5, FRAMES, ASKED[:1], vlm.order, side(vlm)), size=side(vlm))
    assert gaze_maps(vlm, batch)[0].weights_TLYX.shape[1] == 1
    with pytest.raises(ValueError, match="one text row for each clip"):
        gaze_maps(vlm, batch_of(clip(5, FRAMES, ASKED[:2], vlm.order, side(vlm)), size=side(vlm)))
    mean = model(Case("question_first", (Variant("connector", "mean"),)))
    with pytest.raises(ValueError, match="only connector=foveated"):
        gaze_maps(mean, batch)


def test_pictures(tmp_path: Path) -> None:
    weights = np.full((FRAMES, 2, 4, 4), 1e-3, np.float32)
    for t in range(FRAMES):
        weights[t, :, t, t + 1] = 0.9
    maps = Maps(weights, np.zeros((FRAMES, 2)))
    frames = np.full((FRAMES, 3, 32, 32), 200, np.uint8)
    bright = lit(frames, weights.mean(1))
    assert bright.max() > 180 and bright[0, 0, 4, 12] > 150 > 70 > bright[0, 0, 28, 28]
    middle = centres(maps)
    np.testing.assert_allclose(middle, [[(t + 1.5) / 4, (t + 0.5) / 4] for t in range(FRAMES)], atol=0.02)
    files = write_maps(frames, maps, tmp_path / "a.b")
    assert {p.name for p in files.values()} == {"a.b.png", "a.b.mp4", "a.b-path.png"}
    assert Image.open(files["sheet"]).size[1] > 4 * 64, "frames, mean, two layers"
    assert all(p.stat().st_size > 0 for p in files.values())


def test_from_the_command_line(
    trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained[0])
    lines = evaluation.evaluate(["task=look", "checkpoint=runs/tiny", "benchmark.limit=1", f"out={tmp_path}"])
    assert lines == [json.loads(line) for line in (tmp_path / "look.jsonl").read_text().splitlines()]
    assert {line["task"] for line in lines} >= {"shape", "colour"}
    assert all((tmp_path / line[name]).exists() for line in lines for name in ("sheet", "film", "path"))
    assert torch.tensor(lines[0]["entropy_nats"]).ndim == 2


@pytest.mark.fault(67)
def test_a_samples_json_names_no_file_outside_of_out(
    trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained[0])
    before = set(trained[0].rglob("*"))
    question = {"id": "../../../up", "question": "what color ?", "answer": "red"}
    value = {"key": "../../../../evil", "questions": [question | {"task": "/x"}]}
    rows = [("a/b", {"mp4": VIDEO, "json": json.dumps(value).encode()})]
    data = tmp_path / "data"
    data.mkdir()
    write_shard(data / "train-0.tar", rows, "train", ["general"])
    out = tmp_path / "deep" / "out"
    lines = evaluation.evaluate(
        ["task=look", "checkpoint=runs/tiny", "dataset=shards", f"dataset.path={data}", "dataset.num_frames=4",
         "benchmark.split=train", "benchmark.limit=1", f"out={out}"]
    )  # fmt: skip
    assert lines[0]["key"] == "a/b" and (out / lines[0]["film"]).is_file() and "/" not in lines[0]["film"]
    made = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.parent for path in made} == {out, data} and set(trained[0].rglob("*")) == before
