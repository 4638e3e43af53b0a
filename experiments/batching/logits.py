"""How much memory does a training step on captions of 512 tokens need, beside weights, gradients and optimiser?

    python -m experiments.batching.logits [--rows 4] [--tokens 512] [--repeats 3]

SmolLM2-135M with random weights in float32, every token scored, one thread. ``plain`` is the plain loop: transformers'
model asked for its loss, ``backward``, AdamW. ``torch`` is the same with torch's ``linear_cross_entropy`` in chunks.
The others are hvlm's language room and text head by ``head.logits_mb`` (``null``: all logits at once);
``_checkpoints`` is with ``gradient_checkpointing`` in either. A step's peak is how far the high-water mark of resident
memory rises above what stands when weights, gradients and both states of AdamW are there; ``whole_mb`` has these, too.
Seconds are processor time, medians. ``difference`` is the largest one of loss and gradients to ``plain``, by the
largest gradient.

Adds to results.json beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.memory import peak_since, start_peak
from hvlm.evaluation import results
from hvlm.head.text import TextHead
from hvlm.language.smollm2 import SmolLM2
from hvlm.types import Batch, Sequence

HERE = Path(__file__).parent
COMMAND = "python -m experiments.batching.logits"
VOCABULARY = 49_152
PARTS = {"null": None, "256": 256, "64": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = torch.randint(VOCABULARY, (options.rows, options.tokens))
    room = SmolLM2(None, vocab_size=VOCABULARY)
    parameters = list(room.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)  # the same weights in all steps
    fixed = 4 * 4 * sum(p.numel() for p in parameters) / 2**20
    records, wanted = [], None
    for checkpoints in (False, True):
        for name, loss in losses(room, ids, checkpoints).items():
            seconds, peaks, found = measured(loss, optimizer, options.repeats)
            wanted = found if wanted is None else wanted
            values = {
                "step_cpu_s": statistics.median(seconds),
                "peak_mb": max(peaks),
                "whole_mb": max(peaks) + fixed,
                "difference": max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)),
            }
            values["difference"] /= max(float(g.abs().max()) for g in wanted[1:])
            variant = name + "_checkpoints" * checkpoints
            print(f"{variant:20s} " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
            columns = {"rows": options.rows, "tokens": options.tokens}
            records += [
                results.make("logits", variant, metric, value, stderr=None, n=options.repeats, chance=None, seeds=[0],
                             seconds=sum(seconds), command=COMMAND, columns=columns)
                for metric, value in values.items()
            ]  # fmt: skip
    results.update(HERE / "results.json", records)


def losses(room: SmolLM2, ids: Tensor, checkpoints: bool) -> dict[str, Callable[[], Tensor]]:
    """{variant: the mean loss of a pass}."""
    model = room.model
    getattr(model, f"gradient_checkpointing_{'enable' if checkpoints else 'disable'}")(
        **({"gradient_checkpointing_kwargs": {"use_reentrant": False}} if checkpoints else {})
    )
    room.train()
    rows, length = ids.shape
    mask = torch.ones_like(ids, dtype=torch.bool)
    learned = mask.clone()
    learned[:, 0] = False
    nothing = torch.zeros(rows, dtype=torch.int64)
    batch = Batch(
        torch.zeros(rows, 1, 3, 1, 1, dtype=torch.uint8), torch.zeros(rows, 1), torch.zeros(rows, 1, dtype=torch.bool),
        ids, mask, learned, torch.arange(rows), nothing,
    )  # fmt: skip

    def plain() -> Tensor:
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    def fused() -> Tensor:
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        options = torch.nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(
            states.reshape(-1, room.dim), model.lm_head.weight, ids[:, 1:].reshape(-1), options=options
        )

    def ours(logits_mb: int | None) -> Tensor:
        head = TextHead(logits=room.logits, logits_mb=logits_mb)
        x = room.embed(ids)
        total, count, _ = head.loss(head(room.hidden(x, mask), Sequence(x, mask, 0, batch=batch)), batch)
        return total / count

    return {"plain": plain, "torch": fused} | {name: lambda mb=mb: ours(mb) for name, mb in PARTS.items()}


def measured(
    loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, repeats: int
) -> tuple[list[float], list[float], list[Tensor]]:
    """(CPU seconds and peaks in MB of every step, loss and gradients); after one step that makes what stays."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    seconds, peaks = [], []
    for i in range(repeats + 1):
        before = start_peak()
        started = time.process_time()
        for p in parameters:
            if p.grad is not None:
                p.grad.zero_()
        value = loss()
        value.backward()
        optimizer.step()
        if i:
            seconds.append(time.process_time() - started)
            peaks.append(peak_since(before))
    return seconds, peaks, [value.detach(), *(p.grad.clone() for p in parameters)]


if __name__ == "__main__":
    main()
