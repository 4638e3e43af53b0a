"""What does an answer cost at full size: one token a frame against one, or 256, a patch?

    python -m experiments.foveation.cost [--frames 8 32]

DINOv2-small and SmolLM2-135M with random weights (cost does not depend on them), 224 pixels, a question of 32 tokens:
operations, time and bytes of keys and values, one process for each connector and length. Adds to results.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from hvlm.adapter.none import NoAdapter
from hvlm.attention.none import NoAttention
from hvlm.connector.foveated import Foveated
from hvlm.connector.mean import Mean
from hvlm.connector.patches import DensePatches
from hvlm.evaluation import results
from hvlm.evaluation.cost import cost_of
from hvlm.fusion.none import NoFusion
from hvlm.head.text import TextHead
from hvlm.kvcache.full import FullCache
from hvlm.language.smollm2 import SmolLM2
from hvlm.merger.none import NoMerger
from hvlm.model import VLM
from hvlm.precision import has_fast_bf16
from hvlm.types import Batch
from hvlm.vision.dinov2 import Dinov2

HERE = Path(__file__).parent
COMMAND = "python -m experiments.foveation.cost"
WORDS, VOCABULARY = 32, 49152
CONNECTORS = ("coarse_fine", "static", "mean", "dense")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    records = []
    for frames in options.frames:
        for name in CONNECTORS:
            done = subprocess.run([sys.executable, "-m", "experiments.foveation.cost", "--one", name, str(frames)],
                                  check=True, capture_output=True, text=True)  # fmt: skip
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{name:12s} {frames:3d} frames", {k: f"{v:.4g}" for k, v in found.items()}, flush=True)
            columns = {"frames": frames, "size": "135m", "threads": torch.get_num_threads()}
            records += [
                results.make("foveation", name, metric, value, stderr=None, n=1, chance=None, seeds=[0],
                             seconds=found["latency_ms"] / 1e3, command=COMMAND, columns=columns)
                for metric, value in found.items()
            ]  # fmt: skip
    results.update(HERE / "results.json", records)


def measure(name: str, frames: int) -> dict[str, float]:
    torch.manual_seed(0)
    vision = Dinov2(frames_at_once=64)
    language = SmolLM2(None, vocab_size=VOCABULARY)
    widths = {"dim": vision.dim, "text_dim": language.dim}
    connector = {
        "coarse_fine": lambda: Foveated("coarse_fine", query_dim=vision.query_dim, **widths),
        "static": lambda: Foveated("coarse", query_dim=vision.query_dim, **widths),
        "mean": lambda: Mean(**widths),
        "dense": lambda: DensePatches(grid=vision.grid(224, 224), **widths),
    }[name]()
    model = VLM(
        vision=vision,
        merger=NoMerger(),
        connector=connector,
        attention=NoAttention(),
        fusion=NoFusion(),
        language=language,
        adapter=NoAdapter(),
        kvcache=FullCache(**language.cache_sizes),
        head=TextHead(logits=language.logits),
        order="question_first",
    )
    ids = torch.randint(0, VOCABULARY, (1, WORDS))
    real = torch.ones(1, WORDS, dtype=torch.bool)
    last = torch.arange(WORDS) == WORDS - 1
    batch = Batch(
        torch.randint(0, 256, (1, frames, 3, 224, 224), dtype=torch.uint8),
        torch.arange(float(frames))[None],
        torch.ones(1, frames, dtype=torch.bool),
        ids, real, last[None], torch.zeros(1, dtype=torch.long), torch.full((1,), WORDS // 2),
    )  # fmt: skip
    precision = "bf16-mixed" if has_fast_bf16() else "32-true"
    return cost_of(model, batch, precision, repeats=3)._asdict()


if __name__ == "__main__":
    main()
