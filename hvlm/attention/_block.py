"""Pre-norm transformer blocks around the mechanisms: x <- x + attention(LN(x)); x <- x + FFN(LN(x))."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from hvlm.attention.cross_memory import CrossMemoryAttention
from hvlm.attention.full import FullAttention
from hvlm.attention.local_global import LocalGlobalAttention
from hvlm.attention.mamba import MambaLayer
from hvlm.attention.mamba2 import Mamba2Layer
from hvlm.attention.performer import PerformerAttention
from hvlm.attention.strided import StridedAttention
from hvlm.config.ranges import PositiveFloat, Probability


class _Block(nn.Module):
    KINDS: dict[str, type[nn.Module]] = {}

    def __init__(self, attention_type: str, dim: int, ffn_ratio: float, dropout: float, settings: dict[str, Any]):
        super().__init__()
        if attention_type not in self.KINDS:
            raise ValueError(f"attention_type={attention_type!r}: expected one of {', '.join(self.KINDS)}")
        hidden = int(dim * ffn_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = self.KINDS[attention_type](dim=dim, dropout=dropout, **settings)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim), nn.Dropout(dropout))


class HierarchicalAttentionBlock(_Block):
    """attention_type: full, strided, local_global or cross_memory; ``settings`` go to it (stride=4, ...).

    Called as block(x [B, S, dim], mask_BS, memory); only cross_memory takes a memory, and it works without one.
    """

    KINDS = {
        "full": FullAttention,
        "strided": StridedAttention,
        "local_global": LocalGlobalAttention,
        "cross_memory": CrossMemoryAttention,
    }

    def __init__(
        self,
        attention_type: Literal["full", "strided", "local_global", "cross_memory"] = "strided",
        dim: int = 768,
        num_heads: int = 12,
        ffn_ratio: PositiveFloat = 4.0,
        dropout: Probability = 0.0,
        **settings: Any,
    ):
        super().__init__(attention_type, dim, ffn_ratio, dropout, {"num_heads": num_heads, **settings})

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        if isinstance(self.attention, CrossMemoryAttention):
            x = x_BSD + self.attention(self.norm1(x_BSD), memory, mask_BS)
        else:
            x = x_BSD + self.attention(self.norm1(x_BSD), mask_BS, memory)
        return x + self.ffn(self.norm2(x))


class LinearAttentionBlock(_Block):
    """attention_type: performer, mamba or mamba2; ``settings`` go to it (num_heads=12, state_size=16, ...)."""

    KINDS = {"performer": PerformerAttention, "mamba": MambaLayer, "mamba2": Mamba2Layer}

    def __init__(
        self,
        attention_type: Literal["performer", "mamba", "mamba2"] = "performer",
        dim: int = 768,
        ffn_ratio: PositiveFloat = 4.0,
        dropout: Probability = 0.0,
        **settings: Any,
    ):
        super().__init__(attention_type, dim, ffn_ratio, dropout, settings)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        x = x_BSD + self.attention(self.norm1(x_BSD), mask_BS)
        return x + self.ffn(self.norm2(x))
