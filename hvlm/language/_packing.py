"""Rows of different lengths laid into fewer rows, several in one, and states put back in their places."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hvlm.functional import visible


class Packed(NamedTuple):
    """R rows of C places in place of K rows of S.

    source_RC: int64, which of the K * S places stands there (0 where none does). row_RC: int64, the row that it is of,
    -1 where none is.
    """

    source_RC: Tensor
    row_RC: Tensor

    @property
    def mask_RC(self) -> Tensor:
        """Where something stands."""
        return self.row_RC >= 0

    def lay(self, x_KS: Tensor) -> Tensor:
        """[K, S, ...] -> [R, C, ...]; what stands where nothing should is anything."""
        return x_KS.flatten(0, 1)[self.source_RC]

    def seen(self) -> Tensor:
        """bool [R, 1, C, C]: which places each may see: those up to itself of its own row."""
        own = self.row_RC[:, :, None] == self.row_RC[:, None, :]
        return visible(self.mask_RC, self.row_RC.shape[1]) & own.unsqueeze(1)

    def back(self, states_RCD: Tensor, rows: int, length: int) -> Tensor:
        """[R, C, D] -> [K, S, D], 0 where there was padding."""
        mask = self.mask_RC
        out = states_RCD.new_zeros(rows * length, states_RCD.shape[-1])
        return out.index_copy(0, self.source_RC[mask], states_RCD[mask]).view(rows, length, -1)


def packed(mask_KS: Tensor) -> Packed | None:
    """How rows with these valid places are packed: longest first, each into the first row that has room, of as many
    places as the longest has; None where that makes no fewer rows. Asks the device for the rows' lengths."""
    lengths = mask_KS.sum(1).tolist()
    room = max(lengths, default=0)
    into: list[list[int]] = []
    left: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        at = next((i for i, free in enumerate(left) if free >= lengths[row]), None)
        if at is None:
            into.append([])
            left.append(room)
            at = len(left) - 1
        into[at].append(row)
        left[at] -= lengths[row]
    if len(into) >= len(lengths):
        return None
    length = mask_KS.shape[1]
    places = [mask_KS[row].nonzero().squeeze(1) + row * length for row in range(len(lengths))]
    source = mask_KS.new_zeros(len(into), room, dtype=torch.int64)
    row_of = torch.full_like(source, -1)
    for i, rows in enumerate(into):
        found = torch.cat([places[row] for row in rows])
        source[i, : len(found)], row_of[i, : len(found)] = found, found // length
    return Packed(source, row_of)
