"""Encoded video or still images → sampled uint8 frames with their times.

decord comes first: it seeks to the frames asked for instead of reading all. PyAV takes over where decord raises (it
refuses, for example, videos with a 90-degree rotation flag) and applies the rotation that it reads; each cause is
logged once. Both decode on one thread: parallelism comes from the loader's worker processes, which can also be killed
when a decoder hangs.

What a container still holds is what is sampled: a file whose end is missing is read as far as PyAV can read it without
an error. Damaged pixels inside a valid stream are not a decoder's business; the shard's sha256 catches those.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torch.nn.functional import interpolate

from hvlm.data.quarantine import SampleError
from hvlm.data.sampling import nearest_frames, uniform_times

try:
    import decord
except ImportError:  # there are wheels for Linux on x86 only
    decord = None

log = logging.getLogger(__name__)

MAX_PIXELS = 50_000_000  # of one image or frame; larger headers are refused before anything is allocated
CHUNK = 8  # frames decoded before they are resized, so that a long high-resolution clip does not fill the memory
_logged: set[str] = set()

Fit = Callable[[np.ndarray], np.ndarray]


class VideoDecodeError(SampleError):
    """Neither decoder could read the video (or the image decoder the image). Attributes: name, field, reason."""


def decode(
    video: bytes, num_frames: int, *, name: str, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sample ``num_frames`` frames evenly in time over the whole clip.

    Returns uint8 [T, 3, H, W] and float32 [T] seconds from the clip's first frame. T < ``num_frames`` only if the clip
    has fewer frames (each is then returned once). ``size`` = (H, W): a clip of another size is scaled until it covers
    that and cropped around its centre; None keeps the clip's own size. ``name`` stands in errors.

    Raises VideoDecodeError.
    """
    fit = _fit(size)
    try:
        frames, times = _decord(video, num_frames, fit)
    except Exception as error:  # decord raises plain RuntimeErrors of its own class, and IndexErrors for empty streams
        first = _one_line(error)
        try:
            frames, times = _pyav(video, num_frames, fit)
        except VideoDecodeError as second:
            raise VideoDecodeError(name, "video", second.reason) from error
        except Exception as second:
            raise VideoDecodeError(name, "video", f"decord: {first}; PyAV: {_one_line(second)}") from second
        _log_once(first, name)
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), times.astype(np.float32)


