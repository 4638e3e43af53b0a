"""Pictures of merging show the assignment that the model used."""

from __future__ import annotations

import json
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from _tiny import ASKED, Case, Variant, batch_of, clip, model, side, two_clips, variants
from PIL import Image

import eval as evaluation
from hvlm.data.batches import one_row, one_row_per_clip
from hvlm.errors import UserError
from hvlm.training.clip_table import ClipTable
from hvlm.viz.media import NAME_WIDTH
from hvlm.viz.merge_maps import MergeMap, coloured, colours, merge_maps, write_budget, write_merging

MERGERS = [pytest.param(v, id=v.id) for v in variants("merger") if v.name != "none"]


def merging(merger: Variant | str, connector: str = "patches", **settings):
    merger = Variant("merger", merger) if isinstance(merger, str) else merger
    merger = Variant("merger", merger.name, (*merger.changes, *settings.items()))
    return model(Case("question_first", (merger, Variant("connector", connector))))


@pytest.mark.parametrize("connector", ["foveated", "longvlm"])
@pytest.mark.parametrize("merger", MERGERS)
def test_maps_of_a_batch_are_what_the_merger_did(merger: Variant, connector: str) -> None:
    vlm = merging(merger, connector, keep=0.5).train()
    batch = one_row_per_clip(batch_of(*two_clips(vlm), size=side(vlm)), 2)
    maps = merge_maps(vlm, batch)
    assert vlm.training and [len(m.token_TYX) for m in maps] == [4, 2]
    vlm.eval()
    tokens = vlm.encode_video(batch).tokens
    for i, found in enumerate(maps):
        assert found.token_TYX.shape[1:] == vlm.vision.grid(side(vlm), side(vlm))
        budget = int(tokens.mask_BS[i].sum())
        assert found.kept_T.sum() == budget == len(found.token_TYX) * 2
        assert found.token_TYX[found.kept_TYX].tolist() == list(range(budget)), "numbered through the clip"
        if vlm.merger.drops:
            assert (found.token_TYX[~found.kept_TYX] == -1).any()
        else:
            sizes = np.bincount(found.token_TYX.flatten(), minlength=budget)
            assert sorted(sizes.tolist()) == sorted(tokens.size_BS[i][:budget].int().tolist())
        np.testing.assert_array_equal(found.time_T, batch.frame_time_BT[i][batch.frame_mask_BT[i]])
        (alone,) = merge_maps(vlm, one_row(batch, i))
        np.testing.assert_array_equal(alone.token_TYX[: len(found.token_TYX)], found.token_TYX)


def test_no_merger_has_no_maps() -> None:
    vlm = merging("none")
    batch = batch_of(clip(1, 2, ASKED[:1], vlm.order, side(vlm)), size=side(vlm))
    with pytest.raises(ValueError, match="merger=none"):
        merge_maps(vlm, batch)


def hand_made() -> tuple[np.ndarray, MergeMap]:
    """Three frames of 2 x 2 patches: token 0 spans them, tokens 1 and 2 stand in the first and the last, the middle
    frame has none of its own, one patch is dropped."""
    token = np.array([[[0, 1], [0, 0]], [[0, 0], [0, -1]], [[0, 0], [2, 2]]])
    kept = np.zeros(token.shape, bool)
    kept[0, 0] = kept[2, 1, 0] = True
    return np.full((3, 3, 16, 16), 200, np.uint8), MergeMap(token, kept, np.array([0.1, 0.6, 1.1]))


def test_a_token_has_one_colour_in_all_frames() -> None:
    frames, merged = hand_made()
    picture, palette = coloured(frames, merged), colours(3)
    assert picture.shape == frames.shape and picture.dtype == np.uint8
    for t, y, x in np.ndindex(merged.token_TYX.shape):
        patch, token = picture[t, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8], merged.token_TYX[t, y, x]
        expected = palette[token] if token >= 0 else [50, 50, 50]
        assert (patch[:, 1:-1, 1:-1] == np.array(expected)[:, None, None]).all()
        edge = np.concatenate([patch[:, 0], patch[:, -1], patch[:, :, 0], patch[:, :, -1]], 1)
        assert (edge == (255 if merged.kept_TYX[t, y, x] else np.array(expected)[:, None])).all()


def test_colours_differ_between_neighbours() -> None:
    palette = colours(500).astype(int)
    for apart in range(1, 8):
        assert np.abs(palette[apart:] - palette[:-apart]).max(1).min() > 40
    assert len(np.unique(palette, axis=0)) > 400


