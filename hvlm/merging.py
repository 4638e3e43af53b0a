"""Merging tokens, as pure functions: which token goes where, applied to anything that has the same token axis.

Choosing is done without gradients and speaks in *roots*: root_BS[b, s] is the place of the token that stands for token
s (its own place: it is kept; -1: it is dropped). Roots of several rounds compose. :class:`Assignment` is the same thing
ready to be applied, differentiable through what it is applied to and through its weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hvlm.types import Tokens

_BLOCK = 1 << 20  # scores of a block of sources: 4 MB, so that their maximum is taken while they are in the cache

_CHUNK = 64


class Assignment(NamedTuple):
    """S tokens to M of them.

    to_BS: int64, the destination of each token; M for none (padding, or dropped). weight_BS: float, its weight in the
    mean of its destination. mask_BM: bool, which destinations exist (they come first).
    """

    to_BS: Tensor
    weight_BS: Tensor
    mask_BM: Tensor

    @classmethod
    def of_roots(cls, root_BS: Tensor, mask_BS: Tensor, weight_BS: Tensor) -> Assignment:
        """Destinations stand in the order of their roots. mask_BS: which tokens are real (others go nowhere)."""
        b, s = root_BS.shape
        kept = (root_BS == torch.arange(s, device=root_BS.device)) & mask_BS
        count = kept.sum(1)
        m = int(count.max())
        place = kept.cumsum(1) - 1
        goes = mask_BS & (root_BS >= 0)
        to = torch.where(goes, place.gather(1, root_BS.clamp(min=0)), m)
        return cls(to, weight_BS, torch.arange(m, device=root_BS.device) < count.unsqueeze(1))

    def sum(self, x_BSD: Tensor) -> Tensor:
        """Sums over the tokens of each destination, [B, S, ...] -> [B, M, ...]."""
        b, s = self.to_BS.shape
        m = self.mask_BM.shape[1]
        flat = (self.to_BS + torch.arange(b, device=self.to_BS.device).unsqueeze(1) * (m + 1)).flatten()
        out = x_BSD.new_zeros(b * (m + 1), *x_BSD.shape[2:]).index_add_(0, flat, x_BSD.flatten(0, 1))
        return out.unflatten(0, (b, m + 1))[:, :m]

    def merge(self, x_BSD: Tensor) -> Tensor:
        """Weighted means, sum_s w_s x_s / sum_s w_s; zero where there is no destination. Summed in float32 at least:
        bfloat16 cannot count beyond 256."""
        wide = torch.promote_types(x_BSD.dtype, torch.float32)
        weight = self.weight_BS.to(wide)
        # Shares of the mean first: dividing S weights costs less than dividing M features.
        total = self.unmerge(self.sum(weight))
        share = weight / torch.where(total > 0, total, 1)
        return self.sum(x_BSD.to(wide) * share.unflatten(1, (-1, *(1,) * (x_BSD.dim() - 2)))).to(x_BSD.dtype)

    def unmerge(self, y_BMD: Tensor) -> Tensor:
        """Every token gets its destination's value, [B, M, ...] -> [B, S, ...]; zero for those that went nowhere."""
        y = torch.cat([y_BMD, torch.zeros_like(y_BMD[:, :1])], 1)
        index = self.to_BS.unflatten(1, (-1, *(1,) * (y.dim() - 2)))
        return y.gather(1, index.expand(-1, -1, *y.shape[2:]))

    def tokens(self, tokens: Tokens, sizes_add: bool = True) -> Tokens:
        """The merged tokens: features by weight; times, frames and places as centroids weighted by size.

        sizes_add: a destination is as large as its tokens together; False (droppers): as large as its root was, one.
        What is merged keeps no positions; where sizes count in the attention, the new ones do.
        """
        size = tokens.size_BS * (self.to_BS < self.mask_BM.shape[1])
        total = self.sum(size)

        def centroid(y: Tensor | None) -> Tensor | None:
            """Sums divided by sums, so that the mean of equal times is that time to the last bit."""
            if y is None:
                return None
            extra = (1,) * (y.dim() - 2)
            summed = self.sum(y.to(size.dtype) * size.unflatten(1, (-1, *extra)))
            return summed / total.clamp(min=1e-12).unflatten(1, (-1, *extra))

        size_of_each = total if sizes_add else self.mask_BM.to(size.dtype)
        return Tokens(
            x_BSD=self.merge(tokens.x_BSD),
            time_BS=centroid(tokens.time_BS),
            frame_BS=centroid(tokens.frame_BS).round().long(),
            yx_BS2=centroid(tokens.yx_BS2),
            size_BS=size_of_each,
            mask_BS=self.mask_BM,
            saliency_BS=centroid(tokens.saliency_BS),
            motion_BS=centroid(tokens.motion_BS),
            log_size_BS=None if tokens.log_size_BS is None else size_of_each.clamp(min=1).log(),
        )


