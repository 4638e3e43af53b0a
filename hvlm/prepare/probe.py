"""What the decode process does to see whether a clip can be read. No torch here: it would be imported there, too."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from hvlm.data.decode import chosen_frames, decoded_stills
from hvlm.data.sources import Source, content
from hvlm.data.video import Video, VideoDecodeError


def probe(video: Source, frames: int) -> float:
    """Seconds of a video whose first, last and ``frames`` sampled frames can be decoded. Raises VideoDecodeError."""

    def choose(seconds: np.ndarray, duration: float) -> np.ndarray:
        sampled, _ = chosen_frames(seconds, duration, frames)
        return np.unique(np.concatenate(([0], sampled, [len(seconds) - 1])))

    with Video(video) as file:
        for number, (_, picture) in enumerate(file.sample(choose)):
            if not number:
                picture.pixels()
        return float(file.duration)


def probe_stills(stills: list[Source], frames: int, fps: float) -> float:
    """Seconds of stills of which the first, the last and ``frames`` others can be decoded, and all can be opened.
    Raises VideoDecodeError, OSError."""
    sampled, _ = chosen_frames(np.arange(len(stills)) / fps, len(stills) / fps, frames)
    numbers = set(sampled.tolist()) | {0, len(stills) - 1}
    for i, still in enumerate(stills):
        data = content(still)
        if i in numbers:
            for _ in decoded_stills([data], np.zeros(1)):
                pass
        else:
            try:
                Image.open(io.BytesIO(data)).close()
            except Exception as error:  # Pillow fails in many ways on damaged pictures
                raise VideoDecodeError("", "image", f"still {i + 1} cannot be opened ({error})") from error
    return len(stills) / fps
