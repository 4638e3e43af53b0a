"""Encoded video or still images → sampled uint8 frames with their times.

``video.py`` decodes (or decord, where it is asked for and can be trusted: ``decord_reader.py``); here is decided which
frames are taken and what size they get.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from hvlm.data import decode_process, decord_reader
from hvlm.data.orientation import UPRIGHT, from_exif, upright
from hvlm.data.sampling import TOLERANCE, nearest_frames, shown_frames, uniform_times
from hvlm.data.sources import Source
from hvlm.data.video import MAX_PIXELS, Picture, Video, VideoDecodeError, one_line, still, too_large

CHUNK_BYTES = 4 << 20  # decoded pixels handed on at a time, or one frame where that is larger
DECODERS = ("pyav", "decord")
Section = tuple[float, float]  # start and stop, seconds from the clip's first frame


class Chunk(NamedTuple):
    """Neighbouring frames: uint8 [n, h, w, 3], float64 [n] seconds, and (height, width) with square pixels."""

    frames: np.ndarray
    seconds: np.ndarray
    shape: tuple[int, int]


def decode(
    video: Source,
    num_frames: int,
    *,
    name: str,
    size: tuple[int, int] | None = None,
    decoder: Literal["pyav", "decord"] = "pyav",
    timeout: float | None = None,
    section: Section | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sample ``num_frames`` frames evenly in time over the whole clip, or over a section of it.

    Args:
        video: the encoded bytes, or where they lie.
        num_frames: how many; a clip with fewer gives each of its frames once.
        name: stands in errors.
        size: (H, W); a clip of another size is scaled until it covers that and cropped around its centre. None keeps
            the clip's own size.
        decoder: "decord" lets decord decode what it can be trusted with.
        timeout: seconds, in a process that is killed when they are over; None decodes here.
        section: (start, stop) in seconds, of which alone frames are taken.

    Returns:
        uint8 [T, 3, H, W] and float32 [T] seconds from the clip's first frame, or from the section's start.

    Raises:
        VideoDecodeError: the video cannot be read, is larger than is allowed, or ends before the section starts.
    """
    taken = _under(timeout, sampled, video, num_frames, decoder, section)
    return gathered(taken, name=name, field="video", size=size)


