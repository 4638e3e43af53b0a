"""How queries reach the frames of a batch: over keys and values that are at hand, or over frames encoded anew.

Either is what ``Patches.gaze`` is: called with queries [F, Q, query_dim] and, in ``index_F``, which of the B * T frames
they are for (None: all, in order); further keywords go to the encoder's ``gaze``, whose result is handed on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvlm.types import KV, Tokens


class CachedLook:
    """Over the keys and values of one pass through the encoder: in training, and wherever they fit."""

    def __init__(self, vision: nn.Module, kv: KV):
        self.vision, self.kv = vision, kv

    def __call__(self, query_FQD: Tensor, index_F: Tensor | None = None, **how: bool) -> tuple[Tensor, Tensor | None]:
        kv = self.kv if index_F is None else [(k[index_F], v[index_F]) for k, v in self.kv]
        return self.vision.gaze(query_FQD, kv, **how)


class FreshLook:
    """For clips too long to keep every frame's keys and values (DINOv2-small: 4.7 MB a frame in bfloat16).

    Every look encodes its frames anew, ``at_once`` at a time: coarse→fine costs two passes through the encoder instead
    of one, autoregressive reading still one, and memory does not grow with the clip. Without gradients only.
    """

    def __init__(self, vision: nn.Module, frames_FCHW: Tensor, at_once: int):
        self.vision, self.frames, self.at_once = vision, frames_FCHW, at_once

    def __call__(self, query_FQD: Tensor, index_F: Tensor | None = None, **how: bool) -> tuple[Tensor, Tensor | None]:
        frames = self.frames if index_F is None else self.frames[index_F]
        z, entropy = None, None
        for start in range(0, len(frames), self.at_once):
            at = slice(start, start + self.at_once)
            found, nats = self.vision.gaze(query_FQD[at], encode_frames(self.vision, frames[at], cache=True)[1], **how)
            # One tensor from the start: small ones between the large ones of every part would scatter the memory.
            z = found.new_empty(len(frames), *found.shape[1:]) if z is None else z
            z[at] = found
            if nats is not None:
                entropy = (0 if entropy is None else entropy) + nats * len(found) / len(frames)
        return z, entropy


def encode_frames(vision: nn.Module, frames_FCHW: Tensor, cache: bool) -> tuple[Tokens, KV | None]:
    """The encoder on frames that belong to no clip: (tokens [F, N, dim] as ``Tokens``, keys and values or None)."""
    time = torch.zeros(len(frames_FCHW), 1, device=frames_FCHW.device)
    return vision.encode(frames_FCHW.unsqueeze(1), time, torch.ones_like(time, dtype=torch.bool), cache)
