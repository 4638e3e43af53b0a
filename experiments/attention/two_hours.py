"""Two hours of video at one frame a second through cross-memory: does its memory stay as it is?

    python -m experiments.attention.two_hours [--frames 450 1800 7200]

Frames of the haystack's clips, over and over (64 pixels, 16 patches a frame), go frame by frame through an encoder and
segment by segment through ``CrossMemoryRoom``: what a stream does. For every update rule and length, a process of its
own: highest resident memory beyond that before the first frame, seconds, and the bytes of the memory tokens. Adds to
results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from experiments.memory import peak_since, start_peak
from hvlm.attention.cross_memory import UPDATES, CrossMemoryRoom
from hvlm.data.decode import frames_of
from hvlm.dataset._haystack import find_videos
from hvlm.evaluation import results
from hvlm.vision.convvit import ConvViT

HERE = Path(__file__).parent
COMMAND = "python -m experiments.attention.two_hours"
FRAMES_A_SEGMENT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[450, 1800, 7200])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    records = []
    for update in UPDATES:
        for frames in options.frames:
            command = [sys.executable, "-m", "experiments.attention.two_hours", "--one", update, str(frames)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{update:6s} {frames:5d} frames", {k: round(v, 2) for k, v in found.items()}, flush=True)
            records += [
                results.make("attention", f"cross_memory_{update}", metric, value, stderr=None, n=1, chance=None,
                             seeds=[0], seconds=found["stream_seconds"], command=COMMAND, columns={"frames": frames})
                for metric, value in found.items()
            ]  # fmt: skip
    results.update(HERE / "results.json", records)


@torch.inference_mode()
def measure(update: str, frames: int) -> dict[str, float]:
    torch.manual_seed(0)
    encoder = ConvViT().eval()
    room = CrossMemoryRoom(segment=16 * FRAMES_A_SEGMENT, update=update, dim=128, num_heads=4).eval()
    stream, memory = endless(), room.new_memory(torch.zeros(1, 1, 128))
    real = torch.ones(1, 16 * FRAMES_A_SEGMENT, dtype=torch.bool)

    def segment() -> None:
        nonlocal memory
        clip = torch.from_numpy(np.stack([next(stream) for _ in range(FRAMES_A_SEGMENT)]))[None]
        time_BT, mask_BT = torch.zeros(1, FRAMES_A_SEGMENT), torch.ones(1, FRAMES_A_SEGMENT, dtype=torch.bool)
        tokens = encoder.encode(clip, time_BT, mask_BT).tokens
        _, memory = room.step(tokens.x_BSD, real, memory)

    for _ in range(4):  # the memory is full, and everything has been allocated once
        segment()
    before, started = start_peak(), time.monotonic()
    for _ in range(frames // FRAMES_A_SEGMENT):
        segment()
    return {
        "peak_mb": peak_since(before),
        "stream_seconds": time.monotonic() - started,
        "memory_bytes": memory.x_BMD.numel() * memory.x_BMD.element_size(),
    }


def endless() -> Iterator[np.ndarray]:
    """Frames of the haystack's clips at one a second, uint8 [3, 64, 64], round and round."""
    each = [frames_of(video.path, 1.0, (64, 64)) for video in find_videos(None)]
    return cycle([np.ascontiguousarray(frame) for clip in each for frame, _ in clip])


if __name__ == "__main__":
    main()
