"""Local, then global fusion, with whatever local fusion it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hvlm.fusion._base import FusingRoom
from hvlm.fusion._global import GlobalFusion
from hvlm.fusion._local import LocalFusion
from hvlm.fusion._pool import Pool, Pooling
from hvlm.types import Tokens


class HierarchicalFusion(FusingRoom):
    """Settings: see ``HiViLT``. local: more arguments of ``LocalFusion``."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        layers: int,
        local_fusion: bool,
        global_fusion: bool,
        pooling: Pooling,
        mlp_ratio: float,
        dropout: float,
        gate: float,
        write_text: bool,
        text_layers: int,
        **local: Any,
    ):
        if not (local_fusion or global_fusion):
            raise ValueError("fusion.local_fusion=false and fusion.global_fusion=false: use fusion=none")
        self.spreads = global_fusion
        super().__init__(
            dim=dim, num_heads=num_heads, text_layers=text_layers, mlp_ratio=mlp_ratio, gate=gate, dropout=dropout,
            write_text=write_text,
        )  # fmt: skip
        heard = global_fusion or write_text  # whether anybody reads what the words have learned
        self.local = nn.ModuleList(
            LocalFusion(
                dim, num_heads, mlp_ratio=mlp_ratio, dropout=dropout, gate=gate,
                text_side=heard or i + 1 < layers, **local,
            )
            for i in range(layers if local_fusion else 0)
        )  # fmt: skip
        self.whole = GlobalFusion(dim, num_heads, pooling, mlp_ratio, dropout) if global_fusion else None
        self.mean = Pool(dim, "mean")

    def fuse(
        self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        v, t, mask = tokens.x_BSD, text_KPD, tokens.mask_BS
        for i, layer in enumerate(self.local):
            layer.watch = self.watch if i == 0 and self.monitor else None
            v, t = layer(v, t, mask, prompt_KP)
        if self.whole is None:
            return v, t, self.mean(v, mask)
        return v, t, self.whole((tokens.x_BSD, text_KPD), (v, t), mask, prompt_KP)
