"""The members of a sample → its JSON in the one form that views read (``sample_json.py``), and its frames: of a video,
of stills ``000.jpg``, ``001.jpg``, … or of one picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from hvlm.data.decode import decode, decode_images
from hvlm.data.sample_json import parse
from hvlm.data.sources import Source, content
from hvlm.data.tar import STILL_FIELDS, VIDEO_FIELDS
from hvlm.data.video import VideoDecodeError
from hvlm.image import IMAGE_FRAMES

__all__ = ["frames", "parse"]


def frames(
    members: Mapping[str, Source],
    sample: dict[str, Any],
    num_frames: int,
    size: tuple[int, int],
    decoder: Literal["pyav", "decord"] = "pyav",
    timeout: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [T, 3, H, W] and float32 [T] seconds. Stills are ``fps`` (of the JSON, default 1) a second; a single one is
    shown ``IMAGE_FRAMES`` times (or ``num_frames``, if that is less), as fVLM was trained. Of a ``section`` of
    the JSON ([start, stop] in seconds) frames are taken of that alone. decoder, timeout: as ``decode`` takes them."""
    key, section = sample["key"], sample.get("section")
    for field in VIDEO_FIELDS:
        if field in members:
            return decode(
                members[field], num_frames, name=key, size=size, decoder=decoder, timeout=timeout, section=section
            )
    stills = sorted((field for field in members if field.rsplit(".", 1)[-1] in STILL_FIELDS), key=natural)
    if not stills:
        raise VideoDecodeError(key, "mp4", f"no video or image; the sample has {', '.join(sorted(members))}")
    if len(stills) == 1:
        section = None
        stills = stills * min(IMAGE_FRAMES, num_frames)
    fps = float(sample.get("fps", 1.0))
    images = [content(members[field]) for field in stills]
    return decode_images(images, num_frames, name=key, fps=fps, size=size, timeout=timeout, section=section)


def natural(name: str) -> tuple:
    """A key to sort by in which numbers count as numbers: 2 before 10, whether or not they are padded."""
    parts = re.split(r"(\d+)", name)  # longer is larger: Python makes no number of thousands of digits
    return tuple(
        (len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else (-1, part) for part in parts
    ), name  # fmt: skip