def decode_images(
    images: Sequence[bytes],
    num_frames: int,
    *,
    name: str,
    fps: float,
    size: tuple[int, int] | None = None,
    timeout: float | None = None,
    section: Section | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The same for a clip stored as JPEG or PNG stills, ``fps`` of them a second; only the sampled ones are decoded."""
    try:
        chosen, seconds = chosen_frames(np.arange(len(images)) / fps, len(images) / fps, num_frames, section)
    except VideoDecodeError as error:
        raise VideoDecodeError(name, "image", error.reason) from error
    wanted = [images[i] for i in chosen]
    return gathered(_under(timeout, decoded_stills, wanted, seconds), name=name, field="image", size=size)


def frames_of(
    path: Path, fps: float, size: tuple[int, int], timeout: float | None = None
) -> Iterator[tuple[np.ndarray, float]]:
    """A video as a stream: (uint8 [3, H, W], seconds) of the frame that is shown at every moment (k + 1/2) / fps.

    A few frames are held at a time, whatever the length. timeout: seconds for each of these, as ``decode`` takes it.
    Raises VideoDecodeError.
    """
    yield from streamed(_under(timeout, shown, path, fps, each=True), fps, name=str(path), size=size)


# --------------------------------------------------------------------------- what is decoded, wherever that is


def sampled(video: Source, num_frames: int, decoder: str = "pyav", section: Section | None = None) -> Iterator[Chunk]:
    """Frames nearest to the middles of ``num_frames`` equal parts of the clip or section. Raises VideoDecodeError."""
    start = section[0] if section else 0.0

    def choose(seconds: np.ndarray, duration: float) -> np.ndarray:
        return chosen_frames(seconds, duration, num_frames, section)[0]

    for chunk in _sampled(video, choose, decoder):
        yield chunk._replace(seconds=np.maximum(chunk.seconds - start, 0.0)) if section else chunk


def _sampled(video: Source, choose: Callable[[np.ndarray, float], np.ndarray], decoder: str) -> Iterator[Chunk]:

    with Video(video) as file:
        if decoder == "decord":
            reader = decord_reader.trusted(video, file)
            if reader is not None:
                chosen = choose(file.seconds, file.duration)
                size = max(1, CHUNK_BYTES // (3 * file.height * file.width))
                for part in (chosen[i : i + size] for i in range(0, len(chosen), size)):
                    frames = decord_reader.frames(reader, part)
                    yield Chunk(frames, file.seconds[part], frames.shape[1:3])
                return
        yield from _chunks(file.sample(choose))


def shown(video: Source, fps: float) -> Iterator[Chunk]:
    """The frames that are shown at the moments (k + 1/2) / fps, each once, and how long: one more chunk without frames
    whose ``seconds`` hold the duration. Raises VideoDecodeError."""

    def choose(seconds: np.ndarray, duration: float) -> np.ndarray:
        moments = _moment(np.arange(int(duration * fps) + 1), fps)
        return shown_frames(seconds, moments[moments < duration])

    with Video(video) as file:
        yield from _chunks(file.sample(choose))
        yield Chunk(np.empty((0, 1, 1, 3), np.uint8), np.array([file.duration]), (1, 1))


def decoded_stills(images: Iterable[bytes], seconds: np.ndarray) -> Iterator[Chunk]:
    """Pictures, upright. Raises VideoDecodeError."""
    last: tuple[bytes, np.ndarray] | None = None
    for data, second in zip(images, seconds, strict=True):
        if last is None or last[0] is not data:
            last = data, _still(data)
        yield Chunk(last[1][None], np.array([second]), last[1].shape[:2])


def chosen_frames(
    seconds: np.ndarray, duration: float, num_frames: int, section: Section | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which frames are sampled of those shown from ``seconds`` on, and their seconds from the start of the section.

    Raises VideoDecodeError where the section begins after the end.
    """
    if section is None:
        chosen = nearest_frames(seconds, uniform_times(duration, num_frames))
        return chosen, seconds[chosen]
    start, stop = section[0], min(section[1], duration)
    if start >= duration:
        raise VideoDecodeError("", "video", f"ends at {duration:g} s, the section begins at {start:g} s")
    first = max(int(np.searchsorted(seconds, start + TOLERANCE, side="right")) - 1, 0)  # what is shown at the start
    inside = seconds[first : max(int(np.searchsorted(seconds, stop)), first + 1)]
    chosen = nearest_frames(np.maximum(inside, start), start + uniform_times(stop - start, num_frames))
    return first + chosen, np.maximum(inside[chosen] - start, 0.0)


# --------------------------------------------------------------------------------- what becomes of the chunks


def gathered(
    chunks: Iterable[Chunk], *, name: str, field: str, size: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Chunks → uint8 [T, 3, H, W] and float32 [T]; without ``size`` the frames get that of the first one."""
    frames, seconds = [], []
    try:
        for chunk in chunks:
            size = size or chunk.shape
            frames.append(_owned(fitted(chunk, size), chunk.frames))
            seconds.append(np.array(chunk.seconds))
    except VideoDecodeError as error:
        raise type(error)(name, field, error.reason) from error
    return np.ascontiguousarray(np.concatenate(frames).transpose(0, 3, 1, 2)), np.concatenate(seconds).astype(
        np.float32
    )


def streamed(
    chunks: Iterable[Chunk], fps: float, *, name: str, size: tuple[int, int]
) -> Iterator[tuple[np.ndarray, float]]:
    """What ``shown`` gives → (uint8 [3, H, W], seconds) at every moment (k + 1/2) / fps."""
    tick, current = 0, None
    try:
        for chunk in chunks:
            fit = fitted(chunk, size) if len(chunk.frames) else [None]
            for frame, seconds in zip(fit, chunk.seconds, strict=True):
                while current is not None and _moment(tick, fps) < seconds:
                    yield current, _moment(tick, fps)
                    tick += 1
                current = None if frame is None else frame.transpose(2, 0, 1).copy()
    except VideoDecodeError as error:
        raise type(error)(name, "video", error.reason) from error


def fitted(chunk: Chunk, size: tuple[int, int]) -> np.ndarray:
    """uint8 [n, H, W, 3]: the frames scaled to cover ``size``, with square pixels, then cropped around the centre."""
    frames, (tall, wide), (height, width) = chunk.frames, chunk.shape, size
    scale = max(height / tall, width / wide)
    covering = [max(height, round(tall * scale)), max(width, round(wide * scale))]
    if list(frames.shape[1:3]) != covering:
        import torch  # not before it is needed: a process that only decodes starts in a tenth of the time without it
        from torch.nn.functional import interpolate

        x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        x = interpolate(x, covering, mode="bilinear", antialias=True, align_corners=False)
        frames = x.permute(0, 2, 3, 1).numpy()
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return frames[:, top : top + height, left : left + width]


def _owned(frames: np.ndarray, shared: np.ndarray) -> np.ndarray:
    return frames.copy() if np.may_share_memory(frames, shared) else frames


# ---------------------------------------------------------------------------------------------------- decoding


def _under(timeout: float | None, function: Callable, *args: Any, each: bool = False) -> Iterator[Chunk]:
    if timeout is None:
        return function(*args)
    return decode_process.results(function, *args, timeout=timeout, each=each)


def _chunks(pictures: Iterable[tuple[float, Picture]]) -> Iterator[Chunk]:
    """Neighbours of one size together, up to ``CHUNK_BYTES``."""
    frames: list[np.ndarray] = []
    seconds: list[float] = []
    shape, held = (0, 0), 0
    for second, picture in pictures:
        pixels = picture.pixels()
        kind = (picture.height, picture.width)
        if frames and (held + pixels.nbytes > CHUNK_BYTES or kind != shape or pixels.shape != frames[0].shape):
            yield Chunk(np.stack(frames), np.array(seconds), shape)
            frames, seconds, held = [], [], 0
        frames.append(pixels)
        seconds.append(second)
        shape, held = kind, held + pixels.nbytes
    if frames:
        yield Chunk(np.stack(frames), np.array(seconds), shape)


def _still(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of one picture, turned as its EXIF says."""
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            width, height = image.size
            orientation = from_exif(image.getexif().get(0x0112, 1))
    except Image.DecompressionBombError as error:  # several times our own limit, and its decoder would not say why
        raise VideoDecodeError("", "image", one_line(error)) from error
    except Exception:  # Pillow knows fewer kinds of pictures than PyAV, and fails in many ways on damaged ones
        width = height = 0
        orientation = UPRIGHT
    if width * height > MAX_PIXELS:
        raise too_large(width, height)
    return np.ascontiguousarray(upright(still(data), orientation))


def _moment(tick: Any, fps: float) -> Any:
    return (tick + 0.5) / fps
