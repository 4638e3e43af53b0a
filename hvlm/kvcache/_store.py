"""Memory for the keys and values of some heads: allocated in blocks, written in place, at a chosen width."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

BLOCK = 256  # places by which memory grows: a copy of everything once in so many tokens

Parts = tuple[Tensor, ...]  # what one tensor [K, G, S, d] is kept as


class Plain:
    """Kept as they come, or in ``dtype``."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype

    def parts(self, x: Tensor) -> Parts:
        return (x if self.dtype is None else x.to(self.dtype),)

    def whole(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        return parts[0].to(dtype)


class EightBits:
    """int8, with a float32 scale for each token and head: a value is off by at most half a step, 1/254 of the largest
    of its token and head."""

    def parts(self, x: Tensor) -> Parts:
        scale = x.abs().amax(-1, keepdim=True).float().div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
        return (x.float() / scale).round_().to(torch.int8), scale

    def whole(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        return parts[0].to(dtype).mul_(parts[1])


Bits = Literal[8, 16]


def codec(bits: Bits | None) -> Plain | EightBits:
    """How values are kept: None as they come, 16 in bfloat16, 8 as ``EightBits``."""
    return EightBits() if bits == 8 else Plain(torch.bfloat16 if bits == 16 else None)


def bytes_of_a_token(width: int, bits: Bits | None, bytes_per_value: int) -> int:
    """Of a key or a value of ``width`` numbers, one head's."""
    return width + 4 if bits == 8 else width * (2 if bits == 16 else bytes_per_value)


def allocated(places: int, limit: int | None = None) -> int:
    """For how many places a ``Store`` has memory once it holds so many."""
    blocks = -(-places // BLOCK) * BLOCK
    return blocks if limit is None else min(blocks, limit)


class Store:
    """Keys and values [K, G, allocated, d].

    A copy shares memory with what it was copied from: it takes its own before it writes (``borrowed``), and the other
    may go on adding places, but must not change those that are shared.

    Args:
        bits: see ``codec``.
        limit: places that are ever needed; None: any number.
    """

    def __init__(self, bits: Bits | None, limit: int | None = None) -> None:
        self.codec, self.limit = codec(bits), limit
        self.keys: Parts = ()
        self.values: Parts = ()
        self.dtype = torch.float32  # of what comes, and of what is given back
        self.places, self.borrowed = 0, False

    def make_room(self, used: int, places: int, keys: Parts, values: Parts) -> None:
        """Memory for ``places`` places, of which ``used`` are written; keys, values: something of their shapes."""
        if places <= self.places and not self.borrowed:
            return
        self.places = max(allocated(places, self.limit), self.places)
        with torch.inference_mode(False):  # what such a block allocates could not be written outside of one
            self.keys = _larger(self.keys, keys, used, self.places)
            self.values = _larger(self.values, values, used, self.places)
        self.borrowed = False

    def write(self, at: int, keys: Parts, values: Parts) -> None:
        """Into the places from ``at`` on."""
        for store, new in ((self.keys, keys), (self.values, values)):
            for own, x in zip(store, new, strict=True):
                own.narrow(2, at, x.shape[2]).copy_(x)

    def scatter(self, row_M: Tensor, place_M: Tensor, from_M: Tensor, keys: Parts, values: Parts) -> None:
        """Into place ``place_M`` of row ``row_M`` what stands at ``from_M`` of that row."""
        for store, new in ((self.keys, keys), (self.values, values)):
            for own, x in zip(store, new, strict=True):
                own[row_M, :, place_M] = x[row_M, :, from_M]

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the places from start to stop, [K, G, stop - start, d]; to be read only."""
        length = stop - start
        keys = self.codec.whole(tuple(x.narrow(2, start, length) for x in self.keys), self.dtype)
        return keys, self.codec.whole(tuple(x.narrow(2, start, length) for x in self.values), self.dtype)

    def copy(self, append_only: bool) -> Store:
        """append_only: places that are written are never written again, so memory can be shared for now."""
        other = copy.copy(self)
        if append_only:
            other.borrowed = bool(self.keys)
        else:
            other.keys, other.values = (tuple(x.clone() for x in parts) for parts in (self.keys, self.values))
        return other

    def take_rows(self, index_R: Tensor) -> None:
        self.keys, self.values = (
            tuple(x.index_select(0, index_R.to(x.device)) for x in parts) for parts in (self.keys, self.values)
        )
        self.borrowed = False

    def shrink(self, places: int) -> None:
        """Give back the memory of what stands after the first ``places``."""
        if self.keys:
            self.places = allocated(places, self.limit)
            self.keys, self.values = (
                _larger(parts, parts, min(places, self.places), self.places) for parts in (self.keys, self.values)
            )
            self.borrowed = False

    @property
    def nbytes(self) -> int:
        return sum(x.untyped_storage().nbytes() for x in (*self.keys, *self.values))


def _larger(old: Parts, like: Parts, used: int, places: int) -> Parts:
    grown = []
    for i, x in enumerate(like):
        # Zeros, not whatever memory holds: places of shorter rows are masked, and 0 times NaN is NaN.
        new = torch.zeros(*x.shape[:2], places, x.shape[3], dtype=x.dtype, device=x.device)
        if used and old:
            new.narrow(2, 0, used).copy_(old[i].narrow(2, 0, used))
        grown.append(new)
    return tuple(grown)
