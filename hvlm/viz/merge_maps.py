"""What a token merger did, as pictures.

A sheet has the frames in its first row and in its second the same frames with every patch in the colour of the token
that it went to: a token that spans frames has one colour in all of them. Patches that stand for their token have an
outline, those that were dropped are dark. A second picture shows the budget over time, a bar for each frame.
"""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from hvlm.merger._base import Chosen
from hvlm.model import VLM
from hvlm.types import Batch
from hvlm.viz.gaze_maps import DARK
from hvlm.viz.media import contact_sheet

GOLDEN = 0.618034  # of a turn of the colour wheel between a token and the next: neighbours differ, few hues come close
OUTLINE = 255
BAR, HEIGHT, MARGIN = 12, 120, 24  # the picture of the budget, in pixels


class MergeMap(NamedTuple):
    """Of a clip of T frames with a grid of Y x X patches.

    token_TYX: int64, the token that each patch went to, numbered through the clip; -1: dropped. kept_TYX: bool, the
    patches that stand for their token. time_T: seconds.
    """

    token_TYX: np.ndarray
    kept_TYX: np.ndarray
    time_T: np.ndarray

    @property
    def kept_T(self) -> np.ndarray:
        """How many tokens stand in each frame; together they are the clip's budget."""
        return self.kept_TYX.sum((1, 2))


@torch.no_grad()
def merge_maps(model: VLM, batch: Batch) -> list[MergeMap]:
    """One per clip, frames that are padding left out. ValueError for a model that merges nothing."""
    if model.merger.changes_nothing:
        raise ValueError("merger=none: there is no merging to draw")
    training = model.training
    model.eval()
    try:
        model.encode_video(batch)
        chosen: Chosen = model.merger.chosen
    finally:
        model.train(training)
    whole = (chosen.b, chosen.t, *model.vision.grid(*batch.frames_BTCHW.shape[-2:]))
    token = torch.where(chosen.to.to_BS < chosen.to.mask_BM.shape[1], chosen.to.to_BS, -1).reshape(whole)
    kept = chosen.own_BS().reshape(whole)
    return [
        MergeMap(*(field[i][seen].cpu().numpy() for field in (token, kept, batch.frame_time_BT)))
        for i, seen in enumerate(batch.frame_mask_BT)
    ]


def colours(tokens: int) -> np.ndarray:
    """[tokens, 3] uint8. Hues come close again after some dozens, brightness and saturation tell those apart."""
    wheel = [(k * GOLDEN % 1, 0.85 - 0.3 * (k // 2 % 2), 0.95 - 0.35 * (k % 2)) for k in range(tokens)]
    return np.array([np.round(255 * np.array(colorsys.hsv_to_rgb(*hsv))) for hsv in wheel], np.uint8)


def coloured(frames_TCHW: np.ndarray, merged: MergeMap) -> np.ndarray:
    """The second row of the sheet, uint8 [T, 3, H, W]."""
    t, rows, cols = merged.token_TYX.shape
    height, width = frames_TCHW.shape[-2] // rows, frames_TCHW.shape[-1] // cols

    def by_pixel(x_TYX: np.ndarray) -> np.ndarray:
        return x_TYX.repeat(height, 1).repeat(width, 2)

    palette = colours(int(merged.token_TYX.max()) + 1)
    dark = np.round(frames_TCHW * DARK).astype(np.uint8)
    token = by_pixel(merged.token_TYX)
    bright = palette[token.clip(min=0)].transpose(0, 3, 1, 2)
    picture = np.where(token[:, None] < 0, dark, bright)
    edge = np.zeros((height, width), bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    outline = by_pixel(merged.kept_TYX) & np.tile(edge, (rows, cols))
    return np.where(outline[:, None], np.uint8(OUTLINE), picture)


def write_merging(frames_TCHW: np.ndarray, merged: MergeMap, stem: Path) -> dict[str, Path]:
    """``<stem>-merged.png`` (the sheet) and ``<stem>-budget.png``. frames: uint8, as many as the map has."""
    sheet = np.concatenate([frames_TCHW, coloured(frames_TCHW, merged)])
    return {
        "merged": contact_sheet(
            sheet, stem.with_name(f"{stem.name}-merged.png"), len(frames_TCHW), names=("frames", "tokens")
        ),
        "budget": write_budget(merged, stem.with_name(f"{stem.name}-budget.png")),
    }


def write_budget(merged: MergeMap, path: Path) -> Path:
    """Tokens of every frame as bars; the line across is the mean. The highest bar is as high as the picture."""
    kept, patches = merged.kept_T, merged.token_TYX.size
    said = f"{kept.sum()} tokens of {patches} patches, {kept.min()} to {kept.max()} a frame"
    width = max(BAR * len(kept), 6 * len(said)) + 2 * MARGIN
    image = Image.new("RGB", (width, HEIGHT + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(image)
    ground, scale = MARGIN + HEIGHT, HEIGHT / max(1, kept.max())
    for i, tokens in enumerate(kept.tolist()):
        left = MARGIN + i * BAR
        if tokens:
            draw.rectangle((left, ground - round(tokens * scale), left + BAR - 3, ground - 1), fill=(60, 110, 180))
    end, mean = MARGIN + len(kept) * BAR, ground - round(kept.mean() * scale)
    draw.line((MARGIN, ground, end, ground), fill=(0, 0, 0))
    draw.line((MARGIN, mean, end, mean), fill=(200, 60, 60))
    draw.text((MARGIN, 6), said, fill=(0, 0, 0))
    draw.text((MARGIN, ground + 6), f"{merged.time_T[0]:.1f} to {merged.time_T[-1]:.1f} s", fill=(0, 0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")
    return path
