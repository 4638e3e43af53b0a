"""Caches that keep a number of places of the context in each KV head, chosen by a score: what the rooms share.

Each KV head keeps places of its own, with the rotation, the size and the validity that they had; what comes after sees
those, and attention over them is masked attention over everything that was read.

When: at the end of a pass of more than one token, in which its tokens still see each other and all that was kept
before, so a context may be read in one piece or in several. Tokens that are read one at a time (a question fed as
steps of its own, what is written), and everything after ``question()``, are added and nothing is thrown away, but
where ``slack`` says how many may come to more than the budget: then a stream has its places chosen again each time that
it has grown so far.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.caching import Held, PastKV, Scores
from hvlm.contracts import KVCache
from hvlm.errors import UserError
from hvlm.functional import attend


class Budget(NamedTuple):
    """What a KV head keeps of the context.

    places: so many. share: in their stead, this share of the valid places of its row, rounded up. slack: how many more
    tokens that come one at a time may add before places are chosen again; None: any number.
    """

    places: int
    share: float | None = None
    slack: int | None = None

    def of(self, read: Tensor) -> Tensor:
        """Places that stay of ``read`` valid ones, int64 of any shape."""
        if self.share is None:
            return read.clamp(max=self.places)
        return torch.ceil(read.double() * self.share - 1e-9).long().clamp(min=1).minimum(read)

    def __str__(self) -> str:
        return f"kvcache.budget={self.places}" if self.share is None else f"kvcache.share={self.share:g}"


class Look(NamedTuple):
    """One layer's attention of the pass that has just been: S new places at the end of M.

    query: [K, H, S, d]. key, value: [K, G, M, d]. index: int64 [K, G, M], which of all places that were read each one
    is, ascending, -1 for none. valid: bool [K, G, M]. bias: float [K, G, M], added to the scores; None: zero.
    how: the layer makes its scores.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    index: Tensor
    valid: Tensor
    bias: Tensor | None
    how: Scores