class MergedKeys(NamedTuple):
    """Keys that stand for several patches: ToMe's proportional attention, softmax(q k^T / sqrt(d) + log size).

    to: which of a frame's patches went where. log_size_FN: float, log of the number of patches behind each key (0 for
    CLS, which comes first), -inf for padding.
    """

    to: Assignment
    log_size_FN: Tensor

    def spread(self, weights: Tensor) -> Tensor:
        """Attention [layers, F, Q, keys] on patches instead of merged keys: each patch an equal part of its key's."""
        others = weights.shape[-1] - self.to.mask_BM.shape[1]  # CLS
        layers, f, q, _ = weights.shape
        size = self.log_size_FN.exp().clamp(min=1e-12)[:, None]
        each = (weights / size)[..., others:].permute(1, 3, 0, 2).flatten(2)
        patches = self.to.unmerge(each).unflatten(2, (layers, q)).permute(2, 0, 3, 1)
        return torch.cat([weights[..., :others], patches], -1)


def in_time_order(tokens: Tokens) -> Tokens:
    """Sort every row by time; tokens of the same time keep their order, padding goes last."""
    time = tokens.time_BS.masked_fill(~tokens.mask_BS, torch.inf)
    return tokens.gather(time.argsort(dim=1, stable=True))


# -------------------------------------------------------------------------------------------------- bipartite matching


