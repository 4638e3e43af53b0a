"""Pictures and short videos of what the model was shown, as files that travel with the run folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from hvlm.errors import UserError

GAP = 2  # pixels between the frames of a sheet
NAME_WIDTH = 96  # pixels in front of rows that have names


def contact_sheet(
    frames_TCHW: np.ndarray, path: Path, columns: int = 8, scale: int = 2, names: Sequence[str] = ()
) -> Path:
    """Frames in reading order as one PNG. uint8 [T, 3, H, W]; ``scale`` enlarges without smoothing, so that what the
    encoder saw stays visible. names: of the rows, written in front of them. Returns the path."""
    frames = _checked(frames_TCHW)
    t, _, h, w = frames.shape
    columns = min(columns, t)
    rows = -(-t // columns)
    left = NAME_WIDTH if names else 0
    sheet = Image.new("RGB", (left + columns * (w * scale + GAP) - GAP, rows * (h * scale + GAP) - GAP), "white")
    for i, name in enumerate(names):
        ImageDraw.Draw(sheet).text((4, i * (h * scale + GAP) + h * scale // 2 - 6), name, fill="black")
    for i, frame in enumerate(frames):
        image = Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0)))
        image = image.resize((w * scale, h * scale), Image.Resampling.NEAREST)
        sheet.paste(image, (left + (i % columns) * (w * scale + GAP), (i // columns) * (h * scale + GAP)))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


def write_mp4(frames_TCHW: np.ndarray, path: Path, fps: float = 4.0, scale: int = 2) -> Path:
    """Frames as H.264 that browsers play. uint8 [T, 3, H, W], ``fps`` frames per second. Returns the path."""
    frames = _checked(frames_TCHW).repeat(scale, axis=2).repeat(scale, axis=3)
    t, _, h, w = frames.shape
    frames = np.pad(frames, ((0, 0), (0, 0), (0, h % 2), (0, w % 2)), mode="edge")  # yuv420p needs even sides
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[2], frames.shape[3], "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.transpose(1, 2, 0)), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def keep_wandb_media_in(folder: Path) -> Path:
    """Make W&B keep everything below ``folder``; call it before a W&B logger exists. Returns the folder.

    W&B stages the files of a table in the user's home (WANDB_DATA_DIR), so that a run folder copied to another machine
    would sync without them; and where it may not write it silently uses the temporary folder, hence the check.
    """
    folder = Path(folder)
    data = folder / "wandb-data"
    try:
        data.mkdir(parents=True, exist_ok=True)
        probe = data / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"logger=wandb: {data} is not writable ({error.strerror}); use another run folder") from error
    os.environ["WANDB_DATA_DIR"] = str(data.resolve())
    os.environ["WANDB_DIR"] = str(folder.resolve())
    return folder


def _checked(frames_TCHW: np.ndarray) -> np.ndarray:
    if frames_TCHW.dtype != np.uint8 or frames_TCHW.ndim != 4 or frames_TCHW.shape[1] != 3 or len(frames_TCHW) == 0:
        raise ValueError(f"expected uint8 [T, 3, H, W], got {frames_TCHW.dtype} {list(frames_TCHW.shape)}")
    return frames_TCHW
