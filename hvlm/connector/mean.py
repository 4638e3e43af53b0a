"""Mean pooling: one visual token per frame, the average of its patches."""

from __future__ import annotations

from typing import Literal

import torch

from hvlm.connector._project import Projector
from hvlm.contracts import Connector, Language
from hvlm.types import Patches, Prefix, Tokens


class Mean(Connector):
    """v_t = P(Σ_n s_n x_tn / Σ_n s_n), s the number of patches merged into each token. Blind to the question."""

    needs_frames = True
    alone = True

    def __init__(
        self,
        projector: Literal["linear", "mlp"] = "mlp",
        visual_scale: float = 1.0,
        standardise: bool = True,
        *,
        dim: int,
        text_dim: int,
    ):
        super().__init__()
        self.project = Projector(dim, text_dim, projector, visual_scale, standardise)

    def forward(self, patches: Patches, language: Language, prefix: Prefix | None) -> tuple[Tokens, bool]:
        """Returns (one token per frame [B, T, text_dim], False: rows are clips)."""
        tokens, (b, t) = patches.tokens, patches.frame_mask_BT.shape
        weight = (tokens.size_BS * tokens.mask_BS).unsqueeze(-1)
        frame = tokens.frame_BS.unsqueeze(-1)
        x = tokens.x_BSD.float()
        total = torch.zeros(b, t, x.shape[-1], device=x.device).scatter_add_(1, frame.expand_as(x), x * weight)
        count = torch.zeros(b, t, 1, device=x.device).scatter_add_(1, frame, weight)
        pooled = total / count.clamp(min=1e-6)
        out = self.project(pooled, patches.frame_mask_BT)
        return Tokens.of_frames(out.unsqueeze(2), patches.frame_time_BT, patches.frame_mask_BT, None), False
