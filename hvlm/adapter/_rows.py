"""Which set of adapter weights each row of a pass uses."""

from __future__ import annotations

import torch
from torch import Tensor

OFF = -1  # of a row that uses none


class Rows:
    """Rows that disagree. which_K: int64, the set of each, ``OFF`` for none. sets: those that occur, in order."""

    def __init__(self, which_K: Tensor, sets: list[int]):
        self.which_K, self.sets = which_K, [index for index in sets if index != OFF]
        self._masks: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def __len__(self) -> int:
        return len(self.which_K)

    def groups(self) -> list[tuple[int, Tensor]]:
        """(set, its rows) of each set that occurs."""
        return [(index, (self.which_K == index).nonzero().squeeze(1)) for index in self.sets]

    def mask(self, width: int, dims: int, like: Tensor) -> Tensor:
        """1 where a row may read, [K, 1, ..., sets * width] with ``dims`` dimensions: each set has ``width`` places."""
        key = (width, dims, like.dtype)
        if key not in self._masks:
            sets = torch.tensor(self.sets, device=self.which_K.device)
            own = (self.which_K.unsqueeze(1) == sets).to(like.dtype).repeat_interleave(width, 1)
            self._masks[key] = own.view(len(own), *(1,) * (dims - 2), -1)
        return self._masks[key]

    def place(self) -> Tensor:
        """Index of each row's set among ``sets`` and, for ``OFF``, the number of them; int64 [K]."""
        sets = torch.tensor(self.sets, device=self.which_K.device)
        same = self.which_K.unsqueeze(1) == sets
        return torch.where(same.any(1), same.int().argmax(1), len(self.sets))


def told(rows: int | Tensor) -> int | Rows:
    """A choice as a pass needs it: one set where all rows agree."""
    if isinstance(rows, int):
        return rows
    sets = rows.unique().tolist()
    return sets[0] if len(sets) == 1 else Rows(rows, sets)
