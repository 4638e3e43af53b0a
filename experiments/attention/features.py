"""How many random features are how near to softmax attention? Ours, performer-pytorch's, and no attention at all.

    python -m experiments.attention.features [--draws 10] [--run runs/attention/seed1/full-steps/long]

The error is that of what comes out, |y - softmax(q kᵀ / √d) v| / |softmax(q kᵀ / √d) v|. q, k, v: ``normal``, 1,024
tokens, 4 heads of 64, independent and normal, q and k times a scale; ``grouped``, the same in 16 groups whose members
are alike; ``trained``, where ``--run`` is there, what the full attention of that run makes of held-out clips, in turn.
Every draw draws features, and inputs but for ``trained``. ``equal``, ``gaussian``: ours, in pairs w and -w, with these
lengths. ``mean``: the values' mean for every query, which knows nothing of q and k; where features are no nearer than
that they are of no use. Needs the extra ``bench`` (``make bench-attention`` installs it). Writes features.json beside
this file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from performer_pytorch import FastAttention
from torch import Tensor

from hvlm.attention._kernel import kernel_attention
from hvlm.attention.full import FullAttention
from hvlm.attention.performer import paired_features
from hvlm.data.views import Questions
from hvlm.evaluation import results
from hvlm.io.checkpoint import find_checkpoint
from hvlm.rebuild import load, stored_config

HERE = Path(__file__).parent
COMMAND = "python -m experiments.attention.features"
SCALES = (0.3, 0.5, 0.7, 1.0)
Inputs = tuple[Tensor, Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10, help="2 or more, for their standard error")
    parser.add_argument("--run", type=Path, default=Path("runs/attention/seed1/full-steps/long"))
    options = parser.parse_args()
    settings: dict[tuple[str, float | None], Callable[[int], Inputs]] = {
        (kind, scale): lambda draw, of=of, scale=scale: of(draw, scale)
        for kind, of in (("normal", normal), ("grouped", grouped)) for scale in SCALES
    }  # fmt: skip
    if options.run.exists():
        clips = list(islice(trained(options.run), options.draws))
        settings["trained", None] = lambda draw: clips[draw % len(clips)]
    else:
        print(f"{options.run}: not there, so nothing about trained q and k (python -m experiments.attention makes it)")
    records = []
    for (kind, scale), inputs in settings.items():
        started = time.process_time()
        print(kind, "" if scale is None else scale)
        for variant, features, errors in measure(inputs, options.draws):
            value, stderr = statistics.fmean(errors), statistics.stdev(errors) / len(errors) ** 0.5
            print(f"  {variant:20s} {features or '':>4} {value:.4f} ± {stderr:.4f}", flush=True)
            columns = {"inputs": kind, "scale": scale, "features": features}
            records.append(
                results.make("attention_features", variant, "error", value, stderr=stderr, n=len(errors), chance=None,
                             seeds=list(range(options.draws)), seconds=time.process_time() - started, command=COMMAND,
                             columns=columns)
            )  # fmt: skip
    results.write(HERE / "features.json", records)


@torch.no_grad()
def measure(inputs: Callable[[int], Inputs], draws: int) -> Iterator[tuple[str, int | None, list[float]]]:
    """(variant, features, the error of each draw)."""
    found: dict[tuple[str, int | None], list[float]] = {}
    for draw in range(draws):
        torch.manual_seed(draw)
        q, k, v = inputs(draw)
        d = q.shape[-1]
        exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        ways: dict[tuple[str, int | None], Tensor] = {("mean", None): v.mean(2, keepdim=True).expand_as(v)}
        for m in (d, 2 * d, 4 * d):
            for lengths in ("equal", "gaussian"):
                w = paired_features(m, d, lengths)
                ways[lengths, m] = kernel_attention(q, k, v, "softmax", w)
            peer = FastAttention(dim_heads=d, nb_features=m, causal=False)
            ways["performer_pytorch", m] = peer(q, k, v)
        for way, y in ways.items():
            found.setdefault(way, []).append(float((y - exact).norm() / exact.norm()))
    yield from ((*way, errors) for way, errors in found.items())


def normal(draw: int, scale: float) -> Inputs:
    q, k, v = (torch.randn(1, 4, 1024, 64) for _ in range(3))
    return scale * q, scale * k, v


def grouped(draw: int, scale: float) -> Inputs:
    """Every token's q and k are three quarters (in variance) its group's."""
    q, k, v = normal(draw, 1.0)
    centre = torch.randn(1, 4, 16, 64)
    q, k = (0.5 * x + 0.75**0.5 * centre[:, :, torch.randint(16, (1024,))] for x in (q, k))
    return scale * q, scale * k, v


@torch.no_grad()
def trained(run: Path) -> Iterator[Inputs]:
    """q, k, v [1, H, S, d] of the first mixing layer for one held-out clip after the other."""
    cfg = stored_config(find_checkpoint(run))
    loaded = load(run, cfg)
    model = loaded.model
    layer = next(module for module in model.eval().modules() if isinstance(module, FullAttention))
    loaded.data.prepare()
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for batch in loaded.reader().loader("val", Questions(), 1, 1):
        batch = batch.to(loaded.device)
        model.visual_tokens(batch, model.language.embed(batch.input_ids_KS))
        yield tuple(x.contiguous() for x in layer.project(seen.pop(), scaled=False))


if __name__ == "__main__":
    main()
