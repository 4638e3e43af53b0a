"""The mixing layers in a size that tests can write out, and what is done with them."""

from __future__ import annotations

import torch
from torch import Tensor

from hvlm.attention import (
    CrossMemoryAttention,
    FullAttention,
    LocalGlobalAttention,
    Mamba2Layer,
    MambaLayer,
    PerformerAttention,
    StridedAttention,
)
from hvlm.attention.mamba import BidirectionalMamba
from hvlm.types import Tokens

D, H = 32, 4
LAYERS = {
    "full": lambda causal: FullAttention(D, H, causal),
    "strided": lambda causal: StridedAttention(4, D, H, phase=1, causal=causal),
    "local_global": lambda causal: LocalGlobalAttention(5, 3, D, H, causal),
    "local": lambda causal: LocalGlobalAttention(5, 0, D, H, causal),
    "wide_window": lambda causal: LocalGlobalAttention(100, 1, D, H, causal),
    "favor": lambda causal: PerformerAttention(D, H, 24, "softmax", causal=causal),
    "relu": lambda causal: PerformerAttention(D, H, 24, "relu", causal=causal),
    "elu": lambda causal: PerformerAttention(D, H, kernel="elu", causal=causal),
    "mamba": lambda causal: MambaLayer(D, 4) if causal else BidirectionalMamba(D, 4),
    "mamba2": lambda causal: Mamba2Layer(D, 8, 16, chunk=8) if causal else None,
    "cross_memory": lambda causal: CrossMemoryAttention(D, H, causal),
}
CASES = [(name, causal) for name in LAYERS for causal in (False, True) if LAYERS[name](causal) is not None]
# Those that are composed of others have tests of their own.
WRITTEN_OUT = [case for case in CASES if case[0] != "cross_memory" and case != ("mamba", False)]
LENGTHS = [1, 7, 53]


def made(name: str, causal: bool, seed: int = 0):
    torch.manual_seed(seed)
    layer = LAYERS[name](causal).eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return layer


def inputs(length: int, rows: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, D, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def right_padded(length: int) -> Tensor:
    return torch.arange(length) < torch.tensor([[max(1, length // 2)], [length]])


def run(layer, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return layer(x, None, mask) if isinstance(layer, CrossMemoryAttention) else layer(x, mask)


def tokens(x: Tensor) -> Tokens:
    b, s, _ = x.shape
    return Tokens.of_frames(
        x.unsqueeze(2), torch.arange(float(s)).expand(b, -1), torch.ones(b, s, dtype=torch.bool), None
    )
