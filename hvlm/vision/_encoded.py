"""What encoders hand on, from what their layers made."""

from __future__ import annotations

import torch
from torch import Tensor

from hvlm.types import KV, Encoded, Tokens, Wants
from hvlm.vision._saliency import saliency_of


def encoded(
    wants: Wants, tokens: Tokens, kv: KV, summaries: list[Tensor], pixels_FCHW: Tensor | None,
    q_FHNd: Tensor | None, k_FHNd: Tensor, grid: tuple[int, int], layers: list[Tensor],
) -> Encoded:  # fmt: skip
    """tokens: without saliency. kv: of all layers. summaries: [F, dim] of each wanted layer. q, k: queries and keys of
    the last layer, for saliency; q may be None where none is wanted, and the pixels where it is not spectral. layers:
    patches [F, N, dim] of all layers before the last, [] where none are wanted."""
    b = len(tokens.mask_BS)
    if wants.saliency:
        score_FN = saliency_of(wants.saliency, pixels_FCHW, q_FHNd, k_FHNd, grid)
        tokens = tokens._replace(saliency_BS=score_FN.reshape(b, -1))
    summary = torch.stack(summaries, 1).unflatten(0, (b, -1)) if wants.summaries else None
    taken = tuple(layers[i].reshape(b, -1, layers[i].shape[-1]) for i in spread(len(layers), wants.layers))
    return Encoded(tokens, kv if wants.kv else None, summary, taken)


def spread(there: int, wanted: int) -> list[int]:
    """So many of the first ``there`` numbers, evenly spread: 1 of 5 is [2], 2 of 5 are [1, 3]."""
    return [max(0, round((i + 1) * (there + 1) / (wanted + 1)) - 1) for i in range(wanted)]
