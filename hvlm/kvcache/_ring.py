"""Where the tokens of a head that keeps a row's first tokens and its latest stand, and what new ones see of them.

Attention does not ask in which order keys come, so they stand in a ring: a row's valid token j in place j while j <
sink, else in place sink + (j - sink) mod recent. One more token costs one write and attention over sink + recent
places, whatever was read before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hvlm.kvcache._store import Parts, Store


class Block(NamedTuple):
    """Some queries of a piece, and what of the ring and of the piece they see: the first ``ring`` places, and ``band``.

    mask: bool [K or 1, 1, queries, ring + band]. bias: float [K, ring + band]; None: zero.
    """

    rows: slice
    ring: int
    band: slice
    mask: Tensor
    bias: Tensor | None


class Ring:
    """One for all heads and layers of a cache, each of which has its keys and values in a ``Store``.

    Counted in the valid tokens of its row, token i sees token j if j <= i and (j < sink or i - j < recent). New
    tokens overwrite what the first of them still see, so a pass of more than one looks at the ring as it was before and
    at the piece itself; only new sinks, which nothing overwrites, are in the ring already.

    Args:
        sink, recent: what is kept, in valid tokens of a row; a token counts itself.
        by_piece: in a pass of more than one token, tokens see all of it that stands before them.

    Attributes:
        places: sink + recent.
        most: valid tokens of the longest row, those of the pass that was announced last among them.
        one_each: whether that pass is of one valid token in every row.
    """

    # There by the time that anything is asked of it: every pass is announced.
    _device: Any

    def __init__(self, sink: int, recent: int, by_piece: bool) -> None:
        self.sink, self.recent, self.by_piece = sink, recent, by_piece
        self.places, self.most, self.one_each = sink + recent, 0, False
        # Of the pass that was announced last: its tokens, and whether they see all of it before them.
        self._new, self._freely = 0, False
        # Valid tokens of each row before it and after it: a number while no row has any padding, else int64 [K, 1].
        self._before: Any = 0
        self._after: Any = 0
        self._order_KS: Any = None  # which of its row's valid tokens each new one is, -1 for padding; or None: they
        # simply go on counting.
        self._bias: Any = None  # [K, places], as a pass of one token sees it
        self._past_bias: Any = None  # the same as a longer pass sees it
        self._new_bias: Any = None
        self._known: dict[Any, Any] = {}  # what all layers of a pass share

    @property
    def filled(self) -> int:
        """Places that hold something in some row."""
        return min(self.most, self.places)

    # ------------------------------------------------------------------------------------------------------ a pass

    def extend(self, new: int, device: torch.device, mask_KS: Tensor | None, bias_KS: Tensor | None) -> None:
        """A pass of ``new`` tokens begins. mask_KS: None if all are valid. bias_KS: None if no token ever had one."""
        self._new, self._device, self._known = new, device, {}
        before = self._before = self._after
        if mask_KS is None:
            self._order_KS, after = None, before + new
            if isinstance(before, Tensor):
                self._order_KS = before + torch.arange(new, device=before.device)
        else:
            count = mask_KS.cumsum(1)
            self._order_KS = (before + count - 1).masked_fill(~mask_KS, -1)
            after = before + count[:, -1:]
        self.recount(after)
        self.one_each = new == 1 and mask_KS is None
        self._freely = self.by_piece and new > 1
        if bias_KS is not None:
            past = bias_KS.new_zeros(len(bias_KS), self.places) if self._bias is None else self._bias
            self._past_bias = past if self._freely else self._with_bias(past, bias_KS, sinks_alone=True)
            self._bias, self._new_bias = self._with_bias(past, bias_KS), bias_KS

    def recount(self, after: int | Tensor) -> None:
        """So many valid tokens were read, of all rows or of each, int64 [K, 1]."""
        self._after = after
        self.most = int(after.max()) if isinstance(after, Tensor) else after

    def _shared(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    # ----------------------------------------------------------------------------------------------- what is seen

    def seen_by_one(self, window: int | None) -> tuple[Tensor | None, Tensor | None]:
        """Of the places that are filled, by one new token that was written already: mask bool [K or 1, 1, 1, filled],
        None: it sees all; and bias, float [K, filled], None: zero."""
        mask = self._shared(("one", window), lambda: self._mask_of_one(window))
        return mask, None if self._bias is None else self._bias[:, : self.filled]

    def _mask_of_one(self, window: int | None) -> Tensor | None:
        if not isinstance(self._after, Tensor) and window is None:
            return None
        orders = self._orders(self._after, self._after)[:, : self.filled]
        seen = orders >= 0
        if window is not None:
            last = self._per_row(self._after) - 1
            seen = seen & (last - orders < window)
        return None if bool(seen.all()) else seen[:, None, None]

    def blocks(self, window: int | None, queries: int) -> list[Block]:
        """The new tokens, at most ``queries`` at a time, with what they see."""
        return self._shared(("blocks", window, queries), lambda: self._blocks(window, queries))

    def _blocks(self, window: int | None, queries: int) -> list[Block]:
        device, new, before, order = self._device, self._new, self._before, self._order_KS
        if order is None:
            order = before + torch.arange(new, device=device)[None]
        ring = self._orders(before, before if self._freely else self._after)
        sinks = min(self.filled, self.sink)
        least = 0 if self._freely else self.sink  # sinks of this piece stand in the ring already
        found, alike = [], {}
        for a in range(0, new, queries):
            b = min(a + queries, new)
            start, inside = self._band(a, order)
            at = sinks if inside else self.filled
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
            bias = None
            if self._new_bias is not None:
                bias = torch.cat([self._past_bias[:, :at], self._new_bias[:, start:b]], 1)
            found.append(Block(slice(a, b), at, slice(start, b), mask, bias))
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
        return start, bool((first >= self._per_row(self._before)).all())

    def _orders(self, counted: int | Tensor, sinks: int | Tensor) -> Tensor:
        """Which valid token of its row stands in each place when so many were read, -1 for none: [K or 1, places]. Of
        the first places ``sinks`` are written."""
        place = torch.arange(self.places, device=self._device)
        rounds = torch.div(self._per_row(counted) - 1 - place, self.recent, rounding_mode="floor")
        latest = place + self.recent * rounds
        orders = torch.where(place < self.sink, torch.where(place < self._per_row(sinks), place, -1), latest)
        return torch.where(orders < 0, -1, torch.where((place >= self.sink) & (orders < place), -1, orders))

    def _per_row(self, count: int | Tensor) -> Tensor:
        """[K or 1, 1]."""
        return torch.as_tensor(count, device=self._device).reshape(-1, 1)

    # -------------------------------------------------------------------------------------- where new tokens go

    def put(self, store: Store, keys: Parts, values: Parts) -> None:
        """The new tokens that stay into their places, as they stand when the pass is over."""
        self._put(store, keys, values, sinks_alone=False)

    def put_early(self, store: Store, keys: Parts, values: Parts) -> None:
        """Those that a pass of more than one token finds in the ring already, so before it looks."""
        if not self._freely:
            self._put(store, keys, values, sinks_alone=True)

    def _put(self, store: Store, keys: Parts, values: Parts, sinks_alone: bool) -> None:
        if self._order_KS is not None:
            row_M, place_M, from_M = self._shared(("index", sinks_alone), lambda: self._index(sinks_alone))
            store.scatter(row_M, place_M, from_M, keys, values)
            return
        for place, start, count in self._shared(("moves", sinks_alone), lambda: self._moves(sinks_alone)):
            store.write(place, *(tuple(x.narrow(2, start, count) for x in parts) for parts in (keys, values)))

    def _with_bias(self, ring_KP: Tensor, bias_KS: Tensor, sinks_alone: bool = False) -> Tensor:
        """What new tokens add to the scores goes the way of their keys, for all layers at once."""
        ring_KP = ring_KP.clone()
        if self._order_KS is not None:
            row_M, place_M, from_M = self._index(sinks_alone)
            ring_KP[row_M, place_M] = bias_KS[row_M, from_M]
            return ring_KP
        for place, start, count in self._moves(sinks_alone):
            ring_KP[:, place : place + count] = bias_KS[:, start : start + count]
        return ring_KP

    def _moves(self, sinks_alone: bool) -> list[tuple[int, int, int]]:
        """(place in the ring, place in the piece, how many) of the new tokens that stay, where no row has padding."""
        found, before, end = [], self._before, self._after
        if before < self.sink:
            found.append((before, 0, min(end, self.sink) - before))
        order = max(before, self.sink, end - self.recent)
        while order < end and not sinks_alone:
            place = self.sink + (order - self.sink) % self.recent
            count = min(end - order, self.places - place)
            found.append((place, order - before, count))
            order += count
        return found

    def _index(self, sinks_alone: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(row, place in the ring, place in the piece) of the new tokens that stay, int64 [M] each."""
        order = self._order_KS
        stays = order < self.sink
        if not sinks_alone:
            stays = stays | (order >= self._per_row(self._after) - self.recent)
        row_M, from_M = ((order >= 0) & stays).nonzero(as_tuple=True)
        order_M = order[row_M, from_M]
        place_M = torch.where(order_M < self.sink, order_M, self.sink + (order_M - self.sink) % self.recent)
        return row_M, place_M, from_M

    # --------------------------------------------------------------------------------------------- rows and copies

    def copy(self) -> Ring:
        """Another that goes on from here. Tensors are never written in place and stay shared."""
        other = copy.copy(self)
        other._known = {}
        return other

    def crop(self, mask_KL: Tensor) -> None:
        """These places alone were read; for rings that nothing went out of."""
        self.recount(mask_KL.sum(1, keepdim=True) if isinstance(self._after, Tensor) else mask_KL.shape[1])

    def take_rows(self, index_R: Tensor) -> None:
        """Row r goes on as row ``index_R[r]`` was."""
        if isinstance(self._after, Tensor):
            self.recount(self._after[index_R])
        self._bias = None if self._bias is None else self._bias[index_R]
