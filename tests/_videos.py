"""Videos of every kind whose frames carry their number, written with PyAV, and a plain reading of them to compare."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np

HEIGHT, WIDTH = 64, 96
CORNERS = {"top left": (220, 30, 30), "top right": (30, 200, 30), "bottom left": (30, 30, 220)}


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 [height, width, 3]: ten blocks are the number's bits, and three corners have their colour."""
    image = np.full((height, width, 3), 128, np.uint8)
    for bit in range(10):
        at = slice(bit * (width // 10), (bit + 1) * (width // 10))
        image[height // 4 : 3 * height // 4, at] = 235 if number >> bit & 1 else 20
    image[: height // 4, : width // 2] = CORNERS["top left"]
    image[: height // 4, width // 2 :] = CORNERS["top right"]
    image[3 * height // 4 :, : width // 2] = CORNERS["bottom left"]
    return image


def number_of(image: np.ndarray) -> int:
    """The number of an upright [H, W, 3] picture of any size."""
    height, width = image.shape[:2]
    block = width // 10 if width % WIDTH else WIDTH // 10 * width // WIDTH
    middle = image[3 * height // 8 : 5 * height // 8]
    bits = [middle[:, int((bit + 0.25) * block) : int((bit + 0.75) * block) + 1].mean() > 128 for bit in range(10)]
    return sum(1 << bit for bit, on in enumerate(bits) if on)


def numbers(frames: np.ndarray) -> list[int]:
    """Of uint8 [T, 3, H, W]."""
    return [number_of(frame) for frame in frames.transpose(0, 2, 3, 1)]


def video(
    count: int = 60,
    *,
    container: str = "mp4",
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    file_options: dict[str, str] | None = None,
    fps: int = 10,
    pts: Sequence[int] | None = None,
    first: int = 0,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    aspect: Fraction | None = None,
    pixels: str = "yuv420p",
) -> bytes:
    """``count`` numbered frames; ``pts`` in frames, for a variable frame rate."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=file_options or {}) as file:
        stream = file.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.thread_count = 1
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(first + i, *size), format="rgb24")
            frame.pts, frame.time_base = (i if pts is None else pts[i]), Fraction(1, fps)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def remuxed(
    source: bytes,
    container: str,
    change: Callable[[int, av.Packet], av.Packet | None] = lambda i, packet: packet,
    options: dict[str, str] | None = None,
) -> bytes:
    """The packets of a video (changed, or left out) in another container."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(source)) as old, av.open(buffer, "w", format=container, options=options or {}) as new:
        given = old.streams.video[0]
        stream = new.add_stream_from_template(given)
        for i, packet in enumerate(p for p in old.demux(given) if p.size):
            changed = change(i, packet)
            if changed is not None:
                changed.stream = stream
                new.mux(changed)
    return buffer.getvalue()


def cut(source: bytes, frame: int, container: str = "mp4") -> bytes:
    """From a frame on by stream copy: the frames before it, back to a key frame, stay in the file and are hidden."""
    with av.open(io.BytesIO(source)) as file:
        stream = file.streams.video[0]
        packets = [p for p in file.demux(stream) if p.size]
    start = sorted(p.pts for p in packets)[frame]
    keys = [i for i, p in enumerate(packets) if p.is_keyframe and p.pts <= start]

    def change(i: int, packet: av.Packet) -> av.Packet | None:
        packet.pts, packet.dts = packet.pts - start, packet.dts - start
        return packet if i >= keys[-1] else None

    return remuxed(source, container, change)


def with_matrix(source: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An mp4 with this display matrix in its track header."""
    at = source.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return source[:at] + matrix + source[at + 36 :]


def reference(source: bytes, stream: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Everything decoded from the beginning, sorted by time stamp: frames as stored, and seconds from the first."""
    with av.open(io.BytesIO(source)) as file:
        decoded = [f for f in file.decode(file.streams.video[stream]) if f.pts is not None]
        tick = float(file.streams.video[stream].time_base)
    decoded.sort(key=lambda frame: frame.pts)
    seconds = np.array([(frame.pts - decoded[0].pts) * tick for frame in decoded])
    return [frame.to_ndarray(format="rgb24") for frame in decoded], seconds
