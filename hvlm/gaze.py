"""How queries reach the frames of a batch: over keys and values that are at hand, or over frames encoded anew.

Either is what ``Patches.gaze`` is: called with queries [F, Q, query_dim] and, in ``index_F``, which of the B * T frames
they are for (None: all, in order); further keywords go to the encoder's ``gaze``, whose result is handed on. ``merged``
gives the same look over merged patches.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from hvlm.merging import Assignment, MergedKeys
from hvlm.types import KV, NOTHING_ELSE, Encoded, Wants

# Which of the B * T frames (None: all) -> a block in which the encoder treats each with its clip's adapter weights.
Adapted = Callable[[Tensor | slice | None], AbstractContextManager[Any]]

_M_MMAP_THRESHOLD = -3  # of <malloc.h>


def plainly(which: Tensor | slice | None) -> AbstractContextManager[None]:
    """``Adapted`` where nothing is adapted."""
    return nullcontext()


class CachedKV:
    """Over the keys and values of one pass through the encoder: in training, and wherever they fit."""

    def __init__(self, vision: nn.Module, kv: KV, to: Assignment | None = None, adapted: Adapted = plainly):
        self.vision, self.kv, self.to, self.adapted = vision, kv, to, adapted

    def __call__(self, query_FQD: Tensor, index_F: Tensor | None = None, **how: bool) -> tuple[Tensor, Tensor | None]:
        kv = self.kv if index_F is None else [(k[index_F], v[index_F]) for k, v in self.kv]
        with self.adapted(index_F):
            return self.vision.gaze(query_FQD, kv, merged=merged_keys(kv, pick(self.to, index_F)), **how)

    def merged(self, to: Assignment) -> CachedKV:
        """to: [F, N] patches to [F, M], every frame by itself; the encoder's own weights stay as they are."""
        return CachedKV(self.vision, merge_kv(self.kv, to), to, self.adapted)


class RecomputedKV:
    """For clips too long to keep every frame's keys and values (DINOv2-small: 4.7 MB a frame in bfloat16).

    Every look encodes its frames anew, ``at_once`` at a time: coarse→fine costs two passes through the encoder instead
    of one, autoregressive reading still one, and memory does not grow with the clip. Without gradients only.
    """

    def __init__(
        self,
        vision: nn.Module,
        frames_FCHW: Tensor,
        at_once: int,
        to: Assignment | None = None,
        adapted: Adapted = plainly,
    ):
        self.vision, self.frames, self.at_once, self.to, self.adapted = vision, frames_FCHW, at_once, to, adapted

    def __call__(self, query_FQD: Tensor, index_F: Tensor | None = None, **how: bool) -> tuple[Tensor, Tensor | None]:
        frames, to = (self.frames if index_F is None else self.frames[index_F]), pick(self.to, index_F)
        z, entropy = None, None
        if frames.device.type == "cpu":
            _large_blocks_go_back()
        for start in range(0, len(frames), self.at_once):
            at = slice(start, start + self.at_once)
            with self.adapted(at if index_F is None else index_F[at]):
                kv, part = encode_frames(self.vision, frames[at], Wants(kv=True)).kv, pick(to, at)
                if part is not None:
                    kv = merge_kv(kv, part)
                found, nats = self.vision.gaze(query_FQD[at], kv, merged=merged_keys(kv, part), **how)
            del kv
            # One tensor from the start: small ones between the large ones of every part would scatter the memory.
            z = found.new_empty(len(frames), *found.shape[1:]) if z is None else z
            z[at] = found
            if nats is not None:
                entropy = (0 if entropy is None else entropy) + nats * len(found) / len(frames)
        return z, entropy

    def merged(self, to: Assignment) -> RecomputedKV:
        """As ``CachedKV.merged``."""
        return RecomputedKV(self.vision, self.frames, self.at_once, to, self.adapted)


@cache
def _large_blocks_go_back() -> None:
    """Have glibc give every freed block of 8 MB and more back to the system at once, from now on in this process.

    By itself it raises that limit to the largest block that it saw freed, up to 32 MB, and keeps what is smaller for
    later, with gaps: a part of a clip after which nothing but a token a frame is kept took 0.4 GB more. The price, new
    pages for every large tensor, is small with huge pages (``hvlm/__init__.py``).
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none, and no need of it
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 8 << 20)


def encode_frames(vision: nn.Module, frames_FCHW: Tensor, wants: Wants = NOTHING_ELSE) -> Encoded:
    """The encoder on frames that belong to no clip: as if each were a clip of its own (B = F, T = 1)."""
    time = torch.zeros(len(frames_FCHW), 1, device=frames_FCHW.device)
    return vision.encode(frames_FCHW.unsqueeze(1), time, torch.ones_like(time, dtype=torch.bool), wants)


def pick(to: Assignment | None, index_F: Tensor | slice | None) -> Assignment | None:
    """The assignment of those frames."""
    return to if to is None or index_F is None else Assignment(*(field[index_F] for field in to))


def merge_kv(kv: KV, to: Assignment) -> KV:
    """Every layer's keys and values [F, heads, (CLS +) N, d] as means over merged patches; CLS stays."""

    def merge(x: Tensor) -> Tensor:
        cls = x.shape[2] - to.to_BS.shape[1]
        return torch.cat([x[:, :, :cls], to.merge(x[:, :, cls:].transpose(1, 2)).transpose(1, 2)], 2)

    return [(merge(k), merge(v)) for k, v in kv]


def merged_keys(kv: KV, to: Assignment | None) -> MergedKeys | None:
    if to is None:
        return None
    log_size = to.sum(torch.ones_like(to.weight_BS)).log().masked_fill(~to.mask_BM, -torch.inf)
    cls = kv[-1][0].shape[2] - log_size.shape[1]
    return MergedKeys(to, torch.nn.functional.pad(log_size, (cls, 0)))
