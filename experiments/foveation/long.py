"""What does a long clip cost? Time and memory of coarse→fine over 64 to 1,024 frames of 224 pixels, without gradients.

    python -m experiments.foveation.long [--frames 64 256 1024]

FoveatedVLM at the size of fVLM-135M with random weights (cost does not depend on them), bfloat16 autocast where the
processor has it. Each length runs in a process of its own. Memory: the highest resident set during the forward pass
minus that before it, when weights, frames and a first short clip were already there. Adds to results.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from experiments.memory import peak_since, start_peak
from hvlm import FoveatedVLM
from hvlm.evaluation import results
from hvlm.precision import has_fast_bf16

HERE = Path(__file__).parent
COMMAND = "python -m experiments.foveation.long"
FRAMES_AT_ONCE = 64
WORDS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    records = []
    for frames in options.frames:
        done = subprocess.run([sys.executable, "-m", "experiments.foveation.long", "--one", str(frames)], check=True,
                              capture_output=True, text=True)  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        seconds, peak = found["seconds"], found["peak_mb"]
        print(f"{frames:5d} frames: {seconds:7.1f} s, {peak:6.0f} MB beyond weights and frames", flush=True)
        columns = {"frames": frames, "frames_at_once": FRAMES_AT_ONCE, "threads": torch.get_num_threads()}
        for metric, value in (("latency_ms", 1e3 * seconds), ("peak_mb", peak)):
            records.append(
                results.make(
                    "foveation",
                    "long_coarse_fine",
                    metric,
                    value,
                    stderr=None,
                    n=1,
                    chance=None,
                    seeds=[0],
                    seconds=seconds,
                    command=COMMAND,
                    columns=columns,
                )  # fmt: skip
            )
    results.update(HERE / "results.json", records)


@torch.inference_mode()
def measure(frames: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = FoveatedVLM(pretrained=False, frames_at_once=FRAMES_AT_ONCE).eval()
    ids = torch.randint(0, 49152, (1, WORDS))
    clip = torch.randint(0, 256, (1, frames, 3, 224, 224), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16()):
        model(clip[:, :2], ids, torch.ones_like(ids))
        before, started = start_peak(), time.monotonic()
        model(clip, ids, torch.ones_like(ids))
    return {"seconds": time.monotonic() - started, "peak_mb": peak_since(before)}


if __name__ == "__main__":
    main()
