"""Layers whose weight is read past them: rooms that mix visual tokens cut it into pieces, so there an adapter must
stand in the weight itself. The parameter keeps its place and name; who asks the layer for ``weight`` gets it adapted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor, nn

Adapted = Callable[[nn.Module, Tensor], Tensor]


class _Asked:
    """Beside ``nn.Linear``: a property comes before the parameter of that name."""

    @property
    def weight(self) -> Tensor:
        kept = self._parameters["weight"]
        return self.__dict__["_adapted"](self, kept)


@cache
def _kind(of: type[nn.Module]) -> type[nn.Module]:
    return type(of.__name__, (_Asked, of), {"__module__": of.__module__})


def adapt_weight(module: nn.Module, adapted: Adapted) -> None:
    """From now on ``module.weight`` is ``adapted(module, parameter)``, wherever the layer, or somebody else, reads
    it."""
    module.__dict__["_adapted"] = adapted
    module.__class__ = _kind(type(module))
