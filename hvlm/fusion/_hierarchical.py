"""Local, then global fusion, with whatever local fusion it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hvlm.config.ranges import PositiveInt
from hvlm.fusion._base import FusingRoom
from hvlm.fusion._global import GlobalFusion
from hvlm.fusion._local import LocalFusion
from hvlm.fusion._pool import Pool, Pooling
from hvlm.types import Tokens


class HierarchicalFusion(FusingRoom):
    """layers: of local fusion. global_fusion: leave it out. pooling: of tokens and words, for global fusion. The rest:
    see ``FusingRoom``.

    A variant says before ``__init__`` whether there is any local fusion (``local_fusion``) and what more its layers are
    given (``of_local``, of ``LocalFusion``).
    """

    local_fusion: bool = True
    of_local: Mapping[str, Any] = {}

    def __init__(
        self,
        *,
        layers: PositiveInt = 1,
        global_fusion: bool = True,
        pooling: Pooling = "mean",
        **rest: Any,
    ):
        if not (self.local_fusion or global_fusion):
            raise ValueError("fusion.local_fusion=false and fusion.global_fusion=false: use fusion=none")
        self.spreads = global_fusion
        super().__init__(**rest)
        dim, num_heads, mlp_ratio, dropout, gate = self.size
        heard = global_fusion or self.writes_text  # whether anybody reads what the words have learned
        self.local = nn.ModuleList(
            LocalFusion(
                dim, num_heads, mlp_ratio=mlp_ratio, dropout=dropout, gate=gate,
                text_side=heard or i + 1 < layers, **self.of_local,
            )
            for i in range(layers if self.local_fusion else 0)
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
