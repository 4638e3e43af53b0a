"""The layers of fusion by their own names, on plain tensors and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvlm.fusion._local import LocalFusion, Update


def everything(x: Tensor, mask: Tensor | None) -> Tensor:
    """bool [B, N]: the mask, or that everything is valid."""
    return x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.bool()


class LocalFusionModule(nn.Module):
    """Visual tokens and words attend to each other: (vision [B, Nv, hidden_dim], text [B, Nt, hidden_dim]) -> both
    behind each other, [B, Nv + Nt, hidden_dim], each with what it was as a residual.

    Masks are bool or 0 and 1, [B, Nv] and [B, Nt]; what is not valid reaches nobody; there the output means nothing.
    """

    def __init__(self, hidden_dim: int, num_heads: int = 8, dropout: float = 0.1, **local: Any):
        super().__init__()
        self.fusion = LocalFusion(hidden_dim, num_heads, dropout=dropout, **local)

    def forward(
        self,
        vision_features: Tensor,
        text_features: Tensor,
        vision_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        masks = everything(vision_features, vision_mask), everything(text_features, text_mask)
        return torch.cat(self.fusion(vision_features, text_features, *masks), 1)


class SparseLocalFusion(LocalFusionModule):
    """``LocalFusionModule`` in which every query keeps the ``top_k`` keys with the highest scores; as many as there are
    give the same as without.

    update: which visual tokens learn of the text, those that a word has ``chosen`` or ``all``. compute_from: from so
    many visual tokens on, only what is chosen is computed.
    """

    def __init__(
        self,
        hidden_dim: int,
        top_k: int = 64,
        num_heads: int = 8,
        dropout: float = 0.1,
        update: Update = "chosen",
        compute_from: int = 512,
    ):
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: expected 1 or more")
        super().__init__(hidden_dim, num_heads, dropout, top_k=top_k, update=update, compute_from=compute_from)


class FusionModule(nn.Module):
    """Local fusion by a configuration: ``FusionModule({"hidden_dim": 768, "num_heads": 8})`` or ``FusionModule(768)``.

    Called with two tensors it gives both behind each other; with {"vision", "text"} and, where there is padding,
    {"vision_mask", "text_mask"}, a dictionary: ``fused_features`` and each side, ``vision`` and ``text``.
    """

    def __init__(self, config: Mapping[str, Any] | int, num_heads: int = 8, dropout: float = 0.1):
        super().__init__()
        if isinstance(config, Mapping):
            num_heads, dropout = config.get("num_heads", num_heads), config.get("dropout", dropout)
        width = config["hidden_dim"] if isinstance(config, Mapping) else config
        self.local = LocalFusionModule(width, num_heads, dropout)

    def forward(self, vision: Tensor | Mapping[str, Tensor], text: Tensor | None = None, *masks: Tensor) -> Any:
        if not isinstance(vision, Mapping):
            return self.local(vision, text, *masks)
        sides = vision["vision"], vision["text"]
        fused = self.local(*sides, vision.get("vision_mask"), vision.get("text_mask"))
        seen, words = fused.split([side.shape[1] for side in sides], 1)
        return {"fused_features": fused, "vision": seen, "text": words}


class ProgressiveFusion(nn.Module):
    """Words learn of one level of a pyramid after the other: (levels [B, N_i, hidden_dim] from coarse to fine, text
    [B, Nt, hidden_dim]) -> text [B, Nt, hidden_dim]. Levels may be of any lengths: the text is what goes through all.
    """

    def __init__(self, hidden_dim: int, num_stages: int = 3, num_heads: int = 8, dropout: float = 0.1):
        super().__init__()
        self.fusion_stages = nn.ModuleList(
            LocalFusion(hidden_dim, num_heads, dropout=dropout, vision_side=False) for _ in range(num_stages)
        )

    def forward(
        self,
        vision_pyramid: Sequence[Tensor],
        text: Tensor,
        vision_masks: Sequence[Tensor | None] | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        if len(vision_pyramid) != len(self.fusion_stages):
            raise ValueError(
                f"num_stages={len(self.fusion_stages)}: expected as many levels, found {len(vision_pyramid)}"
            )
        masks = vision_masks or [None] * len(vision_pyramid)
        for stage, level, mask in zip(self.fusion_stages, vision_pyramid, masks, strict=True):
            _, text = stage(level, text, everything(level, mask), everything(text, text_mask))
        return text
