"""Sparse patterns for torch's FlexAttention: on GPUs one fused kernel that skips the blocks nobody sees.

Untested on GPUs until `make test-gpu` (`tests/test_gpu.py`) has run on one. On a CPU the same
masks run unfused, which is how they are tested against our own path.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, and_masks, create_block_mask, flex_attention


@lru_cache(maxsize=64)
def window_mask(length: int, window: int, causal: bool, device: torch.device) -> BlockMask:
    def near(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (query - key <= window) & (key - query <= window)
        return seen & (key <= query) if causal else seen

    return _made(near, None, length, device)


@lru_cache(maxsize=64)
def strided_mask(length: int, stride: int, phase: int, causal: bool, device: torch.device) -> BlockMask:
    def chosen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        strided = (key - phase) % stride == 0
        return (strided & (key <= query) if causal else strided) | (key == query)

    return _made(chosen, None, length, device)


def flex_attend(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, mask_BS: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(out, lse) as ``attend_window`` gives them. Padding makes a mask of its own for this batch."""
    if mask_BS is not None:

        def present(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return mask_BS[b, key] | (query == key)

        mask = _made(and_masks(mask.mask_mod, present), len(mask_BS), q.shape[2], q.device)
    # Lengths are dynamic from the second on: compiled for each, the ninth would run unfused.
    run = torch.compile(flex_attention) if q.is_cuda else flex_attention
    out, more = run(q, k, v, block_mask=mask, scale=1.0, return_aux=AuxRequest(lse=True))
    return out, more.lse


def _made(pattern: Callable[..., Tensor], clips: int | None, length: int, device: torch.device) -> BlockMask:
    """Compiled on a GPU: otherwise all length² places of the pattern are there at once. Masks are kept, so they must be
    usable in training where evaluation made them."""
    with torch.inference_mode(False):
        return create_block_mask(pattern, clips, None, length, length, device=device, _compile=device.type == "cuda")
