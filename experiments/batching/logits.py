"""How much memory does a training step on captions of 512 tokens need, beside weights, gradients and optimiser?

    python -m experiments.batching.logits [--rows 2] [--tokens 512] [--repeats 1] [--only plain null 64 ...]

SmolLM2-135M with random weights in float32, every token scored, one thread; each case in a process of its own.
``plain`` is the plain loop: transformers' model asked for its loss, ``backward``, AdamW. The others are hvlm's language
room and text head by ``head.logits_mb`` (``null``: all logits at once). ``_checkpoints`` is with
``gradient_checkpointing`` in either. A step's peak is how far the high-water mark of resident memory rises above what
stands when weights, gradients and both states of AdamW are there; ``whole_mb`` has these, too. Seconds are processor
time.

Adds to results.json beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from experiments.memory import peak_since, start_peak
from hvlm.evaluation import results
from hvlm.head.text import TextHead
from hvlm.language.smollm2 import SmolLM2
from hvlm.types import Batch, Sequence

HERE = Path(__file__).parent
COMMAND = "python -m experiments.batching.logits"
VOCABULARY = 49_152
PARTS = ("null", "64", "16")
CASES = tuple(f"{name}{kept}" for kept in ("", "_checkpoints") for name in ("plain", *PARTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    options = parser.parse_args()
    if len(options.only) > 1:
        for case in options.only:
            sizes = (f"--{name}={getattr(options, name)}" for name in ("rows", "tokens", "repeats"))
            subprocess.run([sys.executable, "-m", "experiments.batching.logits", *sizes, "--only", case], check=True)
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (case,) = options.only
    name, _, checkpoints = case.partition("_")
    room = SmolLM2(None, vocab_size=VOCABULARY, gradient_checkpointing=bool(checkpoints)).train()
    parameters = list(room.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.0)
    step(optimizer, plain(room, torch.randint(VOCABULARY, (1, 4))))  # now gradients and states stand
    ids = torch.randint(VOCABULARY, (options.rows, options.tokens))
    loss = plain(room, ids) if name == "plain" else ours(room, ids, None if name == "null" else int(name))
    seconds, peaks = [], []
    for _ in range(options.repeats):
        before, started = start_peak(), time.process_time()
        step(optimizer, loss)
        seconds.append(time.process_time() - started)
        peaks.append(peak_since(before))
    stands = 4 * 4 * sum(p.numel() for p in parameters) / 2**20
    values = {"step_cpu_s": statistics.median(seconds), "peak_mb": max(peaks), "whole_mb": max(peaks) + stands}
    print(f"{case:20s} " + "  ".join(f"{metric} {value:.4g}" for metric, value in values.items()), flush=True)
    columns = {"rows": options.rows, "tokens": options.tokens}
    results.update(HERE / "results.json", [
        results.make("logits", case, metric, value, stderr=None, n=options.repeats, chance=None, seeds=[0],
                     seconds=sum(seconds), command=f"{COMMAND} --only {case}", columns=columns)
        for metric, value in values.items()
    ])  # fmt: skip


def step(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    optimizer.zero_grad(set_to_none=False)
    loss().backward()
    optimizer.step()


def plain(room: SmolLM2, ids: Tensor) -> Callable[[], Tensor]:
    return lambda: room.model(input_ids=ids, labels=ids, use_cache=False).loss


def ours(room: SmolLM2, ids: Tensor, logits_mb: int | None) -> Callable[[], Tensor]:
    head = TextHead(logits=room.logits, logits_mb=logits_mb)
    rows, mask = len(ids), torch.ones_like(ids, dtype=torch.bool)
    learned = mask.clone()
    learned[:, 0] = False
    batch = Batch(
        torch.zeros(rows, 1, 3, 1, 1, dtype=torch.uint8), torch.zeros(rows, 1), torch.zeros(rows, 1, dtype=torch.bool),
        ids, mask, learned, torch.arange(rows), torch.zeros(rows, dtype=torch.int64),
    )  # fmt: skip

    def loss() -> Tensor:
        x = room.embed(ids)
        total, count, _ = head.loss(head(room.hidden(x, mask), Sequence(x, mask, 0, batch=batch)), batch)
        return total / count

    return loss


if __name__ == "__main__":
    main()