class EvictingKV(PastKV):
    """Of what was read, each KV head keeps the places with the highest ``score``.

    Until something has to go it is the cache that keeps everything. Validity, positions and sizes of all places that
    were read are remembered (17 bytes a place and row), keys and values only of those that are kept.
    """

    # There by the time that anything is asked of them: every pass is announced.
    mask_KL: Any
    position_KL: Any
    next_K1: Any

    def __init__(self, name: str, budget: Budget) -> None:
        self.name, self.budget = name, budget
        super().__init__()

    def _forget(self) -> None:
        super()._forget()
        self._index: dict[int, Tensor] = {}  # of each layer, once places went: which ones its heads keep
        self._kept = 0  # places that every head has memory for
        self._valid_K: Any = None  # how many of them are valid
        self._goal_K: Any = None  # how many stay after the pass that was announced; None: all
        self._over = False  # whether the context has been read
        self._fresh: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values of layers that attention has yet to see
        self._announced = False
        self._done: set[int] = set()  # layers that the pass came to

    @abstractmethod
    def score(self, look: Look) -> tuple[Tensor, Tensor | None]:
        """What each place is worth, float [K, G, M], and which ones stay in any case, bool [K, G, M] (None: none).
        Values of places that are not valid do not matter."""

    # ------------------------------------------------------------------------------------------------------ a pass

    def extend(
        self,
        x_KSD: Tensor,
        mask_KS: Tensor | None = None,
        position_KS: Tensor | None = None,
        bias_KS: Tensor | None = None,
    ) -> Tensor:
        positions = super().extend(x_KSD, mask_KS, position_KS, bias_KS)
        new = x_KSD.shape[1]
        valid = self.mask_KL[:, -new:].sum(1)
        self._valid_K = valid if self._valid_K is None else self._valid_K + valid
        self._kept += new
        self._goal_K, self._announced, self._done = None, True, set()
        may_grow = self.budget.slack if new == 1 or self._over else 0
        if may_grow is not None:
            goal_K = self.budget.of(self.mask_KL.sum(1)).minimum(self._valid_K)
            limit = int(self.budget.of(torch.tensor(self.length)))
            if self._kept > limit + may_grow:
                self._goal_K = self._valid_K = goal_K
                self._kept = max(1, int(goal_K.max()))
        return positions

    @property
    def in_pieces(self) -> bool:  # type: ignore[override]
        """What follows the context is added, in whatever pieces it comes; of the context pieces are told apart."""
        return self._over

    def question(self) -> None:
        self._over = True

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Takes the new ones; what attention is given in their place leads back here."""
        if layer_idx in self._done:  # another pass began, and nobody announced it
            self._announced = False
        self._fresh[layer_idx] = super().update(key_states, value_states, layer_idx)
        held = Held(self, layer_idx)
        return held, held

    def announced(self, layer_idx: int, mask: Tensor | None) -> None:
        """Before ``attend``: transformers' own ``generate`` announces nothing, and knows padding by its mask."""
        if self._announced:
            return
        keys, _ = self._fresh[layer_idx]
        new = keys.shape[2] - self._kept
        valid = None if mask is None else mask[:, 0, -1, -new:].expand(len(keys), -1)
        self.extend(keys[:, 0, -new:], valid)

    def attend(self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        key, value = self._fresh.pop(layer_idx)
        self._done.add(layer_idx)
        if layer_idx not in self._index:
            out = super().attend(layer_idx, query, key, value, how)
            if self._goal_K is None:
                return out
        index = self._places(layer_idx, key)
        valid = self._of_places(self.mask_KL, index) & (index >= 0)
        bias = None if self.bias_KL is None else self._of_places(self.bias_KL, index)
        if layer_idx in self._index:
            new = torch.arange(self.length - self._new, self.length, device=key.device).expand(len(key), -1)
            mask = self.mask_of(index, valid, bias, new, how.window)
            mask = None if mask.dtype == torch.bool and bool(mask.all()) else mask
            if mask is not None and mask.shape[1] != query.shape[1]:
                mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], 1)
            out = attend(query, key, value, mask, False, how.scale, softcap=how.softcap)
        if self._goal_K is not None:
            with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
                q, k, v = (part.float() for part in (query, key, value))
                worth, stays = self.score(Look(layer_idx, q, k, v, index, valid, bias, how))
                chosen = best(worth, valid, self._goal_K, stays)
            self._keep(layer_idx, key, value, index, chosen)
        else:
            self._index[layer_idx] = index
        return out

    def _places(self, layer: int, key: Tensor) -> Tensor:
        """Which of all places that were read those of ``key`` [K, G, M, d] are: int64 [K, G, M]."""
        rows, groups, places, _ = key.shape
        old = self._index.get(layer)
        start = 0 if old is None else self.length - self._new
        new = torch.arange(start, self.length, device=key.device).expand(rows, groups, -1)
        return new if old is None else torch.cat([old, new], 2)

    @staticmethod
    def _of_places(x_KL: Tensor, index_KGM: Tensor) -> Tensor:
        return x_KL.unsqueeze(1).expand(-1, index_KGM.shape[1], -1).gather(2, index_KGM.clamp(min=0))

    def mask_of(
        self, index: Tensor, valid: Tensor, bias: Tensor | None, query_KS: Tensor, window: int | None
    ) -> Tensor:
        """What the places ``query_KS`` of all that were read see of those in ``index`` [K, G, M]: valid ones up to
        themselves, and themselves, so that no row of the softmax is empty. bool, or float and to be added where places
        have a bias, [K, G, S, M]."""
        own = query_KS[:, None, :, None]
        seen = (valid.unsqueeze(2) & (index.unsqueeze(2) < own)) | (index.unsqueeze(2) == own)
        if window is not None:
            position = self._of_places(self.position_KL, index)
            stands = self.position_KL.gather(1, query_KS)[:, None, :, None]
            seen = seen & (stands - position.unsqueeze(2) < window)
        return seen if bias is None else torch.where(seen, bias.unsqueeze(2), torch.finfo(torch.float32).min)

    def _keep(self, layer: int, key: Tensor, value: Tensor, index: Tensor, chosen: Tensor) -> None:
        """Go on with the places ``chosen`` [K, G, N] of the M, -1 for none."""
        at = chosen.clamp(min=0)
        self._index[layer] = index.gather(2, at).masked_fill(chosen < 0, -1)
        wide = at.unsqueeze(-1).expand(-1, -1, -1, key.shape[-1])
        self.layers[layer].keys = key.gather(2, wide)
        self.layers[layer].values = value.gather(2, at.unsqueeze(-1).expand(-1, -1, -1, value.shape[-1]))

    def full_mask(self, window: int | None = None) -> Tensor:
        raise UserError(
            f"kvcache={self.name}: its heads keep different places, which our attention alone can read; use "
            "language.attention=auto, or kvcache=full"
        )

    # --------------------------------------------------------------------------------------------- rows and copies

    def copy(self) -> PastKV:
        other = super().copy()
        other._index = dict(self._index)
        return other

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """As transformers asks for its masks: (places that were read and the new ones, 0)."""
        return self.length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        if self._index:
            raise ValueError("places were forgotten since: a cache that forgets cannot take tokens back; use copy()")
        super().crop(tokens_to_remove)
        self._kept = self.length
        self._valid_K = None if self.mask_KL is None else self.mask_KL.sum(1)

    def _take_rows(self, index_R: Tensor) -> None:
        super()._take_rows(index_R)
        self._index = {layer: index[index_R] for layer, index in self._index.items()}
        self._valid_K = None if self._valid_K is None else self._valid_K[index_R]


