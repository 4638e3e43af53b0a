"""What adapters share: sets of weights beside modules of other rooms, and which set a row uses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hvlm.contracts import Adapter


class AttachedAdapter(Adapter):
    """Adds something to what chosen modules give: y + delta(x).

    A variant says which modules (``targets``) and what is added (``make``); ``adapts`` says whose modules they are. The
    weights are named ``adapter.<name>.<path of the module>...``, and no weight of the module itself changes its name.

    names: of the sets of weights. name: the one that is used where nothing else is said, and so the one that trains.
    """

    def __init__(self, *, names: list[str] | None = None, name: str):
        super().__init__()
        self.names = tuple(names or [name])
        if name not in self.names:
            raise ValueError(f"adapter.names={list(self.names)}: the domain's adapter {name!r} is not among them")
        if dotted := [n for n in self.names if "." in n]:
            raise ValueError(f"adapter.names: {dotted[0]!r} names weights, so it cannot hold a dot")
        own = self.names.index(name)
        self._used: dict[str, int | Tensor] = {"language": own, "vision": own}

    @abstractmethod
    def targets(self, model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        """(path in the model, module), each below one of the rooms in ``adapts``."""

    @abstractmethod
    def make(self, module: nn.Module) -> nn.Module:
        """What is added to the output of one module, as a function of its first argument."""

    def attach(self, model: nn.Module) -> None:
        for path, module in list(self.targets(model)):
            deltas = []
            for name in self.names:
                deltas.append(self.make(module))
                _put(self, f"{name}.{path}", deltas[-1])
            module.register_forward_hook(_Add(self, path.split(".", 1)[0], deltas))

    @contextmanager
    def using(self, *, language: int | Tensor | None = None, vision: int | Tensor | None = None) -> Iterator[None]:
        before = dict(self._used)
        self._used |= {part: rows for part, rows in (("language", language), ("vision", vision)) if rows is not None}
        try:
            yield
        finally:
            self._used = before


class _Add:
    """A forward hook. (An object and no closure, so that a copied model's hooks belong to the copy.)"""

    def __init__(self, adapter: AttachedAdapter, part: str, deltas: list[nn.Module]):
        self.adapter, self.part, self.deltas = adapter, part, deltas

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        used, x = self.adapter._used[self.part], arguments[0]
        if isinstance(used, int):
            return output + self.deltas[used](x)
        if len(used) != len(x):
            raise ValueError(f"adapter: {len(used)} rows choose their weights, but {len(x)} go through the {self.part}")
        added = torch.zeros_like(output)
        for which in used.unique().tolist():
            rows = (used == which).nonzero().squeeze(1)
            added = added.index_copy(0, rows, self.deltas[which](x[rows]).to(added.dtype))
        return output + added


def _put(parent: nn.Module, path: str, module: nn.Module) -> None:
    """``module`` under ``parent.<path>``, with empty modules on the way."""
    *way, last = path.split(".")
    for name in way:
        if name not in dict(parent.named_children()):
            parent.add_module(name, nn.Module())
        parent = parent.get_submodule(name)
    parent.add_module(last, module)
