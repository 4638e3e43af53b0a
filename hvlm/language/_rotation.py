"""A language model's rotary positions, turned forwards and back.

Caches see queries and keys as attention does, after their rotation; a score that speaks of them before it, or at other
positions, needs to undo it.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel


class Angles(NamedTuple):
    """cos, sin: [K or 1, S, width] of the leading channels that are rotated."""

    cos: Tensor
    sin: Tensor

    @property
    def back(self) -> Angles:
        """Those that undo the rotation, with whatever it scales by."""
        square = self.cos.square() + self.sin.square()
        return Angles(self.cos / square, -self.sin / square)

    @property
    def mean(self) -> Angles:
        """Of the average rotation over the S positions, which is linear in both: [K or 1, 1, width]."""
        return Angles(self.cos.mean(1, keepdim=True), self.sin.mean(1, keepdim=True))


class Rotation:
    """Of any model of transformers whose attention rotates with its module's own ``apply_rotary_pos_emb``."""

    def __init__(self, base: PreTrainedModel) -> None:
        self._embed: Any = base.rotary_emb
        self._turn = vars(sys.modules[type(base).__module__])["apply_rotary_pos_emb"]
        self._layers = base.layers
        by_kind = "layer_type" in inspect.signature(self._embed.forward).parameters
        self._kinds = base.config.layer_types if by_kind else None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Rotation | None:
        """None for a model that knows places in another way, or does not show how."""
        base = model.base_model
        shows = hasattr(base, "rotary_emb") and hasattr(base, "layers")
        return cls(base) if shows and "apply_rotary_pos_emb" in vars(sys.modules[type(base).__module__]) else None

    def angles(self, position_KS: Tensor, layer: int) -> Angles | None:
        """Of places [K or 1, S]; None for a layer that rotates nothing."""
        attention = getattr(self._layers[layer], "self_attn", None)
        if not getattr(attention, "use_rope", True):
            return None
        like = torch.zeros((), device=position_KS.device)
        more = {} if self._kinds is None else {"layer_type": self._kinds[layer]}
        return Angles(*self._embed(like, position_KS, **more))

    def turn(self, x_KHSd: Tensor, angles: Angles | None) -> Tensor:
        """x [K, H, S, d], rotated."""
        if angles is None:
            return x_KHSd
        width = angles.cos.shape[-1]
        turned = x_KHSd[..., :width]
        turned, _ = self._turn(turned, turned[:, :1], *angles)
        return turned if width == x_KHSd.shape[-1] else torch.cat([turned, x_KHSd[..., width:]], -1)
