"""Strided attention: every query, but only every k-th key, and one's own.

Child et al. 2019 (Sparse Transformers) factorise attention into local and strided patterns; this is the strided one. A
token i attends to {phase, phase + k, phase + 2k, ...} and to itself:

    y_i = softmax over j in {phase + k m} ∪ {i} of q_i k_j / √d,  times v_j.

Cost: 4 S (S/k + 1) D operations beside the projections' 8 S D²; still quadratic for a fixed k (S √S for k near
√S). A stream keeps the strided keys and values: 2 D ⌈S/k⌉ values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvlm.attention._flex import flex_attend, strided_mask
from hvlm.attention._heads import Heads
from hvlm.attention._room import MixingRoom, no_memory
from hvlm.attention._softmax import MASKED, attend_part, join
from hvlm.functional import attend


class StridedAttention(Heads):
    """stride: k. phase: the first key. causal: keys up to one's own place. dim, num_heads, dropout: see ``Heads``."""

    def __init__(
        self,
        stride: int = 4,
        dim: int = 768,
        num_heads: int = 12,
        phase: int = 0,
        causal: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__(dim, num_heads, dropout)
        if stride < 1 or not 0 <= phase < stride:
            raise ValueError(f"attention.stride={stride}, attention.phase={phase}: expected 0 <= phase < stride")
        self.stride, self.phase, self.causal = stride, phase, causal

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """[B, S, dim] -> [B, S, dim]. mask_BS: bool, False where nobody may look; there the output means nothing."""
        no_memory(self, memory)
        q, k, v = self.project(x_BSD)
        if x_BSD.is_cuda:  # not tested on a GPU; equal to the other path on a CPU
            mask = strided_mask(x_BSD.shape[1], self.stride, self.phase, self.causal, x_BSD.device)
            return self.finish(flex_attend(q, k, v, mask, mask_BS)[0])
        return self.finish(self.attend(q, k, v, mask_BS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask_BS: Tensor | None) -> Tensor:
        """[B, H, S, d] each, ``q`` scaled: attention over the strided keys joined with that over one's own."""
        s = q.shape[2]
        place = torch.arange(s, device=q.device)
        chosen = place[self.phase :: self.stride]
        own = (q * k).sum(-1, dtype=torch.float32)
        # Whoever is among the chosen has seen itself there.
        own = own.masked_fill((place - self.phase) % self.stride == 0, MASKED)
        bias = None
        if self.causal:
            bias = torch.where(chosen <= place[:, None], 0.0, MASKED).view(1, 1, s, -1)
        if mask_BS is not None:
            absent = torch.where(mask_BS[:, None, None, chosen], 0.0, MASKED)
            bias = absent if bias is None else bias + absent
        if not len(chosen):
            return v
        strided = attend_part(q, k[:, :, chosen], v[:, :, chosen], bias)
        return join(strided, (v, own))[0]

    def reference(self, q: Tensor, k: Tensor, v: Tensor, mask_BS: Tensor | None) -> Tensor:
        """The same with all scores and a mask."""
        place = torch.arange(q.shape[2], device=q.device)
        seen = (place - self.phase) % self.stride == 0
        seen = (seen & (place <= place[:, None]) if self.causal else seen.expand(len(place), -1))[None, None]
        if mask_BS is not None:
            seen = seen & mask_BS[:, None, None]
        return attend(q, k, v, seen | torch.eye(len(place), dtype=torch.bool, device=q.device), scale=1.0)

    def flops(self, length: int) -> int:
        keys = len(range(self.phase, length, self.stride))
        return self.projection_flops(length) + 4 * length * (keys + 1) * self.dim

    def state_bytes(self, length: int, bytes_per_value: int = 4) -> int:
        return 2 * len(range(self.phase, length, self.stride)) * self.dim * bytes_per_value


class StridedRoom(MixingRoom):
    """See ``StridedAttention`` and ``MixingRoom``."""

    def __init__(
        self,
        stride: int = 4,
        phase: int = 0,
        causal: bool = False,
        dropout: float = 0.0,
        layers: int = 1,
        readout: int = 1,
        gradient_checkpointing: bool = False,
        *,
        dim: int,
        num_heads: int,
    ):
        def make() -> nn.Module:
            return StridedAttention(stride, dim, num_heads, phase, causal, dropout)

        super().__init__(make, dim, layers, readout, gradient_checkpointing)
        self.causal = causal
