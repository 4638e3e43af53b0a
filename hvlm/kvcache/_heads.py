"""A cache whose KV heads keep different things: everything that was read, or a row's first tokens and its latest.

The mask is DuoAttention's (Xiao et al. 2024), and StreamingLLM's where no head keeps everything: counted in the valid
tokens of its row, token i of a streaming head sees token j if j <= i and (j < sink or i - j < recent). Keys are kept
with the rotation of the position at which they were read. Where a streaming head's stand: ``hvlm.kvcache._ring``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.caching import Held, PastKV, Scores
from hvlm.errors import UserError
from hvlm.functional import attend
from hvlm.kvcache._ring import Ring
from hvlm.kvcache._store import Bits, Parts, Store

QUERIES = 256  # of a longer piece so many are looked at at a time, times the query heads of a KV head for whole heads

Heads: TypeAlias = "slice | Tensor"


class Kind(NamedTuple):
    """The KV heads of a layer that keep the same: near: the ring; otherwise everything."""

    heads: Heads
    store: Store
    near: bool


class HeadsKV(PastKV):
    """Reads without gradients. Reading in pieces of any size is reading all at once, unless ``by_piece``.

    Args:
        whole: for each layer and KV head, whether it keeps everything.
        sink, recent: what the others keep, in valid tokens of a row; a token counts itself.
        bits: of a kept number (``codec``): what is read is seen as it is kept, so that pieces do not matter.
        by_piece: of a piece of more than one token, streaming heads see all that stands before in it, and of what was
            read before the piece the sink and the recent (DuoAttention's own prefill, by which the first piece is read
            as if every head kept everything).
    """

    # There by the time that anything is asked of them: every pass is announced.
    mask_KL: Any
    position_KL: Any
    bias_KL: Any

    def __init__(
        self, whole: Sequence[Sequence[bool]], sink: int, recent: int, bits: Bits | None = None, by_piece: bool = False
    ) -> None:
        self.whole = [list(layer) for layer in whole]
        self.sink, self.recent, self.bits, self.by_piece = sink, recent, bits, by_piece
        self._anywhere = any(map(any, self.whole))
        self._near_anywhere = not all(map(all, self.whole))
        super().__init__()

    @property
    def in_pieces(self) -> bool:  # type: ignore[override]
        return not self.by_piece

    def _forget(self) -> None:
        super()._forget()
        self._kinds = [self._empty(layer) for layer in self.whole]
        self._fresh: dict[int, tuple[Tensor, Tensor]] = {}
        self._announced, self._reserved = False, 0
        self._done: set[int] = set()  # layers that the pass came to
        self._ring = Ring(self.sink, self.recent, self.by_piece)
        self._known: dict[Any, Tensor] = {}  # masks that all layers of a pass share

    def _empty(self, whole: Sequence[bool]) -> list[Kind]:
        """Of one layer, those that it has."""
        kinds = []
        for near, limit in ((False, None), (True, self.sink + self.recent)):
            if found := [i for i, keeps in enumerate(whole) if keeps is not near]:
                kinds.append(Kind(_heads(found), Store(self.bits, limit), near))
        return kinds

    # ------------------------------------------------------------------------------------------------------ a pass

    def extend(
        self,
        x_KSD: Tensor,
        mask_KS: Tensor | None = None,
        position_KS: Tensor | None = None,
        bias_KS: Tensor | None = None,
    ) -> Tensor:
        if mask_KS is not None and bool(mask_KS.all()):
            mask_KS = None
        positions = super().extend(x_KSD, mask_KS, position_KS, bias_KS)
        new = x_KSD.shape[1]
        self._announced, self._done, self._known = True, set(), {}
        bias_KS = None if self.bias_KL is None else self.bias_KL[:, -new:]
        self._ring.extend(new, x_KSD.device, mask_KS, bias_KS)
        if not self._anywhere and self._ring.most > self._ring.places:  # nobody needs more than the ring
            self.mask_KL, self.position_KL = self.mask_KL[:, :0], self.position_KL[:, :0]
            self.bias_KL = None if self.bias_KL is None else self.bias_KL[:, :0]
        return positions

    def _see(self) -> None:
        """Masks are made here for some queries at a time."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Takes the new ones; what attention is given in their place leads back here."""
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise ValueError("a cache that is written in place reads without gradients; use torch.no_grad()")
        if layer_idx >= len(self.whole) or key_states.shape[1] != len(self.whole[layer_idx]):
            raise ValueError(
                f"layer {layer_idx} with {key_states.shape[1]} KV heads: the cache was made for {len(self.whole)} "
                f"layers of {len(self.whole[0])}"
            )
        if layer_idx in self._done:  # another pass began, and nobody announced it
            self._announced = False
        self._fresh[layer_idx] = key_states.to(value_states.dtype), value_states
        held = Held(self, layer_idx)
        return held, held

    def announced(self, layer_idx: int, mask: Tensor | None) -> None:
        """Before ``attend``, with the mask that attention was given: transformers' own ``generate`` announces nothing.

        mask: bool [K, 1, S, L] over all places that were read and the new ones; None: all are valid.
        """
        if self._announced:
            return
        keys, _ = self._fresh[layer_idx]
        rows, _, new, _ = keys.shape
        valid = None if mask is None else mask[:, 0, -1, -new:].expand(rows, -1)
        self.extend(keys[:, 0], valid)

    def attend(self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        self._done.add(layer_idx)
        keys, values = self._fresh.pop(layer_idx)
        kinds, groups = self._kinds[layer_idx], keys.shape[1]
        rows, heads, new, width = query.shape
        q = query.reshape(rows, groups, heads // groups, new, width)
        if how.window is not None and self._counted and self._ring.most <= how.window:
            how = how._replace(window=None)  # everything is within it
        if len(kinds) == 1:
            return self._look(kinds[0], q, keys, values, how).reshape(rows, heads, new, -1)
        out: Any = None
        for kind in kinds:
            at = kind.heads
            found = self._look(kind, q[:, at], keys[:, at], values[:, at], how)
            out = found.new_empty(*q.shape[:-1], found.shape[-1]) if out is None else out
            out[:, at] = found
        return out.view(rows, heads, new, -1)

    def skip(self, layer_idx: int) -> None:
        """In place of ``attend``: the layer's new ones are kept, and nobody looks at anything."""
        self._done.add(layer_idx)
        keys, values = self._fresh.pop(layer_idx)
        for kind in self._kinds[layer_idx]:
            store, write = kind.store, self._write_near if kind.near else self._write_whole
            store.dtype = values.dtype
            write(store, store.codec.parts(keys[:, kind.heads]), store.codec.parts(values[:, kind.heads]))

    def _look(self, kind: Kind, q: Tensor, k: Tensor, v: Tensor, how: Scores) -> Tensor:
        store, look = kind.store, self._near if kind.near else self._whole
        store.dtype = v.dtype
        return look(store, q, store.codec.parts(k), store.codec.parts(v), how)

    # ------------------------------------------------------------------------------------- heads that keep everything

    def _whole(self, store: Store, q: Tensor, keys: Parts, values: Parts, how: Scores) -> Tensor:
        """q [K, g, r, S, d] over everything: [K, g, r, S, d]."""
        self._write_whole(store, keys, values)
        new, end, window = self._new, self.length, how.window
        if new == 1:
            start = 0
            if window is not None and not self._padded and self._counted:
                start, window = max(0, end - window), None
            mask = self._whole_mask(0, 1, start, window) if self._padded or window is not None else None
            bias = None if self.bias_KL is None else self.bias_KL[:, start:]
            return _one(q, *store.read(start, end), mask, bias, how)
        all_keys, all_values = store.read(0, end)
        flat = q.flatten(1, 2)
        if end == new and not self._padded and window is None:
            found = attend(flat, all_keys, all_values, None, True, how.scale, self.bias_KL, how.softcap)
            return found.unflatten(1, q.shape[1:3])
        out = None
        plain = not self._padded and self.bias_KL is None and how.softcap is None
        step = max(16, QUERIES // q.shape[2]) if plain else QUERIES
        for a in range(0, new, step):
            b = min(a + step, new)
            stop = end - new + b
            start = 0
            if window is not None and not self._padded and self._counted:
                start = max(0, end - new + a - window + 1)
            k, v = all_keys[:, :, start:stop], all_values[:, :, start:stop]
            if plain:  # the query heads of a KV head as more queries: neither keys nor values are repeated
                mask = self._tiled_mask(a, b, start, window, q.shape[2], q.dtype)
                found = attend(q[:, :, :, a:b].flatten(2, 3), k, v, mask, False, how.scale)
                found = found.unflatten(2, (q.shape[2], b - a))
            else:
                mask = self._whole_mask(a, b, start, window)
                bias = None if self.bias_KL is None else self.bias_KL[:, start:stop]
                found = attend(flat[:, :, a:b], k, v, mask, False, how.scale, bias, how.softcap)
                found = found.unflatten(1, q.shape[1:3])
            out = found.new_empty(*q.shape[:-1], found.shape[-1]) if out is None else out
            out[:, :, :, a:b] = found
        return out

    def _write_whole(self, store: Store, keys: Parts, values: Parts) -> None:
        before = self.length - self._new
        store.make_room(before, max(self.length, self._reserved), keys, values)
        store.write(before, keys, values)

    def _whole_mask(self, a: int, b: int, start: int, window: int | None) -> Tensor:
        """What the new tokens from a to b see of the places from ``start`` up to the last of them: bool [K or 1, 1,
        b - a, places]."""
        first, device = self.length - self._new, self.position_KL.device
        if not self._padded and window is None and start == 0:  # the same corner at the end of any number of places
            key: Any = ("corner", b - a)
            if key not in self._known:
                total = self.length
                place = torch.arange(total, device=device)
                self._known[key] = (place <= place[total - (b - a) :, None])[None, None]
            return self._known[key][..., self.length - (first + b) :]
        key = ("whole", a, b, start, window)
        if key not in self._known:
            place = torch.arange(start, first + b, device=device)
            own = torch.arange(first + a, first + b, device=device)[:, None]
            seen = (place <= own)[None, None]
            if window is not None:
                of_key = self.position_KL[:, None, None, start : first + b]
                seen = seen & (self.position_KL[:, None, first + a : first + b, None] - of_key < window)
            if self._padded:
                seen = (seen & self.mask_KL[:, None, None, start : first + b]) | (place == own)
            self._known[key] = seen
        return self._known[key]

    def _tiled_mask(self, a: int, b: int, start: int, window: int | None, times: int, dtype: torch.dtype) -> Tensor:
        """The same for queries that stand ``times`` times one after the other: bool, or numbers to add."""
        mask = self._whole_mask(a, b, start, window)
        if self._padded or window is not None or start or mask.device.type != "cpu":
            return mask.repeat(1, 1, times, 1)
        key = ("numbers", b - a, times, dtype)
        if key not in self._known:  # the corner once for all layers, where attention would make them in each anew
            tiled = self._known["corner", b - a].repeat(1, 1, times, 1)
            self._known[key] = torch.zeros(tiled.shape, dtype=dtype).masked_fill_(~tiled, float("-inf"))
        return self._known[key][..., self._known[key].shape[-1] - mask.shape[-1] :]

    # ---------------------------------------------------------------------------------------- heads that keep a ring

    def _near(self, store: Store, q: Tensor, keys: Parts, values: Parts, how: Scores) -> Tensor:
        """q [K, g, r, S, d] over sink and recent: [K, g, r, S, d]."""
        window = how.window
        if window is not None and not self._counted:
            raise UserError(
                "kvcache: a layer that looks back by a window cannot count positions that were given "
                "(merger.positions=patches) once tokens are forgotten; use merger.positions=tokens, or kvcache=full"
            )
        ring, filled = self._ring, self._ring.filled
        store.make_room(store.places, filled, keys, values)
        if ring.one_each:
            ring.put(store, keys, values)
            return _one(q, *store.read(0, filled), *ring.seen_by_one(window), how)
        ring.put_early(store, keys, values)
        blocks = ring.blocks(window, QUERIES // 2)  # fewer: so many places of the piece are masked for each
        old_keys, old_values = store.read(0, max(block.ring for block in blocks))
        new_keys, new_values = store.codec.whole(keys, store.dtype), store.codec.whole(values, store.dtype)
        flat = q.flatten(1, 2)
        out: Any = None
        for block in blocks:
            k = torch.cat([old_keys[:, :, : block.ring], new_keys[:, :, block.band]], 2)
            v = torch.cat([old_values[:, :, : block.ring], new_values[:, :, block.band]], 2)
            found = attend(flat[:, :, block.rows], k, v, block.mask, False, how.scale, block.bias, how.softcap)
            out = found.new_empty(*flat.shape[:-1], found.shape[-1]) if out is None else out
            out[:, :, block.rows] = found
        ring.put(store, keys, values)
        return out.view(*q.shape[:-1], -1)

    def _write_near(self, store: Store, keys: Parts, values: Parts) -> None:
        store.make_room(store.places, self._ring.filled, keys, values)
        self._ring.put(store, keys, values)

    def full_mask(self, window: int | None = None) -> Tensor:
        raise UserError(
            "kvcache: heads that keep different lengths are read by our attention alone; use language.attention=auto, "
            "or kvcache=full"
        )

    # --------------------------------------------------------------------------------------------- rows and copies

    def reserve(self, places: int) -> None:
        self._reserved = places

    def copy(self) -> HeadsKV:
        """Another cache that goes on from here. Of heads that keep everything memory is shared until it grows."""
        other = copy.copy(self)
        other._fresh, other._known, other._ring = {}, {}, self._ring.copy()
        other._kinds = [
            [kind._replace(store=kind.store.copy(append_only=not kind.near)) for kind in kinds] for kinds in self._kinds
        ]
        return other

    @property
    def _stores(self) -> list[Store]:
        return [kind.store for kinds in self._kinds for kind in kinds]

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in self._stores)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """As transformers asks for its masks: (places that were read and the new ones, 0)."""
        return self.length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        if self._near_anywhere and self._ring.most > self._ring.places and tokens_to_remove < 0:
            raise ValueError("places were forgotten since: a cache that forgets cannot take tokens back; use copy()")
        super().crop(tokens_to_remove)
        if self.mask_KL is None or not tokens_to_remove:
            return
        self._ring.crop(self.mask_KL)
        for kind in (kind for kinds in self._kinds for kind in kinds):
            kind.store.shrink(self._ring.filled if kind.near else self.length)

    def _take_rows(self, index_R: Tensor) -> None:
        super()._take_rows(index_R)
        for store in self._stores:
            store.take_rows(index_R)
        self._ring.take_rows(index_R)


def _heads(found: list[int]) -> Heads:
    """Indices as a slice where they are evenly spaced: taking them is a view then."""
    step = found[1] - found[0] if len(found) > 1 else 1
    even = all(b - a == step for a, b in zip(found, found[1:], strict=False))
    return slice(found[0], found[-1] + 1, step) if even else torch.tensor(found)


def _one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, how: Scores) -> Tensor:
    """One new token of each row, [K, g, r, 1, d]: the query heads of a KV head are as many queries, so neither keys nor
    values are repeated."""
    q = q.squeeze(3)
    if bias is not None or how.softcap is not None:
        return attend(q, k, v, mask, False, how.scale, bias, how.softcap).unsqueeze(3)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=how.scale).unsqueeze(3)
