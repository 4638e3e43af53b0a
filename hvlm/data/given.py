"""Frames of whatever a program holds: a file, a folder of stills, pictures, or an array."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hvlm.data import samples
from hvlm.data.decode import Chunk, chosen_frames, fitted, frames_of, gathered
from hvlm.data.decode_process import DecodeTimeout
from hvlm.data.samples import natural
from hvlm.data.tar import STILL_FIELDS, VIDEO_FIELDS
from hvlm.data.video import VideoDecodeError
from hvlm.errors import UserError
from hvlm.image import IMAGE_FRAMES

# A path; pictures (Pillow's, arrays [H, W, 3], or paths); an array or tensor [T, H, W, 3] or [T, 3, H, W], uint8.
Given = Any
KINDS = "a video file, a folder of stills, a list of pictures, or uint8 [T, H, W, 3] or [T, 3, H, W]"


def frames_given(
    video: Given,
    num_frames: int,
    size: tuple[int, int],
    fps: float = 1.0,
    section: tuple[float, float] | None = None,
    timeout: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The frames that a model reads, sampled and scaled as the data reader does it.

    Args:
        video: ``KINDS``.
        num_frames: how many, evenly over the time; of fewer each once. A single picture is shown ``IMAGE_FRAMES``
            times, or so often if that is less.
        size: (H, W) of what is given back.
        fps: pictures a second, of what carries no time itself.
        section: (start, stop) in seconds, of which alone frames are taken.
        timeout: seconds for a path, in a process that is killed when they are over; None reads here.

    Returns:
        uint8 [T, 3, H, W] and float32 [T] seconds.

    Raises:
        UserError: what is given is none of these, or cannot be read (in time).
    """
    check_rate(fps)
    if section is not None:
        section = check_section(section)
    if isinstance(video, str | Path):
        return _of_path(Path(video).expanduser(), num_frames, size, fps, section, timeout)
    pictures = pictures_of(video)
    if len(pictures) == 1:
        pictures, section = [pictures[0]] * min(IMAGE_FRAMES, num_frames), None
    try:
        chosen, seconds = chosen_frames(np.arange(len(pictures)) / fps, len(pictures) / fps, num_frames, section)
    except VideoDecodeError as error:
        raise UserError(f"video: {error.reason}") from error
    chunks = (_chunk(pictures[i], second) for i, second in zip(chosen, seconds, strict=True))
    return gathered(chunks, name="video", field="frames", size=size)


def streamed_frames(video: Given, size: tuple[int, int], fps: float) -> Iterator[tuple[np.ndarray, float]]:
    """(uint8 [3, H, W], seconds) one after the other, of a video file those shown at the moments (k + 1/2) / fps; what
    carries no time itself has ``fps`` pictures a second, and each is given. Raises UserError."""
    check_rate(fps)
    if isinstance(video, str | Path):
        path = Path(video).expanduser()
        members = _members(path)
        if "mp4" in members:
            try:
                yield from frames_of(path, fps, size)
            except VideoDecodeError as error:
                raise UserError(f"{path}: cannot be read as a video ({error.reason})") from error
            return
        video = [members[name] for name in sorted(members, key=natural)]
    for i, picture in enumerate(pictures_of(video)):
        yield fitted(_chunk(picture, 0.0), size)[0].transpose(2, 0, 1).copy(), (i + 0.5) / fps


def check_rate(fps: float) -> None:
    """UserError where it is no number of pictures a second."""
    if not isinstance(fps, Real) or not 0 < fps < math.inf:
        raise UserError(f"fps={fps!r}: expected a number above 0")


def check_section(section: tuple[float, float]) -> tuple[float, float]:
    """(start, stop) in seconds. UserError where it is none."""
    given = tuple(section) if isinstance(section, list | tuple) else ()
    if len(given) != 2 or not all(isinstance(s, Real) for s in given) or not 0 <= given[0] < given[1]:
        raise UserError(f"section={section!r}: expected (start, stop) in seconds, the start before the stop")
    return given[0], given[1]


def pictures_of(video: Given) -> Sequence[Any]:
    """The pictures of a list or an array, each [H, W, 3], or what opens as one. Raises UserError."""
    if isinstance(video, list | tuple):
        if not video:
            raise UserError(f"video: no picture in it; expected {KINDS}")
        return video
    if hasattr(video, "detach"):
        video = video.detach().cpu().numpy()
    if isinstance(video, np.ndarray):
        shape = tuple(video.shape)
        if video.ndim != 4 or 0 in shape or 3 not in (shape[1], shape[3]):
            raise UserError(f"video: an array of shape {shape}; expected {KINDS}")
        if video.dtype != np.uint8:
            raise UserError(f"video: an array of {video.dtype}; expected uint8, pixels from 0 to 255")
        if shape[1] == shape[3]:
            raise UserError(
                f"video: in an array of shape {shape} colours may be either; give [T, H, W, 3] of more width"
            )
        return video if shape[3] == 3 else video.transpose(0, 2, 3, 1)
    raise UserError(f"video: {type(video).__name__}; expected {KINDS}")


def _of_path(
    path: Path,
    num_frames: int,
    size: tuple[int, int],
    fps: float,
    section: tuple[float, float] | None,
    timeout: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    sample = {"key": str(path), "fps": fps, "section": section}
    try:
        return samples.frames(_members(path), sample, num_frames, size, timeout=timeout)
    except DecodeTimeout as error:
        raise UserError(f"{path}: not decoded within {timeout:g} s") from error
    except VideoDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error.reason})") from error


def _members(path: Path) -> dict[str, Path]:
    """The files of a clip as those of a shard's sample: one video, or stills in the order of their names."""
    if path.is_dir():
        stills = {p.name.lower(): p for p in path.iterdir() if p.suffix.lower().lstrip(".") in STILL_FIELDS}
        if not stills:
            videos = sorted(p.name for p in path.iterdir() if p.suffix.lower().lstrip(".") in VIDEO_FIELDS)
            hint = f"; name one of its videos, e.g. {path / videos[0]}" if videos else ""
            raise UserError(f"{path}: a folder without stills ({', '.join(STILL_FIELDS)}){hint}")
        return stills
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder; expected {KINDS}")
    return {path.name.lower(): path} if path.suffix.lower().lstrip(".") in STILL_FIELDS else {"mp4": path}


def _chunk(picture: Any, second: float) -> Chunk:
    """One picture, uint8 [1, H, W, 3]."""
    if isinstance(picture, str | Path):
        with opened_picture(Path(picture)) as image:
            picture = image.convert("RGB")
    if isinstance(picture, Image.Image):
        picture = np.asarray(picture.convert("RGB"))
    pixels = np.asarray(picture.detach().cpu() if hasattr(picture, "detach") else picture)
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or pixels.shape[2] != 3:
        raise UserError(f"video: a picture of {pixels.dtype} {pixels.shape}; expected uint8 [H, W, 3], or Pillow's")
    return Chunk(np.ascontiguousarray(pixels)[None], np.array([second]), pixels.shape[:2])


def opened_picture(path: Path) -> Image.Image:
    """A picture file, upright. Raises UserError."""
    from PIL import ImageOps, UnidentifiedImageError

    try:
        image = Image.open(path)
        return ImageOps.exif_transpose(image) or image
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({error})") from error
