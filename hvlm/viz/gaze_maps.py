"""Where the gaze went: the query's attention over each frame, as pictures.

A sheet has the frames in its first row, below them the same frames lit by the attention (mean over layers, then layer
by layer); a film has the second row; a path shows where the middle of the attention wandered, on the first frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from hvlm.model import VLM
from hvlm.types import Batch
from hvlm.viz.media import contact_sheet, write_mp4

DARK = 0.25  # how bright a frame stays where nothing is looked at
ENLARGED = 6  # the picture of the path


class Maps(NamedTuple):
    """weights_TLYX: attention of the steered query (of the static one with ``mode=coarse``) on every patch, mean over
    heads, float32; they sum to at most 1 (what is missing went to CLS). entropy_TL: nats, of the head-mean weights."""

    weights_TLYX: np.ndarray
    entropy_TL: np.ndarray


@torch.no_grad()
def gaze_maps(model: VLM, batch: Batch) -> list[Maps]:
    """One per clip of a batch with exactly one text row a clip, frames that are padding left out.

    Raises ValueError for a connector that does not gaze, or another number of rows.
    """
    if not model.connector.wants_gaze:
        raise ValueError("only connector=foveated looks at frames with a query")
    b, t = batch.frame_mask_BT.shape
    if batch.clip_K.tolist() != list(range(b)):
        raise ValueError("expected one text row for each clip, in order")
    training, at_once = model.training, model.vision.frames_at_once
    model.eval()
    model.vision.frames_at_once, model.vision.query.record = b * t, []
    try:
        model.visual_tokens(batch, model.language.embed(batch.input_ids_KS))
        record: list[Tensor] = model.vision.query.record
    finally:
        model.vision.frames_at_once, model.vision.query.record = at_once, None
        model.train(training)
    if model.connector.mode == "autoregressive":  # a look for every frame, of all clips
        weights = torch.stack([look[:, :, 0] for look in record], 2)  # [layers, B, T, N]
    else:  # the last look at all frames
        weights = record[-1][:, :, 0].unflatten(1, (b, t))
    rows, cols = model.vision.grid(*batch.frames_BTCHW.shape[-2:])
    weights_BTLN = weights.permute(1, 2, 0, 3).float()
    entropy_BTL = torch.special.entr(weights_BTLN).sum(-1)
    places = weights_BTLN[..., -rows * cols :].unflatten(-1, (rows, cols))  # CLS, where there is one, comes first
    out = []
    for i, seen in enumerate(batch.frame_mask_BT):
        out.append(Maps(places[i][seen].cpu().numpy(), entropy_BTL[i][seen].cpu().numpy()))
    return out


def lit(frames_TCHW: np.ndarray, weights_TYX: np.ndarray) -> np.ndarray:
    """Frames that are bright where the weights are large (relative to the frame's largest) and dark elsewhere."""
    light = torch.from_numpy(weights_TYX / np.maximum(weights_TYX.max((1, 2), keepdims=True), 1e-12))
    size = frames_TCHW.shape[-2:]
    light = torch.nn.functional.interpolate(light[:, None].float(), size, mode="bilinear", align_corners=False).numpy()
    return np.round(frames_TCHW * (DARK + (1 - DARK) * light)).astype(np.uint8)


def write_maps(frames_TCHW: np.ndarray, maps: Maps, stem: Path, fps: float = 4.0) -> dict[str, Path]:
    """``<stem>.png`` (the sheet), ``<stem>.mp4`` and ``<stem>-path.png``. frames: uint8, as many as the maps."""
    mean = lit(frames_TCHW, maps.weights_TLYX.mean(1))
    layers = [lit(frames_TCHW, maps.weights_TLYX[:, i]) for i in range(maps.weights_TLYX.shape[1])]
    sheet = np.concatenate([frames_TCHW, mean, *layers])
    names = ["frames", "mean of layers", *(f"layer {i + 1}" for i in range(len(layers)))]
    stem.parent.mkdir(parents=True, exist_ok=True)
    return {
        "sheet": contact_sheet(sheet, stem.with_name(f"{stem.name}.png"), len(frames_TCHW), names=names),
        "film": write_mp4(mean, stem.with_name(f"{stem.name}.mp4"), fps),
        "path": write_path(frames_TCHW[0], centres(maps), stem.with_name(f"{stem.name}-path.png")),
    }


def centres(maps: Maps) -> np.ndarray:
    """Middle of the attention (mean over layers) in every frame, [T, 2] as (x, y) in [0, 1]."""
    weights = maps.weights_TLYX.mean(1)
    weights = weights / np.maximum(weights.sum((1, 2), keepdims=True), 1e-12)
    _, rows, cols = weights.shape
    y = (weights.sum(2) * (np.arange(rows) + 0.5) / rows).sum(1)
    x = (weights.sum(1) * (np.arange(cols) + 0.5) / cols).sum(1)
    return np.stack([x, y], 1)


def write_path(frame_CHW: np.ndarray, centres_T2: np.ndarray, path: Path) -> Path:
    """The path of the gaze on one still: a line, and a dot for each frame, from black (first) to white (last)."""
    image = Image.fromarray(np.ascontiguousarray(frame_CHW.transpose(1, 2, 0)))
    image = image.resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    points = [(float(x * image.width), float(y * image.height)) for x, y in centres_T2]
    if len(points) > 1:
        draw.line(points, fill=(255, 255, 0), width=2)
    for i, (x, y) in enumerate(points):
        shade = round(255 * i / max(1, len(points) - 1))
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=(shade, shade, shade), outline=(255, 0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")
    return path