def decode_images(
    images: Sequence[bytes], num_frames: int, *, name: str, fps: float, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The same for a clip stored as JPEG or PNG stills, ``fps`` of them a second; only the sampled ones are decoded."""
    pts = np.arange(len(images)) / fps
    chosen = nearest_frames(pts, uniform_times(len(images) / fps, num_frames))
    fit = _fit(size)
    try:
        frames = np.concatenate([fit(_image(images[i])[None]) for i in chosen])
    except VideoDecodeError as error:
        raise VideoDecodeError(name, "image", error.reason) from error
    except Exception as error:
        raise VideoDecodeError(name, "image", _one_line(error)) from error
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), pts[chosen].astype(np.float32)


def frames_of(path: Path, fps: float, size: tuple[int, int]) -> Iterator[tuple[np.ndarray, float]]:
    """A video as a stream: (uint8 [3, H, W], seconds) of the frame that is shown at every moment (k + 1/2) / fps.

    One frame is held at a time, whatever the length. Raises VideoDecodeError.
    """
    fit, tick, shown = _fit(size), 0, None
    try:
        with av.open(str(path)) as file:
            stream = _video_stream(file)
            stream.thread_type = "NONE"
            for frame in file.decode(stream):
                if frame.pts is None:
                    raise VideoDecodeError(str(path), "video", "a frame has no time stamp")
                seconds = float((frame.pts - (stream.start_time or 0)) * stream.time_base)
                while shown is not None and (tick + 0.5) / fps < seconds:
                    yield fit(shown[None])[0].transpose(2, 0, 1), (tick + 0.5) / fps
                    tick += 1
                shown = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                last = float((frame.duration or 0) * stream.time_base)
        while shown is not None and (tick + 0.5) / fps < seconds + last:
            yield fit(shown[None])[0].transpose(2, 0, 1), (tick + 0.5) / fps
            tick += 1
    except (av.FFmpegError, OSError) as error:
        raise VideoDecodeError(str(path), "video", _one_line(error)) from error


def _decord(video: bytes, num_frames: int, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    if decord is None:
        raise ImportError("it is not installed")
    reader = decord.VideoReader(io.BytesIO(video), num_threads=1)
    spans = reader.get_frame_timestamp(range(len(reader)))  # [frames, 2]: start and end of each frame, seconds
    start = spans[0, 0]
    chosen = nearest_frames(spans[:, 0] - start, uniform_times(spans[-1, 1] - start, num_frames))
    parts = [fit(reader.get_batch(chosen[i : i + CHUNK]).asnumpy()) for i in range(0, len(chosen), CHUNK)]
    return np.concatenate(parts), spans[chosen, 0] - start


def _pyav(video: bytes, num_frames: int, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    with av.open(io.BytesIO(video)) as file:  # first pass: timestamps only, nothing is decoded
        stream = _video_stream(file)
        stamps = sorted((p.pts, p.duration or 0) for p in file.demux(stream) if p.pts is not None and p.size)
        if not stamps:
            raise VideoDecodeError("", "video", "the video stream holds no frames")
        pts = np.array([stamp[0] for stamp in stamps])
        seconds = (pts - pts[0]) * float(stream.time_base)
        last = stamps[-1][1] * float(stream.time_base)  # how long the last frame is shown
        chosen = nearest_frames(seconds, uniform_times(seconds[-1] + last, num_frames))
    wanted = {int(pts[i]): i for i in chosen}
    frames: dict[int, np.ndarray] = {}
    with av.open(io.BytesIO(video)) as file:
        stream = _video_stream(file)
        stream.thread_type = "NONE"
        for frame in file.decode(stream):
            if (index := wanted.pop(frame.pts, None)) is not None:
                upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # counter-clockwise
                frames[index] = fit(upright[None])
            if not wanted:
                break
    if wanted:
        raise VideoDecodeError("", "video", f"{len(wanted)} of {len(chosen)} sampled frames could not be decoded")
    order = sorted(frames)
    return np.concatenate([frames[i] for i in order]), seconds[order]


def _image(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of one still."""
    with av.open(io.BytesIO(data)) as file:
        return next(file.decode(_video_stream(file))).to_ndarray(format="rgb24")


def _video_stream(file: av.container.InputContainer) -> av.VideoStream:
    if not file.streams.video:
        raise VideoDecodeError("", "video", "the file has no video stream")
    stream = file.streams.video[0]
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoDecodeError(
            "", "video", f"{stream.width}x{stream.height} pixels are refused, at most {MAX_PIXELS:,}"
        )
    return stream


def _fit(size: tuple[int, int] | None) -> Fit:
    """uint8 [T, h, w, 3] → [T, H, W, 3]: scale to cover ``size``, then crop around the centre."""

    def fit(frames: np.ndarray) -> np.ndarray:
        if size is None or frames.shape[1:3] == tuple(size):
            return frames
        height, width = size
        scale = max(height / frames.shape[1], width / frames.shape[2])
        covering = [max(height, round(frames.shape[1] * scale)), max(width, round(frames.shape[2] * scale))]
        x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        x = interpolate(x, covering, mode="bilinear", antialias=True, align_corners=False)
        top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
        return x[..., top : top + height, left : left + width].permute(0, 2, 3, 1).numpy()

    return fit


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"^\[\d\d:\d\d:\d\d\] \S+: ?", "", text)[:200]  # decord puts a clock and a source line in front


def _log_once(cause: str, name: str) -> None:
    kind = re.sub(r"0x[0-9a-f]+|\d+", "#", cause)
    if kind not in _logged:
        _logged.add(kind)
        log.warning("%s: decord could not read it (%s); PyAV reads it and others with the same cause", name, cause)
