"""Full attention: every token sees every token (Vaswani et al. 2017), softmax(q kᵀ / √d) v.

Cost in the number of tokens S: 4 S² D operations beside the projections' 8 S D², memory linear in S (the scores are
never whole). A stream has to keep all keys and values: 2 S D values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hvlm.attention._base import MixingRoom, check_streams, no_memory
from hvlm.attention._qkv import Heads, KeysValues
from hvlm.config.ranges import Probability
from hvlm.functional import attend


class FullAttention(Heads):
    """dim, num_heads: sizes. causal: a token sees itself and what came before. dropout: see ``Heads``."""

    def __init__(self, dim: int = 768, num_heads: int = 12, causal: bool = False, dropout: Probability = 0.0):
        super().__init__(dim, num_heads, dropout)
        self.causal = causal

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """[B, S, dim] -> [B, S, dim]. mask_BS: bool, False where nobody may look; there the output means nothing."""
        no_memory(self, memory)
        return self.finish(attend(*self.project(x_BSD), mask_BS, self.causal, scale=1.0))

    def reference(self, q: Tensor, k: Tensor, v: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        """The same with all scores; ``q`` scaled."""
        place = torch.arange(q.shape[2], device=q.device)
        seen = (place <= place[:, None] if self.causal else place[:, None] >= 0)[None, None]
        seen = seen if mask_BS is None else seen & mask_BS[:, None, None]
        return (q @ k.mT).masked_fill(~seen, -torch.inf).softmax(-1) @ v

    def step(self, x_B1D: Tensor, state: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """One more token of a stream: ([B, 1, dim], the new state). Equals the causal pass."""
        check_streams(self.causal)
        q, k, v = self.project(x_B1D)
        state = KeysValues(k, v) if state is None else state.followed_by(k, v)
        return self.finish(attend(q, *state, scale=1.0)), state

    def flops(self, length: int) -> int:
        pairs = length * (length + 1) // 2 if self.causal else length**2
        return self.projection_flops(length) + 4 * pairs * self.dim

    def state_bytes(self, length: int, bytes_per_value: int = 4) -> int:
        return 2 * length * self.dim * bytes_per_value


class FullRoom(MixingRoom):
    """See ``FullAttention`` and ``MixingRoom``."""

    layer = FullAttention
