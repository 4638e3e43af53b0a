"""A cache whose KV heads keep different things: everything that was read, or a row's first tokens and its latest.

The mask is DuoAttention's (Xiao et al. 2024), and StreamingLLM's where no head keeps everything: counted in the valid
tokens of its row, token i of a streaming head sees token j if j <= i and (j < sink or i - j < recent). Keys are kept
with the rotation of the position at which they were read.

Attention does not ask in which order keys come, so a streaming head's tokens stand in a ring: token j in place j while
j < sink, else in place sink + (j - sink) mod recent. One more token costs one write and attention over sink + recent
places, whatever was read before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.caching import Held, PastKV, Scores
from hvlm.errors import UserError
from hvlm.functional import attend
from hvlm.kvcache._store import Bits, Parts, Store

QUERIES = 256  # of a longer piece so many are looked at at a time, times the query heads of a KV head for whole heads

Heads = slice | Tensor


class Kept(NamedTuple):
    """What one layer keeps: of which heads everything, and of which the ring."""

    whole: Heads | None
    whole_store: Store | None
    near: Heads | None
    near_store: Store | None


class Block(NamedTuple):
    """Some queries of a piece, and what of the ring and of the piece they see: the first ``ring`` places, and
    ``band``. mask: bool [K or 1, 1, queries, ring + band]."""

    rows: slice
    ring: int
    band: slice
    mask: Tensor


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

    def __init__(
        self, whole: Sequence[Sequence[bool]], sink: int, recent: int, bits: Bits | None = None, by_piece: bool = False
    ) -> None:
        self.whole = [list(layer) for layer in whole]
        self.sink, self.recent, self.bits, self.by_piece = sink, recent, bits, by_piece
        self._anywhere = any(map(any, self.whole))
        self._near_anywhere = not all(map(all, self.whole))
        super().__init__()

    @property
    def in_pieces(self) -> bool:
        return not self.by_piece

    def _forget(self) -> None:
        super()._forget()
        self._kept = [self._empty(layer) for layer in self.whole]
        self._fresh: dict[int, tuple[Tensor, Tensor]] = {}
        self._announced, self._reserved = False, 0
        self._done: set[int] = set()  # layers that the pass came to
        # Valid tokens of each row before the pass that was announced last, and after it: a number while no row has any
        # padding, else int64 [K, 1].
        self._before: int | Tensor = 0
        self._after: int | Tensor = 0
        self._order_KS: Tensor | None = None  # which of its row's valid tokens each new one is, -1 for padding; or
        # None: they simply go on counting.
        self._ring_bias: Tensor | None = None  # [K, sink + recent], as a pass of one token sees it
        self._past_bias: Tensor | None = None  # the same as a longer pass sees it, before its own tokens are there
        self._new_bias: Tensor | None = None
        self._filled = 0  # places of the ring that hold something in some row
        self._one_each = False  # whether the pass is of one valid token in every row
        self._freely = False  # whether streaming heads see all of the pass before them
        self._known: dict[Any, Any] = {}  # what all layers of a pass share

    def _empty(self, whole: Sequence[bool]) -> Kept:
        both = [[i for i, keeps in enumerate(whole) if keeps is kind] for kind in (True, False)]
        limits = (None, self.sink + self.recent)
        stores = [Store(self.bits, limit) if found else None for found, limit in zip(both, limits, strict=True)]
        heads = [_heads(found) if found else None for found in both]
        return Kept(heads[0], stores[0], heads[1], stores[1])

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
        before = self._before = self._after
        if mask_KS is None:
            self._order_KS, self._after = None, before + new
            if isinstance(before, Tensor):
                self._order_KS = before + torch.arange(new, device=before.device)
        else:
            count = mask_KS.cumsum(1)
            self._order_KS = (before + count - 1).masked_fill(~mask_KS, -1)
            self._after = before + count[:, -1:]
        most = _most(self._after)
        self._filled = min(most, self.sink + self.recent)
        self._one_each = new == 1 and mask_KS is None
        self._freely = self.by_piece and new > 1
        if self.bias_KL is not None:
            self._take_bias(self.bias_KL[:, -new:])
        if not self._anywhere and most > self.sink + self.recent:  # nobody needs more than the ring
            self.mask_KL, self.position_KL = self.mask_KL[:, :0], self.position_KL[:, :0]
            self.bias_KL = None if self.bias_KL is None else self.bias_KL[:, :0]
        return positions

    def _see(self) -> None:
        """Masks are made here for some queries at a time."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_, **__) -> tuple[Held, Held]:
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
        kept, groups = self._kept[layer_idx], keys.shape[1]
        rows, heads, new, width = query.shape
        q = query.reshape(rows, groups, heads // groups, new, width)
        if how.window is not None and self._counted and _most(self._after) <= how.window:
            how = how._replace(window=None)  # everything is within it
        if kept.near is None:
            return self._look(self._whole, kept.whole_store, q, keys, values, how).reshape(rows, heads, new, -1)
        if kept.whole is None:
            return self._look(self._near, kept.near_store, q, keys, values, how).reshape(rows, heads, new, -1)
        at = kept.whole
        found = self._look(self._whole, kept.whole_store, q[:, at], keys[:, at], values[:, at], how)
        both = found.new_empty(rows, groups, heads // groups, new, found.shape[-1])
        both[:, at] = found
        at = kept.near
        both[:, at] = self._look(self._near, kept.near_store, q[:, at], keys[:, at], values[:, at], how)
        return both.view(rows, heads, new, -1)

    def _look(self, look: Callable[..., Tensor], store: Store, q: Tensor, k: Tensor, v: Tensor, how: Scores) -> Tensor:
        store.dtype = v.dtype
        return look(store, q, store.codec.parts(k), store.codec.parts(v), how)

    # ------------------------------------------------------------------------------------- heads that keep everything

    def _whole(self, store: Store, q: Tensor, keys: Parts, values: Parts, how: Scores) -> Tensor:
        """q [K, g, r, S, d] over everything: [K, g, r, S, d]."""
        new, end, window = self._new, self.length, how.window
        store.make_room(end - new, max(end, self._reserved), keys, values)
        store.write(end - new, keys, values)
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
            mask = self._whole_mask(a, b, start, window)
            if plain:  # the query heads of a KV head as more queries: neither keys nor values are repeated
                tiled = mask.repeat(1, 1, q.shape[2], 1)
                found = attend(q[:, :, :, a:b].flatten(2, 3), k, v, tiled, False, how.scale)
                found = found.unflatten(2, (q.shape[2], b - a))
            else:
                bias = None if self.bias_KL is None else self.bias_KL[:, start:stop]
                found = attend(flat[:, :, a:b], k, v, mask, False, how.scale, bias, how.softcap)
                found = found.unflatten(1, q.shape[1:3])
            out = found.new_empty(*q.shape[:-1], found.shape[-1]) if out is None else out
            out[:, :, :, a:b] = found
        return out

    def _whole_mask(self, a: int, b: int, start: int, window: int | None) -> Tensor:
        """What the new tokens from a to b see of the places from ``start`` up to the last of them: bool [K or 1, 1,
        b - a, places]."""
        first, device = self.length - self._new, self.position_KL.device
        if not self._padded and window is None and start == 0:  # the same corner at the end of any number of places
            key = ("corner", b - a)
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

    # ---------------------------------------------------------------------------------------- heads that keep a ring

    def _near(self, store: Store, q: Tensor, keys: Parts, values: Parts, how: Scores) -> Tensor:
        """q [K, g, r, S, d] over sink and recent: [K, g, r, S, d]."""
        window = how.window
        if window is not None and not self._counted:
            raise UserError(
                "kvcache: a layer that looks back by a window cannot count positions that were given "
                "(merger.positions=patches) once tokens are forgotten; use merger.positions=tokens, or kvcache=full"
            )
        filled = self._filled
        store.make_room(store.places, filled, keys, values)
        if self._one_each:
            self._put(store, keys, values)
            mask = self._shared(("one", window), lambda: self._ring_mask(filled, window))
            bias = None if self._ring_bias is None else self._ring_bias[:, :filled]
            return _one(q, *store.read(0, filled), mask, bias, how)
        if not self._freely:  # sinks are never overwritten, so they may be there before their turn
            self._put_sinks(store, keys, values)
        blocks = self._shared(("blocks", window), lambda: self._blocks(window))
        ring_keys, ring_values = store.read(0, max(block.ring for block in blocks))
        new_keys, new_values = store.codec.whole(keys, store.dtype), store.codec.whole(values, store.dtype)
        flat, out = q.flatten(1, 2), None
        for rows, ring, band, mask in blocks:
            k = torch.cat([ring_keys[:, :, :ring], new_keys[:, :, band]], 2)
            v = torch.cat([ring_values[:, :, :ring], new_values[:, :, band]], 2)
            bias = None
            if self._new_bias is not None:
                bias = torch.cat([self._past_bias[:, :ring], self._new_bias[:, band]], 1)
            found = attend(flat[:, :, rows], k, v, mask, False, how.scale, bias, how.softcap)
            out = found.new_empty(*flat.shape[:-1], found.shape[-1]) if out is None else out
            out[:, :, rows] = found
        self._put(store, keys, values)
        return out.view(*q.shape[:-1], -1)

    def _ring_orders(self, counted: int | Tensor, sinks: int | Tensor) -> Tensor:
        """Which valid token of its row stands in each place when so many were read, -1 for none: [K or 1, places]. Of
        the first places ``sinks`` are written."""
        device = self.position_KL.device
        counted = torch.as_tensor(counted, device=device).reshape(-1, 1)
        sinks = torch.as_tensor(sinks, device=device).reshape(-1, 1)
        place = torch.arange(self.sink + self.recent, device=device)
        rounds = torch.div(counted - 1 - place, self.recent, rounding_mode="floor")
        latest = place + self.recent * rounds
        orders = torch.where(place < self.sink, torch.where(place < sinks, place, -1), latest)
        return torch.where(orders < 0, -1, torch.where((place >= self.sink) & (orders < place), -1, orders))

    def _ring_mask(self, filled: int, window: int | None) -> Tensor | None:
        """For one new token that is written already: bool [K or 1, 1, 1, filled]; None: it sees all."""
        if not isinstance(self._after, Tensor) and window is None:
            return None
        orders = self._ring_orders(self._after, self._after)[:, :filled]
        seen = orders >= 0
        if window is not None:
            last = torch.as_tensor(self._after, device=orders.device).reshape(-1, 1) - 1
            seen = seen & (last - orders < window)
        return None if bool(seen.all()) else seen[:, None, None]

    def _blocks(self, window: int | None) -> list[Block]:
        """The queries of a piece, some at a time, with what they see."""
        device, new = self.position_KL.device, self._new
        order = self._order_KS
        if order is None:
            order = self._before + torch.arange(new, device=device)[None]
        before = self._before
        ring = self._ring_orders(before, before if self._freely else self._after)
        sinks = min(self._filled, self.sink)
        least = 0 if self._freely else self.sink  # sinks of this piece stand in the ring already
        found, alike = [], {}
        for a in range(0, new, QUERIES):
            b = min(a + QUERIES, new)
            start, inside = self._band(a, order)
            at = sinks if inside else self._filled
            same = inside and window is None and self._order_KS is None and start >= self.sink
            key = (b - a, at, b - start) if same else None
            if key is None or key not in alike:
                query, near = order[:, None, a:b, None], order[:, None, None, start:b]
                kept = ring[:, None, None, :at]
                if self._freely:
                    seen_ring, seen_band = (kept >= 0).expand(-1, -1, b - a, -1), (near >= 0) & (near <= query)
                else:
                    close = query - near < self.recent
                    seen_ring = (kept >= 0) & (kept <= query) & ((kept < self.sink) | (query - kept < self.recent))
                    seen_band = (near >= least) & (near <= query) & close
                if window is not None:
                    seen_ring, seen_band = seen_ring & (query - kept < window), seen_band & (query - near < window)
                if self._order_KS is not None:  # padding sees itself, so that no row of the softmax is empty
                    own = torch.arange(a, b, device=device)[:, None] == torch.arange(start, b, device=device)
                    seen_band = seen_band | ((near < 0) & own)
                mask = torch.cat([seen_ring.expand(*seen_band.shape[:3], -1), seen_band], -1)
                if key is not None:
                    alike[key] = mask
            else:
                mask = alike[key]
            found.append(Block(slice(a, b), at, slice(start, b), mask))
        return found

    def _band(self, a: int, order: Tensor) -> tuple[int, bool]:
        """(where in the piece that begins which the queries from ``a`` on see, whether it holds all but sinks that they
        see)."""
        if self._freely:
            return 0, False
        if self._order_KS is None:
            start = a - (self.recent - 1)
            return max(0, start), start >= 0
        # Orders rise along the places but for padding, so the first place that is recent enough is found by counting.
        reached = order.cummax(1).values
        first = reached[:, a : a + 1].clamp(min=0) - (self.recent - 1)
        start = int((reached < first).sum(1).min())
        own_first = torch.as_tensor(self._before, device=order.device).reshape(-1, 1)
        return start, bool((first >= own_first).all())

    def _put(self, store: Store, keys: Parts, values: Parts) -> None:
        """The new tokens into their places of the ring, those that stay."""
        for place, start, count in self._shared("moves", self._moves):
            store.write(place, *(tuple(x.narrow(2, start, count) for x in parts) for parts in (keys, values)))
        if self._order_KS is not None:
            store.scatter(*self._shared("ring", self._ring_index), keys, values)

    def _put_sinks(self, store: Store, keys: Parts, values: Parts) -> None:
        for place, start, count in self._shared("moves", self._moves):
            if place < self.sink:
                store.write(place, *(tuple(x.narrow(2, start, count) for x in parts) for parts in (keys, values)))
        if self._order_KS is not None:
            store.scatter(*self._shared("sinks", self._sink_index), keys, values)

    def _moves(self) -> list[tuple[int, int, int]]:
        """(place in the ring, place in the piece, how many) of the new tokens that stay, where no row has padding."""
        if self._order_KS is not None:
            return []
        found, end = [], self._after
        if self._before < self.sink:
            found.append((self._before, 0, min(end, self.sink) - self._before))
        order = max(self._before, self.sink, end - self.recent)
        while order < end:
            place = self.sink + (order - self.sink) % self.recent
            count = min(end - order, self.sink + self.recent - place)
            found.append((place, order - self._before, count))
            order += count
        return found

    def _sink_index(self) -> tuple[Tensor, Tensor, Tensor]:
        """(row, place in the ring, place in the piece) of the new sinks, int64 [M] each."""
        order = self._order_KS
        row_M, from_M = ((order >= 0) & (order < self.sink)).nonzero(as_tuple=True)
        return row_M, order[row_M, from_M], from_M

    def _ring_index(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same of all new tokens that stay."""
        order = self._order_KS
        oldest = torch.as_tensor(self._after, device=order.device).reshape(-1, 1) - self.recent
        row_M, from_M = ((order >= 0) & ((order < self.sink) | (order >= oldest))).nonzero(as_tuple=True)
        order_M = order[row_M, from_M]
        place_M = torch.where(order_M < self.sink, order_M, self.sink + (order_M - self.sink) % self.recent)
        return row_M, place_M, from_M

    def _take_bias(self, bias_KS: Tensor) -> None:
        """What the new tokens add to the scores goes the way of their keys, for all layers at once."""
        past = self._ring_bias
        past = bias_KS.new_zeros(len(bias_KS), self.sink + self.recent) if past is None else past.clone()
        now = past.clone()
        for ring, sinks_too in ((past, not self._freely), (now, True)):
            for place, start, count in self._moves():
                if ring is now or (sinks_too and place < self.sink):
                    ring[:, place : place + count] = bias_KS[:, start : start + count]
            if self._order_KS is not None and (ring is now or sinks_too):
                row_M, place_M, from_M = self._ring_index() if ring is now else self._sink_index()
                ring[row_M, place_M] = bias_KS[row_M, from_M]
        self._past_bias, self._ring_bias, self._new_bias = past, now, bias_KS

    def _shared(self, key: Any, make: Callable[[], Any]) -> Any:
        """Once for all layers of a pass."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

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
        other._fresh, other._known = {}, {}
        other._kept = [
            Kept(
                whole,
                None if whole_store is None else whole_store.copy(append_only=True),
                near,
                None if near_store is None else near_store.copy(append_only=False),
            )
            for whole, whole_store, near, near_store in self._kept
        ]
        return other

    @property
    def _stores(self) -> list[Store]:
        return [s for kept in self._kept for s in (kept.whole_store, kept.near_store) if s is not None]

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in self._stores)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """As transformers asks for its masks: (places that were read and the new ones, 0)."""
        return self.length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        if self._near_anywhere and _most(self._after) > self.sink + self.recent and tokens_to_remove < 0:
            raise ValueError("places were forgotten since: a cache that forgets cannot take tokens back; use copy()")
        super().crop(tokens_to_remove)
        if self.mask_KL is None or not tokens_to_remove:
            return
        self._after = self.mask_KL.sum(1, keepdim=True) if isinstance(self._after, Tensor) else self.length
        self._filled = min(_most(self._after), self.sink + self.recent)
        for kept in self._kept:
            if kept.whole_store is not None:
                kept.whole_store.shrink(self.length)
            if kept.near_store is not None:
                kept.near_store.shrink(self._filled)

    def _take_rows(self, index_R: Tensor) -> None:
        super()._take_rows(index_R)
        for store in self._stores:
            store.take_rows(index_R)
        if isinstance(self._after, Tensor):
            self._after = self._after[index_R]
            self._filled = min(_most(self._after), self.sink + self.recent)
        self._ring_bias = None if self._ring_bias is None else self._ring_bias[index_R]


def _most(count: int | Tensor) -> int:
    return int(count.max()) if isinstance(count, Tensor) else count


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
