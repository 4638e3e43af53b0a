"""Full attention: every token sees every token (Vaswani et al. 2017), softmax(q kᵀ / √d) v.

Cost in the number of tokens S: 4 S² D operations beside the projections' 8 S D², memory linear in S (the scores are
never whole). A stream has to keep all keys and values: 2 S D values.
"""

from __future__ import annotations

from torch import Tensor, nn

from hvlm.attention._heads import Heads
from hvlm.attention._room import MixingRoom, no_memory
from hvlm.functional import attend


class FullAttention(Heads):
    """dim, num_heads: sizes. causal: a token sees itself and what came before. dropout: see ``Heads``."""

    def __init__(self, dim: int = 768, num_heads: int = 12, causal: bool = False, dropout: float = 0.0):
        super().__init__(dim, num_heads, dropout)
        self.causal = causal

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """[B, S, dim] -> [B, S, dim]. mask_BS: bool, False where nobody may look; there the output means nothing."""
        no_memory(self, memory)
        return self.finish(attend(*self.project(x_BSD), mask_BS, self.causal, scale=1.0))

    def flops(self, length: int) -> int:
        pairs = length * (length + 1) // 2 if self.causal else length**2
        return self.projection_flops(length) + 4 * pairs * self.dim

    def state_bytes(self, length: int, bytes_per_value: int = 4) -> int:
        return 2 * length * self.dim * bytes_per_value


class FullRoom(MixingRoom):
    """See ``FullAttention`` and ``MixingRoom``."""

    def __init__(
        self,
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
            return FullAttention(dim, num_heads, causal, dropout)

        super().__init__(make, dim, layers, readout, gradient_checkpointing)
        self.causal = causal
