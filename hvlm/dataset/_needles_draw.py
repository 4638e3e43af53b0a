"""From a scene to pixels, and from pixels to H.264.

Shapes are drawn once at eight times the resolution, averaged down and pasted at whole pixels. Colours are chosen to
survive 4:2:0 chroma at 64 pixels: each stays nearest to its own name after encoding.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from PIL import Image, ImageDraw, ImageFont

from hvlm.dataset._needles_scene import WORDS, Needle, Recipe, Scene

PALETTE = {
    "red": (235, 30, 30),
    "green": (30, 205, 45),
    "blue": (40, 60, 240),
    "yellow": (250, 230, 30),
    "magenta": (235, 40, 220),
    "cyan": (30, 220, 235),
}
OUTLINE = 1.0  # pixels in a frame of 64
SUPERSAMPLE = 8

_STAR = [(r * np.sin(a), -r * np.cos(a)) for a, r in zip(np.arange(10) * np.pi / 5, [1.0, 0.46] * 5, strict=True)]
_BAR = 0.34  # half width of the bars of plus and cross
_PLUS = [(-_BAR, -1), (_BAR, -1), (_BAR, -_BAR), (1, -_BAR), (1, _BAR), (_BAR, _BAR)]
_PLUS += [(-x, -y) for x, y in _PLUS]
_TURN = np.sqrt(0.5)
POLYGONS = {  # corners in units of the radius; circle and ring are drawn as such
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0, -1.0), (0.95, 0.75), (-0.95, 0.75)],
    "diamond": [(0, -1.0), (0.72, 0), (0, 1.0), (-0.72, 0)],
    "star": _STAR,
    "plus": _PLUS,
    "cross": [((x - y) * _TURN, (x + y) * _TURN) for x, y in _PLUS],
}
RING_HOLE = 0.38


# ------------------------------------------------------------------------------------------------------------ shapes


@lru_cache(maxsize=1024)
def sprite(shape: str, colour: str, r: float, line: float) -> tuple[np.ndarray, np.ndarray]:
    """float32 (rgb [n, n, 3], alpha [n, n, 1]) with the centre on the middle pixel; ``line``: outline width, 0 = none.

    ``r`` is the radius of the coloured part; the outline lies outside it.
    """
    half = int(np.ceil(r + line)) + 1
    n = 2 * half + 1
    centre, reach, width = n * SUPERSAMPLE / 2, r * SUPERSAMPLE, line * SUPERSAMPLE
    fill, stroke = (Image.new("L", (n * SUPERSAMPLE,) * 2) for _ in range(2))
    if shape in ("circle", "ring"):
        hole = RING_HOLE * reach if shape == "ring" else 0.0
        _annulus(fill, centre, hole, reach)
        _annulus(stroke, centre, hole - width, reach + width)
    else:
        corners = [(centre + x * reach, centre + y * reach) for x, y in POLYGONS[shape]]
        ImageDraw.Draw(fill).polygon(corners, fill=255)
        # The first side once more, so that every corner is a joint of the line and comes out round.
        ImageDraw.Draw(stroke).line(corners + corners[:2], fill=255, width=round(2 * width), joint="curve")
    inside = _average(fill, n)
    alpha = np.maximum(inside, _average(stroke, n)) if line else inside
    share = inside / np.maximum(alpha, 1e-6)  # of the colour; what is left is outline, that is black
    return np.asarray(PALETTE[colour], np.float32) * share, alpha


def _annulus(image: Image.Image, centre: float, inner: float, outer: float) -> None:
    draw = ImageDraw.Draw(image)
    draw.ellipse([centre - outer, centre - outer, centre + outer, centre + outer], fill=255)
    if inner > 0:
        draw.ellipse([centre - inner, centre - inner, centre + inner, centre + inner], fill=0)


def _average(image: Image.Image, n: int) -> np.ndarray:
    pixels = np.asarray(image, np.float32).reshape(n, SUPERSAMPLE, n, SUPERSAMPLE)
    return pixels.mean((1, 3))[..., None] / 255


def paste(frame: np.ndarray, x: int, y: int, rgb: np.ndarray, alpha: np.ndarray) -> None:
    """Blend into float32 ``frame`` with the centre at (x, y), cutting off what lies outside."""
    half, (height, width, _) = len(rgb) // 2, frame.shape
    top, left = max(0, half - y), max(0, half - x)
    rgb, alpha = (part[top : half + height - y, left : half + width - x] for part in (rgb, alpha))
    area = frame[y - half + top :, x - half + left :][: rgb.shape[0], : rgb.shape[1]]
    area += (rgb - area) * alpha


# ----------------------------------------------------------------------------------------------------------- domains


def dress(rng: np.random.Generator, name: str, frames: np.ndarray, scale: float) -> None:
    """Dress float32 [T, S, S, 3] background as a domain, in place. Part of the haystack stays in sight in each."""
    if name == "general":
        return
    size = frames.shape[1]
    layer = Image.new("RGBA", (size, size))
    draw = ImageDraw.Draw(layer)
    wobble = rng.integers(-2, 3, 4)

    def box(left: float, top: float, right: float, bottom: float, fill: tuple[int, ...]) -> None:
        right, bottom = max(left, right - 1 / scale), max(top, bottom - 1 / scale)  # one pixel at least
        draw.rectangle([v * scale for v in (left, top, right, bottom)], fill=fill)

    if name == "sports":
        _pitch(draw, box, wobble, scale)
    elif name == "tutorials":
        _whiteboard(box, wobble, rng)
    else:
        _studio(box, wobble)
    pixels = np.asarray(layer, np.float32)
    frames += (pixels[..., :3] - frames) * (pixels[..., 3:] / 255)
    if name == "news":
        _ticker(rng, frames, scale)


def _pitch(draw: ImageDraw.ImageDraw, box, wobble: np.ndarray, scale: float) -> None:
    horizon = 18 + wobble[0]
    for i in range(6):  # mown stripes
        left = i * 12 + wobble[1] - 2
        box(left, horizon, left + 12, 64, (56, 112, 50, 215) if i % 2 else (70, 130, 58, 215))
    white = (235, 240, 235, 235)
    box(0, horizon, 64, horizon + 1.5, white)
    box(31 + wobble[2], horizon, 32.5 + wobble[2], 64, white)
    x, y = 32 + wobble[2], 44 + wobble[3]
    draw.ellipse([v * scale for v in (x - 11, y - 9, x + 11, y + 9)], outline=white, width=max(1, round(scale)))
    box(3, 3, 29, 11, (15, 15, 20, 255))  # the scoreboard
    for left in (5, 11, 19, 24):
        box(left, 5, left + 3, 9, (240, 240, 240, 255))


def _whiteboard(box, wobble: np.ndarray, rng: np.random.Generator) -> None:
    left, top, right, bottom = np.array([5, 5, 59, 54]) + wobble
    box(left - 2, top - 2, right + 2, bottom + 2, (120, 85, 55, 255))
    box(left, top, right, bottom, (240, 240, 236, 235))
    for i in range(4):  # lines of writing
        end = left + 6 + rng.integers(10, 40)
        box(left + 4, top + 8 + 11 * i, min(end, right - 3), top + 9.5 + 11 * i, (150, 155, 165, 255))
    box(left + 10, bottom + 2, left + 24, bottom + 4, (200, 200, 200, 255))  # the tray


def _studio(box, wobble: np.ndarray) -> None:
    navy = (18, 26, 74, 235)
    box(0, 0, 7 + wobble[0], 64, navy)
    box(57 + wobble[1], 0, 64, 64, navy)
    box(0, 0, 64, 5, navy)
    box(7 + wobble[0], 5, 57 + wobble[1], 6, (150, 165, 215, 255))
    box(0, 47, 64, 56, (24, 34, 96, 255))  # the lower third
    box(3, 48.5, 17, 54.5, (225, 228, 240, 255))
    box(0, 56, 64, 64, (228, 230, 236, 255))  # the ticker's paper


def _ticker(rng: np.random.Generator, frames: np.ndarray, scale: float) -> None:
    """Dark dashes that run to the left along the bottom, in place of letters that a question could be about."""
    size = frames.shape[1]
    row = np.kron(rng.random(32) < 0.6, np.ones(size // 16, bool))  # twice as long as the frame, so that it can wrap
    top, bottom = round(58.5 * scale), round(61.5 * scale)
    for i, frame in enumerate(frames):
        dashes = np.roll(row, -round(i * 1.5 * scale))[:size]
        frame[top:bottom][:, dashes] = (40, 44, 60)


# ------------------------------------------------------------------------------------------------------------- frames


def render(scene: Scene, background: np.ndarray, pictures: list[np.ndarray], rng: np.random.Generator, recipe: Recipe):
    """uint8 [frames, size, size, 3]. ``pictures``: one uint8 [size, size, 3] per "scene" needle, in order."""
    frames = background.astype(np.float32)
    line = OUTLINE * recipe.scale if recipe.outline else 0.0
    dress(rng, scene.domain, frames, recipe.scale)
    for thing in scene.objects:
        image = sprite(thing.shape, thing.colour, thing.r, line)
        for frame, (x, y) in zip(frames, thing.track.tolist(), strict=True):
            paste(frame, x, y, *image)
    for flash in scene.flashes:  # after the objects: never hidden
        paste(frames[flash.frame], flash.x, flash.y, *sprite(flash.shape, flash.colour, flash.r, line))
    left = iter(pictures)
    for needle in scene.needles:
        _insert(needle, frames[needle.first : needle.last + 1], left, line)
    return (frames + 0.5).astype(np.uint8)  # blending never leaves 0..255


def _insert(needle: Needle, frames: np.ndarray, pictures, line: float) -> None:
    if needle.kind == "subtitle":
        _subtitle(needle.word, frames)
        return
    if needle.kind == "plain":
        frames[:] = 232
    elif needle.kind == "scene":
        frames[:] = next(pictures)
    for frame in frames:
        paste(frame, needle.x, needle.y, *sprite(needle.shape, needle.colour, needle.r, line))


@lru_cache(maxsize=256)
def letters(word: str, factor: int) -> np.ndarray:
    """float32 [height, width]: 255 on black, from Pillow's bitmap font, enlarged by a whole factor."""
    font = ImageFont.load_default_imagefont()
    left, top, right, bottom = font.getbbox(word)
    image = Image.new("L", (right - left + 4, bottom - top + 2))
    ImageDraw.Draw(image).text((2 - left, 1 - top), word, fill=255, font=font)
    return np.kron(np.asarray(image, np.float32), np.ones((factor, factor), np.float32))


