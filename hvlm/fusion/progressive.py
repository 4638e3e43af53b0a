"""Fusion over a pyramid of the video, from coarse to fine: the text carries what it has learned from level to level."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from hvlm.config.ranges import PositiveInt
from hvlm.fusion._base import FusingRoom
from hvlm.fusion._global import GlobalFusion
from hvlm.fusion._levels import CoarseToFine
from hvlm.fusion._local import LocalFusion
from hvlm.fusion._pool import Pool, Pooling
from hvlm.types import Tokens


class Progressive(FusingRoom):
    """One local fusion for each of the ``stages`` levels, the last of which are the visual tokens themselves.

    pyramid: ``pooled``: means over cells of place and time; what a level's cells have learned is added to the tokens in
    them, times a learned factor, before the next level. ``layers``: patches of ``stages`` - 1 of the encoder's layers,
    from the last to the first; the text alone carries what it learns there. global_fusion, pooling: see
    ``HierarchicalFusion``. The rest: see ``FusingRoom``.
    """

    def __init__(
        self,
        *,
        vision_dim: int,
        stages: PositiveInt = 3,
        pyramid: Literal["pooled", "layers"] = "pooled",
        global_fusion: bool = True,
        pooling: Pooling = "mean",
        **rest: Any,
    ):
        self.spreads = global_fusion
        super().__init__(**rest)
        dim, num_heads, mlp_ratio, dropout, gate = self.size
        self.pyramid = pyramid
        self.wants_layers = stages - 1 if pyramid == "layers" else 0
        self.levels = CoarseToFine(
            dim, num_heads, stages - self.wants_layers, text_side=global_fusion or self.writes_text,
            mlp_ratio=mlp_ratio, dropout=dropout, gate=gate,
        )  # fmt: skip
        self.before = nn.ModuleList(
            LocalFusion(dim, num_heads, mlp_ratio=mlp_ratio, dropout=dropout, gate=gate, vision_side=False)
            for _ in range(self.wants_layers)
        )
        self.widths = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(vision_dim), nn.Linear(vision_dim, dim)) for _ in range(self.wants_layers)
        )
        self.whole = GlobalFusion(dim, num_heads, pooling, mlp_ratio, dropout) if global_fusion else None
        self.mean = Pool(dim, "mean")

    def fuse(
        self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        t = text_KPD
        for stage, project, layer in zip(self.before, self.widths, reversed(layers), strict=True):
            _, t = stage(project(layer.x_BSD), t, layer.mask_BS, prompt_KP)
        self.levels.stages[-1].watch = self.watch if self.monitor else None
        v, t = self.levels(tokens, t, prompt_KP)
        if self.whole is None:
            return v, t, self.mean(v, tokens.mask_BS)
        return v, t, self.whole((tokens.x_BSD, text_KPD), (v, t), tokens.mask_BS, prompt_KP)
