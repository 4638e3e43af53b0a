"""How much each KV head looks far back, told without training gates: scores for ``kvcache=duo`` to choose heads by.

Each function gives float32 [layers, KV heads] in [0, 1], as gates are (``hvlm.io.head_patterns.write_pattern``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hvlm.caching import PastKV, Scores
from hvlm.contracts import Language
from hvlm.errors import UserError
from hvlm.functional import attention_weights, repeat_heads, visible

QUERIES = 256  # so many are looked at at a time
Watch = Callable[[PastKV, int, Tensor, Tensor, float], None]


@torch.no_grad()
def by_reconstruction(
    language: Language,
    context_KSD: Tensor,
    request_KPD: Tensor,
    mask_KS: Tensor | None = None,
    skip: int = 4,
) -> Tensor:
    """KVzip's score of heads (Kim et al. 2025): the model is made to repeat what it has read, and a head is worth the
    highest attention that any place of the context is paid meanwhile, over the head's queries; the mean over rows.

    As in the authors' code the first places of a row, on which attention that is for nothing rests, do not count. There
    the context is repeated in pieces of 2,048 tokens, and attention is normalised over the piece; here it is one piece.

    Args:
        language: whose heads.
        context_KSD: embeddings of K contexts, visual tokens among them or not. They are also the answer.
        request_KPD: embeddings of what asks for the repetition, the same length in all rows.
        mask_KS: bool, False for padding of the context.
        skip: valid places at the beginning of a row that do not count.
    """
    rows, length, _ = context_KSD.shape
    if mask_KS is None:
        mask_KS = torch.ones(rows, length, dtype=torch.bool, device=context_KSD.device)
    counts = mask_KS & (mask_KS.cumsum(1) > skip)
    if not bool(counts.any(1).all()):
        raise UserError(f"skip={skip}: a context has no more tokens than that, so none is left to be looked at")
    score = torch.zeros(rows, language.num_layers, language.num_kv_heads, device=context_KSD.device)

    def watch(cache: PastKV, layer: int, query: Tensor, key: Tensor, scale: float) -> None:
        seen = visible(cache.mask_KL, query.shape[2])
        for start in range(0, query.shape[2], QUERIES):
            part = slice(start, start + QUERIES)
            weights = attention_weights(query[:, :, part], key, seen[:, :, part], scale)[..., :length]
            asks = mask_KS[:, part][:, None, :, None] & counts[:, None, None]
            most = weights.masked_fill(~asks, 0).amax((2, 3))
            score[:, layer] = score[:, layer].maximum(most.unflatten(1, (language.num_kv_heads, -1)).amax(2))

    cache = _Watched()
    language.hidden(context_KSD, mask_KS, cache=cache)
    language.hidden(request_KPD, cache=cache)
    cache.watch = watch
    language.hidden(context_KSD, mask_KS, cache=cache)
    return score.mean(0).cpu()


@torch.no_grad()
def by_relative_attention(
    language: Language, x_KSD: Tensor, mask_KS: Tensor | None = None, positions: int = 500
) -> Tensor:
    """kvpress' score without training: the mean query of a head and its mean key, before their rotation, stand at
    ``positions`` places in a row, and the score is the area under the cumulative attention of the last one: near 1
    where it looks at the beginning, near 0 where it looks at itself. Its mean over a KV head's query heads and over
    rows.

    Args:
        language: whose heads.
        x_KSD: embeddings of K samples.
        mask_KS: bool, False for padding.
        positions: how far back attention is looked at.
    """
    score = torch.zeros(language.num_layers, language.num_kv_heads)
    rotation = getattr(language, "rotation", None)
    if rotation is None:
        raise UserError(
            "relative head scores: how this language model rotates its queries cannot be told from outside; use scores "
            "by reconstruction"
        )
    valid = torch.ones(x_KSD.shape[:2], dtype=torch.bool, device=x_KSD.device) if mask_KS is None else mask_KS
    weight = (valid.float() / valid.sum(1, keepdim=True).clamp(min=1))[:, None, :, None]
    place = torch.arange(positions, device=x_KSD.device)[None]

    def watch(cache: PastKV, layer: int, query: Tensor, key: Tensor, scale: float) -> None:
        angles, stands = rotation.angles(cache.position_KL, layer), rotation.angles(place, layer)
        back = None if angles is None else angles.back
        q, k = ((rotation.turn(x, back) * weight).sum(2, keepdim=True) for x in (query, key))
        q, k = (rotation.turn(x.expand(-1, -1, positions, -1), stands) for x in (q, k))
        area = attention_weights(q[:, :, -1:], k, None, scale)[:, :, 0].cumsum(-1).mean(-1)
        score[layer] = area.unflatten(1, (language.num_kv_heads, -1)).mean((0, 2)).cpu()

    cache = _Watched()
    cache.watch = watch
    language.hidden(x_KSD, mask_KS, cache=cache)
    return score


def at_random(layers: int, heads: int, seed: int) -> Tensor:
    """A control: uniform in [0, 1), the same for a seed."""
    return torch.rand(layers, heads, generator=torch.Generator().manual_seed(seed))


def inverse(gates: Tensor) -> Tensor:
    """A control: the opposite order of heads, ties included (``hvlm.io.head_patterns.choose_heads``): evenly spaced
    from 0 for the head that would be chosen first to 1 for the last."""
    order = gates.flatten().float().argsort(descending=True, stable=True)
    ranks = torch.empty(len(order)).scatter(0, order, torch.arange(len(order)) / max(1, len(order) - 1))
    return ranks.view(gates.shape)


class _Watched(PastKV):
    """Keeps everything, and shows each layer's queries [K, H, S, d] and all keys [K, H, L, d] to ``watch``."""

    watch: Watch | None = None

    def attend(self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        if self.watch is not None:
            scale = how.scale_for(query.shape[-1])
            with torch.autocast(query.device.type, enabled=False):
                self.watch(self, layer_idx, query.float(), repeat_heads(key, query.shape[1]).float(), scale)
        return super().attend(layer_idx, query, key, value, how)

    def full_mask(self, window: int | None = None) -> Tensor:
        raise UserError("head scores: queries are seen by our attention alone; use language.attention=auto")
