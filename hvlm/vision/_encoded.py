"""What encoders hand on, from what their layers made."""

from __future__ import annotations

import torch
from torch import Tensor

from hvlm.types import KV, Encoded, Tokens, Wants
from hvlm.vision._saliency import saliency_of


def encoded(
    wants: Wants, tokens: Tokens, kv: KV, summaries: list[Tensor], pixels_FCHW: Tensor | None,
    q_FHNd: Tensor | None, k_FHNd: Tensor, grid: tuple[int, int],
) -> Encoded:  # fmt: skip
    """tokens: without saliency. kv: of all layers. summaries: [F, dim] of each wanted layer. q, k: queries and keys of
    the last layer, for saliency; q may be None where none is wanted, and the pixels where it is not spectral."""
    b = len(tokens.mask_BS)
    if wants.saliency:
        score_FN = saliency_of(wants.saliency, pixels_FCHW, q_FHNd, k_FHNd, grid)
        tokens = tokens._replace(saliency_BS=score_FN.reshape(b, -1))
    summary = torch.stack(summaries, 1).unflatten(0, (b, -1)) if wants.summaries else None
    return Encoded(tokens, kv if wants.kv else None, summary)
