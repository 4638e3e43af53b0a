"""From a plan to a video file. Frame by frame: no video is held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from hvlm.benchmark.niah.pictures import Pictures
from hvlm.benchmark.niah.plan import NAMES, Needle, Planned, Segment
from hvlm.benchmark.niah.settings import Settings
from hvlm.data import decode_process
from hvlm.data.sampling import TOLERANCE, shown_frames
from hvlm.data.video import Picture, Video, VideoDecodeError
from hvlm.dataset._needles_draw import h264, letters
from hvlm.io.files import write_atomically

WINDOW = 0.3  # share of the picture's width through which a moving picture is seen
STICKER = 0.22  # side of a thing pasted over the video, as a share of the shorter side
Overlay = Callable[[np.ndarray, int], None]  # draws on a frame, given the frame's number


def probe(path: str, timeout: float) -> tuple[float, int, int] | str:
    """(seconds, height, width as shown) of a source, or in one line why it cannot be used."""
    try:
        return decode_process.result(_looked_into, path, timeout=timeout)
    except VideoDecodeError as error:
        return error.reason


def _looked_into(path: str) -> tuple[float, int, int]:
    with Video(Path(path)) as file:
        count = len(file.seconds)
        for _, picture in file.sample(lambda seconds, _: np.unique([0, len(seconds) // 2])):
            height, width = picture.height, picture.width
        if not count or file.duration <= 0:
            raise VideoDecodeError(path, "video", "no frame in it is ever shown")
        return float(file.duration), height, width


def make(planned: Planned, settings: Settings, folder: Path) -> str | None:
    """Write one video.

    Args:
        planned: what it shows.
        settings: of the benchmark.
        folder: of the benchmark's videos.

    Returns:
        None, or in one line why it cannot be made.
    """
    timeout = settings.decode_timeout * max(1.0, planned.length / 60)
    try:
        decode_process.result(_write, planned, settings, str(folder), timeout=timeout)
    except VideoDecodeError as error:
        return error.reason
    return None


def _write(planned: Planned, settings: Settings, folder: str) -> str:
    pictures = Pictures(None if settings.pictures is None else Path(settings.pictures))
    height, width = frame_size(planned.segments[0].path, settings.size)
    overlays = [(n.first, n.last, overlay(n, planned, settings, pictures, height, width)) for n in planned.needles]

    def drawn() -> Iterator[np.ndarray]:
        number = 0
        for segment in planned.segments:
            for frame in haystack(segment, settings.fps, height, width):
                for first, last, draw in overlays:
                    if first <= number <= last:
                        frame = frame.copy()
                        draw(frame, number)
                yield frame
                number += 1

    data = h264(drawn(), settings.fps, height, width, settings.crf)
    path = Path(folder) / planned.name
    write_atomically(path, lambda file: file.write(data))
    return str(path)


def frame_size(path: str, size: int) -> tuple[int, int]:
    """(height, width), even: the proportions of a source, ``size`` at the shorter side and twice that at the longer one
    at most."""
    with Video(Path(path)) as file:
        _, first = next(iter(file.sample(lambda *_: np.arange(1))))
        height, width = first.height, first.width
    scale = size / min(height, width)
    return tuple(min(2 * size, 2 * round(side * scale / 2)) for side in (height, width))  # type: ignore[return-value]


def haystack(segment: Segment, fps: float, height: int, width: int) -> Iterator[np.ndarray]:
    """The frames of a piece of haystack.

    Args:
        segment: the piece.
        fps: frames a second.
        height, width: of the frames; the middle of each is scaled until it fills them.

    Yields:
        uint8 [height, width, 3].
    """
    # A frame that begins at the very moment is shown, whatever rounding says.
    times = segment.start + (np.arange(segment.frames) + 0.5) / fps + TOLERANCE
    with Video(Path(segment.path)) as file:
        shown, done = None, 0
        for second, picture in file.sample(lambda seconds, _: shown_frames(seconds, times)):
            while shown is not None and done < len(times) and times[done] < second:
                yield shown
                done += 1
            shown = _filling(picture, height, width)
        if shown is None:
            raise VideoDecodeError(segment.name, "video", f"no frame from {segment.start:.2f} s on")
        for _ in range(len(times) - done):
            yield shown


def _filling(picture: Picture, height: int, width: int) -> np.ndarray:
    """The middle of a picture, scaled until it fills the frame."""
    scale = max(height / picture.height, width / picture.width)
    h, w = max(height, round(picture.height * scale)), max(width, round(picture.width * scale))
    top, left = (h - height) // 2, (w - width) // 2
    return np.ascontiguousarray(picture.scaled(h, w)[top : top + height, left : left + width])


# ---------------------------------------------------------------------------------------------------------- overlays


def overlay(
    needle: Needle, planned: Planned, settings: Settings, pictures: Pictures, height: int, width: int
) -> Overlay:
    """What draws a needle.

    Args:
        needle: what, and on which frames (first..last).
        planned: the video; with the settings' seed it gives the draws.
        settings: whether needles stand still or move.
        pictures: those of the benchmark.
        height, width: of the frames.

    Returns:
        Called with a frame, which it changes, and the frame's number.
    """
    moves = settings.needle == "clip"
    rng = np.random.default_rng([settings.seed, planned.number, needle.first])
    if needle.how == "subtitle":
        return partial(_spelled if moves else _subtitle, needle)
    if needle.how == "page":
        page = pictures.page(needle.kind, needle.text, height, width, rng)
        return partial(_passing if moves else _page, needle, page)
    side = max(8, round(STICKER * min(height, width)))
    sticker = np.asarray(pictures.sticker(needle.kind, needle.text, side), np.float32)
    return partial(_crossing if moves else _stickers, needle, sticker)


def _page(needle: Needle, page: np.ndarray, frame: np.ndarray, number: int) -> None:
    frame[:] = page


def _passing(needle: Needle, page: np.ndarray, frame: np.ndarray, number: int) -> None:
    """The picture behind a wall with a window in it that goes from left to right: no frame shows all of it."""
    width = frame.shape[1]
    opening = max(1, round(WINDOW * width))
    left = round(_progress(needle, number) * (width - opening))
    frame[:] = 96
    frame[:, left : left + opening] = page[:, left : left + opening]


def _stickers(needle: Needle, sticker: np.ndarray, frame: np.ndarray, number: int) -> None:
    for across, down in needle.places:
        blend(frame, sticker, round(down * frame.shape[0]), round(across * frame.shape[1]))


def _crossing(needle: Needle, sticker: np.ndarray, frame: np.ndarray, number: int) -> None:
    """The things of a section one by one, each from the left to the right edge: no frame shows how many they are."""
    at = min(_progress(needle, number), 1 - 1e-9) * len(needle.places)
    _, down = needle.places[int(at)]
    across = at - int(at)
    half = sticker.shape[1] // 2
    blend(frame, sticker, round(down * frame.shape[0]), round(half + across * (frame.shape[1] - 2 * half)))


def _subtitle(needle: Needle, frame: np.ndarray, number: int) -> None:
    _written(frame, needle.text)


def _spelled(needle: Needle, frame: np.ndarray, number: int) -> None:
    """One letter of the word after the other, in its place: no frame shows the word."""
    before, _, word = needle.text.rpartition(" ")
    at = min(int(_progress(needle, number) * len(word)), len(word) - 1)
    _written(frame, f"{before} " + "".join(c if i == at else "_" for i, c in enumerate(word)))


def _written(frame: np.ndarray, text: str) -> None:
    """Text on a dark band in the lower third, as large whatever the word. Where a line has no room its last word stands
    alone."""
    height, width, _ = frame.shape
    before, _, word = text.rpartition(" ")
    longest = "M" * max(map(len, NAMES))
    if letters(f"{before} {longest}", 1).shape[1] > 0.94 * width:
        text = word
    else:
        longest = f"{before} {longest}"
    factor = max(1, min(height // 64, int(0.94 * width) // letters(longest, 1).shape[1]))
    drawn = letters(text, factor)
    rows, columns = min(drawn.shape[0], height), min(drawn.shape[1], width)
    top, left = min(round(0.76 * height), height - rows), (width - columns) // 2
    frame[top : top + rows, left : left + columns] = drawn[:rows, :columns, None].astype(np.uint8)


def _progress(needle: Needle, number: int) -> float:
    """0 at the needle's first frame, 1 at its last."""
    return (number - needle.first) / max(1, needle.last - needle.first)


def blend(frame: np.ndarray, sticker: np.ndarray, y: int, x: int) -> None:
    """Paste float32 RGBA [h, w, 4] onto uint8 ``frame`` with its middle at (x, y), cutting off what lies outside."""
    h, w, _ = sticker.shape
    top, left = y - h // 2, x - w // 2
    y0, x0, y1, x1 = max(0, top), max(0, left), min(frame.shape[0], top + h), min(frame.shape[1], left + w)
    part = sticker[y0 - top : y1 - top, x0 - left : x1 - left]
    under = frame[y0:y1, x0:x1].astype(np.float32)
    frame[y0:y1, x0:x1] = under + (part[..., :3] - under) * (part[..., 3:] / 255) + 0.5
