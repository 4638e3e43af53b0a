"""Pictures and figures of an answer as HTML that needs no file: nothing is left behind on the server."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from hvlm.ui.asking import Pictures

SIDE = 96  # pixels of a frame on the page
SHOWN = 64  # frames at most: a page with thousands of pictures does not scroll


def table(figures: Mapping[str, str]) -> str:
    """Name and value, a line each."""
    rows = (f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in figures.items())
    return f"<table class='figures'>{''.join(rows)}</table>" if figures else ""


def strips(pictures: Pictures | None) -> str:
    """The frames in a row, below them the gaze and the merging where there are any."""
    if pictures is None:
        return ""
    count = len(pictures.frames)
    at = np.unique(np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int))
    captions = [f"{second:.1f} s" for second in pictures.seconds]
    rows = [_strip("frames that were read", "frames", pictures.frames, captions, at)]
    if pictures.gaze is not None:
        rows.append(_strip("where it looked (bright)", "gaze", pictures.gaze, captions, at))
    if pictures.merged is not None and pictures.tokens is not None:
        named = "merged: patches of one colour are one token, dark ones were dropped"
        rows.append(_strip(named, "merged", pictures.merged, [f"{n} tokens" for n in pictures.tokens], at))
    if len(at) < count:
        rows.append(f"<p>{len(at)} of {count} frames are shown.</p>")
    return "".join(rows)


def _strip(name: str, kind: str, frames_TCHW: np.ndarray, captions: list[str], at: np.ndarray) -> str:
    style = f"width:{SIDE}px;image-rendering:pixelated"
    figures = "".join(
        f"<figure style='margin:2px'><img style='{style}' alt='{kind}' src='{_as_data(frames_TCHW[i])}'/>"
        f"<figcaption style='font-size:11px'>{captions[i]}</figcaption></figure>"
        for i in at
    )
    return f"<p>{name}</p><div class='{kind}' style='display:flex;overflow-x:auto'>{figures}</div>"


def _as_data(frame_CHW: np.ndarray) -> str:
    held = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame_CHW.transpose(1, 2, 0))).save(held, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
