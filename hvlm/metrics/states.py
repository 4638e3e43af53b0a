"""Metrics that need every item of all processes before they can be computed."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Gathered(Metric):
    """States that are rows of tensors, joined over batches and processes; a process without any takes part, too."""

    full_state_update = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._empty: dict[str, Tensor] = {}

    def add_rows(self, name: str, empty: Tensor) -> None:
        """A state of rows; ``empty``: of no rows, with the shape and type of the others."""
        self._empty[name] = empty
        self.add_state(name, default=[], dist_reduce_fx="cat")

    def rows(self, name: str) -> Tensor:
        """All rows so far, on the CPU."""
        held = getattr(self, name)
        held = [held] if isinstance(held, Tensor) else held
        return torch.cat([self._empty[name], *(rows.cpu() for rows in held)])

    def _sync_dist(self, *how: Any, **more: Any) -> None:
        # torchmetrics would send float32 from a process that has nothing, whatever the others send.
        for name, empty in self._empty.items():
            if not len(held := getattr(self, name)) and not isinstance(held, Tensor):
                setattr(self, name, [empty.to(self.device)])
        super()._sync_dist(*how, **more)


class Items(Gathered):
    """Holds items of any plain values (as JSON), where the figure of one depends on all."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_rows("packed", torch.zeros(0, dtype=torch.uint8))
        self.add_rows("lengths", torch.zeros(0, dtype=torch.int64))

    def hold(self, items: list[Any]) -> None:
        """Add items."""
        if not items:
            return
        coded = [json.dumps(item, ensure_ascii=False).encode() for item in items]
        self.packed.append(torch.frombuffer(bytearray(b"".join(coded)), dtype=torch.uint8).to(self.device))
        self.lengths.append(torch.tensor([len(one) for one in coded], device=self.device))

    def held(self) -> list[Any]:
        """All items, in order: those of one process after those of another."""
        data, start, out = self.rows("packed").numpy().tobytes(), 0, []
        for length in self.rows("lengths").tolist():
            out.append(json.loads(data[start : start + length]))
            start += length
        return out


class Sums(Metric):
    """States that are sums over items."""

    full_state_update = False

    def add_sum(self, name: str, of: type = float, size: int | None = None) -> None:
        """A state of sums: int64, or float64; one, or ``size`` of them."""
        dtype = torch.int64 if of is int else torch.float64
        self.add_state(name, default=torch.zeros(() if size is None else (size,), dtype=dtype), dist_reduce_fx="sum")


def share(total: Tensor, count: Tensor) -> Tensor:
    """Float32 total / count; NaN without items, as torchmetrics' means have it."""
    return (total.double() / count).float()
