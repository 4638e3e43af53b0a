"""What does sparse fusion cost beside dense fusion, as the video grows?

    python -m experiments.hivilt.speed [--tokens 1024 4096 16384]

The whole room (text layers, local and global fusion) at width 128 with 4 heads, 32 words, 16 keys a query: ``hivilt``,
``sparse`` with ``update=chosen`` and with ``update=all``. Forward alone and forward with backward: processor time
(medians, taken in turn) and how far the memory's high-water mark rises. ``floor`` is a copy of the visual tokens, which
nothing that gives all of them back can go below. ``difference`` is the largest one to dense, of figures and of
gradients of the tokens, with keys enough for all, computed both ways (masked, and only what is chosen).

float32, one thread. Adds to speed.json beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.memory import peak_since, start_peak
from experiments.timing import timed
from hvlm.evaluation import results
from hvlm.fusion._base import FusingRoom
from hvlm.fusion._local import LocalFusion
from hvlm.fusion.hivilt import HiViLT
from hvlm.fusion.sparse import Sparse
from hvlm.types import Tokens

HERE = Path(__file__).parent
QUESTION, COMMAND = "hivilt_speed", "python -m experiments.hivilt.speed"
DIM, HEADS, WORDS, KEYS = 128, 4, 32, 16
BUDGET, LEAST = 8.0, 5  # seconds and rounds of a comparison
ROOMS: dict[str, Callable[..., FusingRoom]] = {
    "hivilt": HiViLT,
    "sparse_chosen": lambda **rest: Sparse(top_k=KEYS, update="chosen", **rest),
    "sparse_all": lambda **rest: Sparse(top_k=KEYS, update="all", **rest),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384])
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    for record in (r for tokens in options.tokens for r in measured(tokens)):
        print(
            f"{record['tokens']:6d} {record['variant']:16s} {record['metric']:18s} {record['value']:10.4g}", flush=True
        )
        records.append(record)
    results.update(HERE / "speed.json", records)


def room(kind: Callable[..., FusingRoom]) -> FusingRoom:
    torch.manual_seed(0)
    return kind(dim=DIM, num_heads=HEADS, write_text=True)


def video(tokens: int) -> tuple[Tokens, Tensor, Tensor]:
    """(visual tokens of frames of 64, 32 embedded words, all of them known)."""
    g = torch.Generator().manual_seed(0)
    frames = tokens // 64
    x = torch.randn(1, frames, 64, DIM, generator=g)
    seen = torch.ones(1, frames, dtype=torch.bool)
    text = torch.randn(1, WORDS, DIM, generator=g)
    return Tokens.of_frames(x, torch.arange(frames)[None].float(), seen, (8, 8)), text, seen.new_ones(1, WORDS)


def passes(fusion: FusingRoom, tokens: int) -> dict[str, Callable[[], object]]:
    came, text, known = video(tokens)

    @torch.no_grad()
    def forward() -> object:
        return fusion(came, text, known)

    def backward() -> object:
        leaf = came._replace(x_BSD=came.x_BSD.detach().requires_grad_())
        out = fusion(leaf, text, known)
        (out.tokens.x_BSD.square().mean() + out.text_KPD.square().mean() + out.pooled_KD.square().mean()).backward()
        return leaf.x_BSD.grad

    return {"forward": forward, "backward": backward}


def measured(tokens: int) -> Iterator[dict[str, Any]]:
    runs = {name: passes(room(kind), tokens) for name, kind in ROOMS.items()}
    copied = video(tokens)[0].x_BSD
    runs["floor"] = {"forward": copied.clone, "backward": copied.clone}
    for way in ("forward", "backward"):
        seconds = timed(*(run[way] for run in runs.values()), budget=BUDGET, least=LEAST)
        peaks = [peak(run[way]) for run in runs.values()]
        for i, name in enumerate(runs):
            yield record(name, f"{way}_ms", 1e3 * seconds[i], tokens)
            yield record(name, f"{way}_peak_mb", peaks[i], tokens)
            if name.startswith("sparse"):
                yield record(name, f"{way}_factor", seconds[0] / seconds[i], tokens)
                yield record(name, f"{way}_memory_factor", peaks[0] / max(peaks[i], 0.1), tokens)
    for name, fast in (("masked", False), ("gathered", True)):
        yield record(name, "difference", difference(tokens, fast), tokens)


def peak(run: Callable[[], object]) -> float:
    """MB that a pass needs beside what is there."""
    run()
    before = start_peak()
    run()
    return peak_since(before)


def difference(tokens: int, fast: bool) -> float:
    """Of sparse fusion that keeps everything to dense fusion: the largest of figures and of the tokens' gradients.

    The room itself would take the dense way then, so the sparse one is called: masked, or (fast) of what is chosen.
    """
    dense = room(HiViLT)
    sparse = room(lambda **rest: Sparse(top_k=max(tokens, WORDS), update="all", **rest))
    sparse.load_state_dict(dense.state_dict())
    for module in sparse.modules():
        if isinstance(module, LocalFusion):
            module.forward = partial(module._sparse, fast=fast)  # type: ignore[method-assign]
    came, text, known = video(tokens)
    found = []
    for fusion in (dense, sparse):
        x = came.x_BSD.clone().requires_grad_()
        out = fusion(came._replace(x_BSD=x), text, known)
        (gradient,) = torch.autograd.grad(out.tokens.x_BSD.square().mean() + out.pooled_KD.square().mean(), x)
        found.append((out.tokens.x_BSD, out.text_KPD, out.pooled_KD, gradient))
    return max(float((a - b).abs().max().detach()) for a, b in zip(*found, strict=True))


def record(variant: str, metric: str, value: float, tokens: int) -> results.Record:
    return results.make(QUESTION, variant, metric, value, stderr=None, n=1, chance=None, seeds=[0], seconds=0,
                        command=COMMAND, columns={"tokens": tokens})  # fmt: skip


if __name__ == "__main__":
    main()