def test_pictures(tmp_path: Path) -> None:
    frames, merged = hand_made()
    assert merged.kept_T.tolist() == [2, 0, 1]
    files = write_merging(frames, merged, tmp_path / "a.b")
    assert {kind: path.name for kind, path in files.items()} == {"merged": "a.b-merged.png", "budget": "a.b-budget.png"}
    size = (NAME_WIDTH + 3 * 32 + 2 * 2, 2 * 32 + 2)
    assert Image.open(files["merged"]).size == size, "frames, and below them the assignment, with their names"
    bars = np.asarray(Image.open(files["budget"]).convert("RGB"))
    heights = [(bars[:, 24 + 12 * i + 4] == (60, 110, 180)).all(-1).sum() for i in range(3)]
    assert heights[1] == 0 and heights[0] > 1.9 * heights[2] > 100
    long = MergeMap(np.zeros((300, 1, 1), int), np.ones((300, 1, 1), bool), np.arange(300.0))
    assert Image.open(write_budget(long, tmp_path / "long" / "budget.png")).width > 300 * 12


class Stage(lightning.LightningModule):
    def __init__(self, vlm):
        super().__init__()
        self.model = vlm

    def training_step(self, batch, index):
        return self.model.token_logprobs(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.mark.parametrize("connector", ["foveated", "mean"])
def test_beside_the_table_of_clips(tmp_path: Path, connector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.loggers import WandbLogger

    from hvlm.viz.media import keep_wandb_media_in

    for name in ("WANDB_DATA_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, "unset")
    monkeypatch.setenv("WANDB_SILENT", "true")
    vlm = merging("tome", connector)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    for row, (_, answer) in zip(batch.rows, ASKED, strict=True):
        row["answer"] = answer
    logger = WandbLogger(project="test", offline=True, save_dir=keep_wandb_media_in(tmp_path / "run"))
    trainer = lightning.Trainer(
        max_steps=1, logger=logger, callbacks=[ClipTable(tmp_path / "clips", clips=2)], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Stage(vlm), torch.utils.data.DataLoader([batch], batch_size=None))
    logger.experiment.finish()
    rows = [json.loads(line) for line in (tmp_path / "clips" / "clips.jsonl").read_text().splitlines()]
    kinds = {"merged", "budget"} | ({"gaze", "gaze_path"} if connector == "foveated" else set())
    assert len(rows) == 2
    for row in rows:
        assert kinds <= set(row) and all((tmp_path / "clips" / row[kind]).exists() for kind in kinds)
    media = {
        path.name.split("_")[0] for path in (tmp_path / "run").glob("wandb/offline-run-*/files/media/images/*.png")
    }
    assert media == kinds - {"gaze_path"}


# ---------------------------------------------------------------------------------------------------- command line


def look(folder: Path, out: Path, *more: str) -> list[dict]:
    lines = evaluation.evaluate(["task=look", "checkpoint=runs/tiny", "benchmark.limit=2", f"out={out}", *more])
    assert lines == [json.loads(line) for line in (out / "look.jsonl").read_text().splitlines()]
    assert all((out / line[kind]).exists() for line in lines for kind in ("merged", "budget"))
    return lines


def test_from_the_command_line_with_a_gaze(
    trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained[0])
    lines = look(trained[0], tmp_path, "merger=tome", "merger.keep=0.5")
    assert all((tmp_path / line[name]).exists() for line in lines for name in ("sheet", "film", "path"))
    for key in {line["key"] for line in lines}:
        of_clip = [line for line in lines if line["key"] == key]
        assert len(of_clip) > 1 and len({line["merged"] for line in of_clip}) == 1, "questions share the clip's"
    assert all(sum(line["tokens_per_frame"]) == 2 * len(line["tokens_per_frame"]) for line in lines)


def test_from_the_command_line_without_a_gaze(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hvlm.training.chain import run

    monkeypatch.chdir(tmp_path)
    run(["stage=sft", "connector=mean", "run=tiny", "evaluate=false", "stage.steps=1", "stage.batch_size=2", *needles])
    lines = look(tmp_path, tmp_path / "look", "merger=stride")
    assert len(lines) == 2 == len({line["key"] for line in lines}), "a line for each clip"
    assert all(set(line) == {"key", "merged", "budget", "tokens_per_frame"} for line in lines)
    with pytest.raises(UserError, match="connector=mean and merger=none: .*connector=foveated, or add a merger"):
        look(tmp_path, tmp_path / "other")