@torch.no_grad()
def bipartite(metric_BSD: Tensor, r_B: Tensor | int, mask_BS: Tensor | None = None) -> Tensor:
    """One round of ToMe's bipartite soft matching (Bolya et al. 2023): roots [B, S], r tokens fewer.

    Tokens at even places each find the most similar one at an odd place (cosine of ``metric``); the ``r`` most similar
    pairs merge, several sources may share a destination. r: per row or for all, at most half of the row's tokens.
    mask: padding behind the tokens. O(S² D / 4) operations; the scores are never held for all sources at once.
    """
    b, s, _ = metric_BSD.shape
    device = metric_BSD.device
    root = torch.arange(s, device=device).expand(b, s)
    most = int(r_B) if isinstance(r_B, int) else int(r_B.max())
    if most <= 0:
        return root
    sources, targets = metric_BSD[:, ::2], metric_BSD[:, 1::2]
    length = metric_BSD.norm(dim=-1).clamp(min=1e-12)
    # The length of a source does not change which target is nearest, so it is divided out of the maximum alone; that of
    # a target, out of the scores or out of the target, whichever is smaller.
    few = targets.shape[-1] > sources.shape[1]
    if not few:
        targets = targets / length[:, 1::2, None]
    absent = None if mask_BS is None else ~mask_BS[:, None, 1::2]
    best, nearest = [], []
    for part in sources.split(max(1, _BLOCK // max(1, b * targets.shape[1])), 1):
        scores = part @ targets.transpose(1, 2)
        if few:
            scores /= length[:, None, 1::2]
        if absent is not None:
            scores.masked_fill_(absent, -torch.inf)
        values, indices = _max(scores)
        best.append(values)
        nearest.append(indices)
    best_BA = torch.cat(best, 1) / length[:, ::2]
    if mask_BS is not None:
        best_BA = best_BA.masked_fill(~mask_BS[:, ::2], -torch.inf)
    chosen = best_BA.topk(most, 1).indices
    into = 2 * torch.cat(nearest, 1).gather(1, chosen) + 1
    if not isinstance(r_B, int):  # rows with fewer merges keep the rest of what topk gave
        into = torch.where(torch.arange(most, device=device) < r_B.unsqueeze(1), into, 2 * chosen)
    return root.scatter(1, 2 * chosen, into)


def _max(scores: Tensor) -> tuple[Tensor, Tensor]:
    """``scores.max(-1)``. A CPU looks for the place of a maximum one by one, for its value many at a time: so first the
    values of chunks, then the place of the chunk, then the place in it (half the time at 2,048 columns)."""
    if scores.shape[-1] < 8 * _CHUNK or scores.shape[-1] % _CHUNK:
        found = scores.max(-1)
        return found.values, found.indices
    chunks = scores.unflatten(-1, (-1, _CHUNK))
    values, at = chunks.amax(-1).max(-1)
    inside = chunks.gather(-2, at[..., None, None].expand(*at.shape, 1, _CHUNK)).squeeze(-2).argmax(-1)
    return values, at * _CHUNK + inside


@torch.no_grad()
def bipartite_down_to(x_BSD: Tensor, size_BS: Tensor, mask_BS: Tensor, target_B: Tensor, groups: int = 0) -> Tensor:
    """Rounds of bipartite matching, each at most halving, until every row has ``target_B`` tokens: roots [B, S].

    Between rounds tokens are size-weighted means and stand in the order of their roots. groups: compare the mean of so
    many equal groups of channels instead of the channels themselves (LongVLM: 16 groups of 1,024 channels); 0: not.
    """
    b, s, _ = x_BSD.shape
    root = torch.arange(s, device=x_BSD.device).repeat(b, 1)
    at, x, size, mask = root, x_BSD, size_BS, mask_BS  # the tokens that are left, and where they stood
    while True:
        count = mask.sum(1)
        r_B = torch.minimum(count // 2, (count - target_B).clamp(min=0))
        if not r_B.any():
            return root
        metric = x.unflatten(-1, (groups, -1)).mean(-2) if groups else x
        pairs = bipartite(metric, r_B, mask)
        step = Assignment.of_roots(pairs, mask, size)
        # For the tokens that are left: the place in the whole row of what stands for them.
        pair_of = at.gather(1, pairs)
        root = torch.zeros_like(root).scatter(1, at, pair_of).gather(1, root)
        kept = pairs == torch.arange(pairs.shape[1], device=x.device)
        x, size = step.merge(x), step.sum(size)
        at = at.gather(1, (~(kept & mask)).long().argsort(dim=1, stable=True)[:, : x.shape[1]])
        mask = step.mask_BM


# ------------------------------------------------------------------------------------------------------------- budgets


def round_half_up(x: Tensor) -> Tensor:
    return (x + 0.5).floor().long()


@torch.no_grad()
def best_of_each(score_BTN: Tensor, budget_BT: Tensor) -> Tensor:
    """bool [B, T, N]: the ``budget`` highest scores of every frame, ties to the earlier place."""
    rank = score_BTN.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return rank < budget_BT.unsqueeze(-1)


@torch.no_grad()
def best_of_clip(score_BTN: Tensor, mask_BT: Tensor, total_B: Tensor, least: int) -> Tensor:
    """bool [B, T, N]: the ``least`` highest scores of every valid frame, then the highest of the whole clip,
    ``total`` in all; ties to the earlier place. The budget follows the scores: a frame has as many as it has high
    ones."""
    first = best_of_each(score_BTN, least * mask_BT)
    valid = mask_BT.unsqueeze(-1)
    # Sorting in two steps: what is given anyway, then the rest by score, then padding.
    order = score_BTN.flatten(1).argsort(dim=1, descending=True, stable=True)
    group = torch.where(first, 0, torch.where(valid, 1, 2)).flatten(1).gather(1, order)
    order = order.gather(1, group.argsort(dim=1, stable=True))
    return (order.argsort(1) < total_B.unsqueeze(1)).unflatten(1, score_BTN.shape[1:])


@torch.no_grad()
def roots_in_frame(x_BTND: Tensor, kept_BTN: Tensor) -> Tensor:
    """Every token that is not kept joins the most similar (cosine) kept one of its frame: roots [B, T * N].

    A frame of which nothing is kept is dropped (-1).
    """
    b, t, n, _ = x_BTND.shape
    unit = torch.nn.functional.normalize(x_BTND.float(), dim=-1)
    most = max(1, int(kept_BTN.sum(-1).max()))
    # The kept tokens of every frame first: [B, T, most]
    anchors = (~kept_BTN).long().argsort(dim=-1, stable=True)[..., :most]
    real = kept_BTN.gather(-1, anchors)
    similar = unit @ unit.gather(2, anchors.unsqueeze(-1).expand(-1, -1, -1, unit.shape[-1])).transpose(2, 3)
    nearest = similar.masked_fill(~real.unsqueeze(2), -torch.inf).argmax(-1)
    place = torch.arange(n, device=unit.device)
    root = torch.where(kept_BTN, place, anchors.gather(-1, nearest))
    root = root + n * torch.arange(t, device=unit.device).unsqueeze(-1)
    return torch.where(kept_BTN.any(-1, keepdim=True), root, -1).reshape(b, t * n)


def roots_or_dropped(kept_BTN: Tensor) -> Tensor:
    """What is not kept is dropped: roots [B, T * N]."""
    kept = kept_BTN.flatten(1)
    return torch.where(kept, torch.arange(kept.shape[1], device=kept.device), -1)