class EvictingRoom(KVCache):
    """The budget and its bytes.

    Args:
        name: of the room, for what is said of it.
        budget: places that each KV head keeps of the context. share: in its stead, the share of the context's places.
        slack: see ``Budget``.
        chunk: the context is read in pieces of so many places; None: at once.
    """

    apart = True
    own_attention = True

    def __init__(
        self,
        *,
        name: str,
        budget: int,
        share: float | None,
        chunk: int | None,
        slack: int | None = None,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
    ):
        super().__init__(num_layers=num_layers, num_kv_heads=num_kv_heads, head_dim=head_dim)
        self.name, self.budget, self.chunk = name, Budget(budget, share, slack), chunk

    def bytes(self, length: int, rows: int = 1, bytes_per_value: int = 4) -> int:
        """2 (keys, values) · layers · heads · width · places that stay of a context of ``length`` · rows · bytes of a
        value. Tokens that are read one at a time afterwards take as much as any, until ``slack`` of them have come."""
        kept = int(self.budget.of(torch.tensor(length)))
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * kept * rows * bytes_per_value


# ------------------------------------------------------------------------------------------------- choosing by score


def best(score: Tensor, valid: Tensor, goal_K: Tensor, stays: Tensor | None = None) -> Tensor:
    """The valid places with the highest scores, ``goal_K[k]`` in every head of row k: int64 [K, G, N], ascending, with
    -1 after them in rows with fewer. Of equal scores the older place goes first.

    score: [K, G, M]. stays: bool, places before all others.
    """
    order = rank(score, valid, stays)
    width = max(1, int(goal_K.max()))
    chosen = order[..., :width]
    past = torch.arange(width, device=score.device) >= goal_K[:, None, None]
    none = score.shape[-1]
    chosen = chosen.masked_fill(past, none).sort(-1).values
    return chosen.masked_fill(chosen == none, -1)


def rank(score: Tensor, valid: Tensor, stays: Tensor | None = None) -> Tensor:
    """Places [..., M] from the best to the worst: those that stay, then valid ones by score, then the others; equal
    ones in their order."""
    order = score.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    first = valid.long() if stays is None else valid.long() + (stays & valid).long()
    return order.gather(-1, first.gather(-1, order).argsort(dim=-1, descending=True, stable=True))


def top(score: Tensor, among: Tensor, many: Tensor) -> Tensor:
    """bool [..., M]: the ``many`` [...] highest of the places ``among``, the older of equal ones first."""
    order = rank(score, among)
    place = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    ranks = torch.empty_like(order).scatter(-1, order, place)
    return among & (ranks < many.unsqueeze(-1))


def pooled(score: Tensor, among: Tensor, kernel: int, how: str = "avg") -> Tensor:
    """Scores [..., M] averaged (or the highest of) over ``kernel`` neighbours, in the order of the places ``among``,
    as if there were no others; outside are zeros. Elsewhere: zero."""
    if kernel == 1:
        return score.masked_fill(~among, 0)
    order = (~among).long().argsort(dim=-1, stable=True)
    packed = score.masked_fill(~among, 0).gather(-1, order).flatten(0, -2).unsqueeze(1)
    pool = F.avg_pool1d if how == "avg" else F.max_pool1d
    found = pool(packed, kernel, stride=1, padding=kernel // 2).view_as(score)
    return torch.empty_like(score).scatter(-1, order, found).masked_fill(~among, 0)


def grouped(x_KHM: Tensor, groups: int) -> Tensor:
    """The mean of each KV head's query heads: [K, H, M] -> [K, G, M]."""
    return x_KHM.unflatten(1, (groups, -1)).mean(2)


def order_in_row(mask_KL: Tensor) -> Tensor:
    """Which of its row's valid tokens each place is, int64 [K, L]; what it says of padding does not matter."""
    return mask_KL.cumsum(1) - 1