def _subtitle(word: str, frames: np.ndarray) -> None:
    drawn, top, left = _subtitle_at(word, frames.shape[1])
    height, width = drawn.shape
    frames[:, top : top + height, left : left + width] = drawn[None, :, :, None]


def _subtitle_at(word: str, size: int) -> tuple[np.ndarray, int, int]:
    """(its letters, top, left) in a frame of ``size``, in pixels."""
    drawn = letters(word, max(1, size // 64))
    return drawn, round(0.7 * size), (size - drawn.shape[1]) // 2


def least_size_of_subtitles() -> int:
    """The smallest even frame into which each word fits; it does into every larger one."""

    def fits(size: int) -> bool:
        places = [_subtitle_at(word, size) for word in WORDS]
        return all(top + len(drawn) <= size and left >= 0 for drawn, top, left in places)

    return next(size for size in range(2, 1025, 2) if fits(size))


def encode(frames: np.ndarray, recipe: Recipe) -> bytes:
    """uint8 [frames, size, size, 3] as a video; see ``h264``."""
    return h264(frames, recipe.fps, recipe.size, recipe.size, recipe.crf)


def h264(frames: Iterable[np.ndarray], fps: float, height: int, width: int, crf: int) -> bytes:
    """Frames, uint8 [height, width, 3] each, as H.264 in mp4. The bytes are a function of the pixels alone.

    One thread, because x264's output depends on the number; no B-frames, so that time stamps start at zero for every
    decoder; no encoder settings in the stream (units of type 6) and no version in the container.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"crf": str(crf), "preset": "veryfast", "bf": "0"}
        packets = [p for frame in frames for p in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))]
        packets += stream.encode()
        cleaner = BitStreamFilterContext("filter_units=remove_types=6", stream)
        for packet in packets:
            container.mux(cleaner.filter(packet))
    return buffer.getvalue()
