"""What adapters share: sets of weights beside modules of other rooms, and which set a row uses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hvlm.adapter._rows import OFF, Rows, told
from hvlm.adapter._weight import adapt_weight
from hvlm.contracts import Adapter
from hvlm.errors import UserError
from hvlm.io.files import is_plain_name

# Of which rows a pass through a part speaks; the rooms between encoder and language model see one set at a time.
ROWS_OF = {"language": "language", "vision": "vision"}
BETWEEN = "between"
MOST_SETS = 1000


class AttachedAdapter(Adapter):
    """Adds something to what chosen modules give: y + delta(x).

    A variant says which modules (``targets``) and what is added (``make``, ``applied``); ``adapts`` says whose modules
    they are. The weights are named ``adapter.<name>.<path of the module>...``, and no weight of the module itself
    changes its name.

    names: of the sets of weights. name: the one that is used where nothing else is said, and so the one that trains;
    ``off``: none.
    """

    def __init__(self, *, names: list[str] | None = None, name: str):
        super().__init__()
        self.names = tuple([] if name == "off" else [name]) if names is None else tuple(names)
        if name not in (*self.names, "off"):
            raise ValueError(
                f"domain.adapter={name}: the sets of adapter weights are {', '.join(self.names)}, and {name!r} is not "
                "among them; name one of these, or off"
            )
        if bad := [n for n in self.names if n == "off" or not is_plain_name(n)]:
            raise UserError(
                f"adapter.names, domain.adapter: {bad[0]!r:.100} names weights and their folder, so it holds letters, "
                "digits, _ and - alone, and is not off"
            )
        if len(self.names) > MOST_SETS or len(set(self.names)) < len(self.names):
            raise UserError(
                f"adapter.names: {len(self.names)} names, {len(set(self.names))} of them different; expected each once "
                f"and {MOST_SETS} at most"
            )
        own = OFF if name == "off" else self.names.index(name)
        self._used: dict[str, int | Rows] = dict.fromkeys((*ROWS_OF, BETWEEN), own)
        self._places: list[Place] = []
        self._merged: tuple[int, list[Tensor]] | None = None

    @abstractmethod
    def targets(self, model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        """(path in the model, module), each below one of the rooms in ``adapts``."""

    @abstractmethod
    def make(self, module: nn.Module) -> nn.Module:
        """What is added to the output of one module, as a function of its first argument."""

    def applied(self, delta: nn.Module, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """The module's output with what is added; x: its first argument."""
        return output + delta(x)

    def mixed(self, deltas: Mapping[int, nn.Module], rows: Rows, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """``applied`` where rows use different sets; of a set that is not in ``deltas`` nothing is added."""
        for index, at in rows.groups():
            if index in deltas:
                y = y.index_copy(0, at, self.applied(deltas[index], module, x[at], y[at]).to(y.dtype))
        return y

    def made(self, model: nn.Module) -> Iterator[tuple[str, str, nn.Module, nn.Module]]:
        """(name of the set, path, module, what is added there) of everything."""
        for path, module in self.targets(model):
            for name in self.names:
                yield name, path, module, self.make(module)

    def attach(self, model: nn.Module) -> None:
        places: dict[str, Place] = {}
        for name, path, module, delta in self.made(model):
            if path not in places:
                places[path] = Place(self, path, module)
            _put(self, f"{name}.{path}", delta)
            places[path].deltas[self.names.index(name)] = delta
        self._places = list(places.values())
        for place in self._places:
            self.hook(place)

    def hook(self, place: Place) -> None:
        """Have a module use what stands beside it."""
        place.attach()

    # ------------------------------------------------------------------------------------------------ which set is used

    @contextmanager
    def using(
        self,
        *,
        language: int | Tensor | None = None,
        vision: int | Tensor | None = None,
        between: int | None = None,
    ) -> Iterator[None]:
        before = dict(self._used)
        said = {"language": language, "vision": vision, BETWEEN: between}
        self._used |= {part: told(rows) for part, rows in said.items() if rows is not None}
        try:
            yield
        finally:
            self._used = before

    def use(self, name: str | None) -> None:
        own = OFF if name in (None, "off") else self.names.index(self._known(name))
        self._used = dict.fromkeys(self._used, own)

    @property
    def used(self) -> str | None:
        own = self._used["language"]
        return None if own == OFF or isinstance(own, Rows) else self.names[own]

    def _known(self, name: str) -> str:
        if name not in self.names:
            raise ValueError(f"adapter {name!r}: the model has {', '.join(self.names) or 'none'}")
        return name

    # ---------------------------------------------------------------------------------------------------------- merging

    @property
    def merged(self) -> str | None:
        return None if self._merged is None else self.names[self._merged[0]]

    @torch.no_grad()
    def merge(self, name: str | None = None) -> None:
        if self._merged is not None:
            raise ValueError(f"adapter {self.merged!r} is merged already; unmerge it first")
        name = self.used if name is None else name
        if name is None:
            raise ValueError("adapter: none is used, so there is nothing to merge; name one")
        index = self.names.index(self._known(name))
        places = [place for place in self._places if index in place.deltas]
        merged = [self.merged_weight(place.deltas[index], place.module) for place in places]  # any may refuse
        kept = []
        for place, weight in zip(places, merged, strict=True):
            parameter = place.module._parameters["weight"]
            kept.append(parameter.detach().clone())
            parameter.copy_(weight)
        self._merged = index, kept
        self.use(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        if self._merged is None:
            raise ValueError("adapter: none is merged")
        index, kept = self._merged
        self._merged = None
        places = [place for place in self._places if index in place.deltas]
        for place, weight in zip(places, kept, strict=True):
            place.module._parameters["weight"].copy_(weight)

    def weight_read(self, delta: nn.Module, module: nn.Module, weight: Tensor) -> Tensor:
        """The weight of a module that others read past it, adapted (``hvlm.adapter._weight``)."""
        return self.merged_weight(delta, module)

    def merged_weight(self, delta: nn.Module, module: nn.Module) -> Tensor:
        """The weight with which ``module`` alone gives what both give. UserError where there is none."""
        raise UserError(
            f"adapter={type(self).__name__.lower()}: what it adds is no change of a weight, so it cannot be merged, or "
            "stand in a layer whose weight is read past it; leave it beside weights"
        )

    def working(self, part: str) -> int | Rows:
        """The choice for a pass through ``part``; ``OFF`` where it is in the weights already."""
        used = self._used[ROWS_OF.get(part, BETWEEN)]
        if self._merged is None:
            return used
        if used != self._merged[0]:
            raise ValueError(f"adapter {self.merged!r} is merged into the weights: no row can use another; unmerge it")
        return OFF


class Place:
    """A module and what stands beside it, by the index of the set. Called as a forward hook. (An object and no closure,
    so that a copied model's hooks belong to the copy.)"""

    def __init__(self, adapter: AttachedAdapter, path: str, module: nn.Module):
        self.adapter, self.path, self.module = adapter, path, module
        self.part = path.split(".", 1)[0]
        self.deltas: dict[int, nn.Module] = {}

    def attach(self) -> None:
        """Have the module use it."""
        if self.part == "attention" and isinstance(self.module, nn.Linear):
            adapt_weight(self.module, self.weight)
        else:
            self.module.register_forward_hook(self)

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        used, x = self.adapter.working(self.part), arguments[0]
        if isinstance(used, int):
            return output if used not in self.deltas else self.adapter.applied(self.deltas[used], module, x, output)
        if len(used) != len(x):
            raise ValueError(f"adapter: {len(used)} rows choose their weights, but {len(x)} go through the {self.part}")
        return self.adapter.mixed(self.deltas, used, module, x, output)

    def weight(self, module: nn.Module, parameter: Tensor) -> Tensor:
        """The module's weight as others read it."""
        used = self.adapter.working(self.part)
        if used not in self.deltas:
            return parameter
        return self.adapter.weight_read(self.deltas[used], module, parameter)


def _put(parent: nn.Module, path: str, module: nn.Module) -> None:
    """``module`` under ``parent.<path>``, with empty modules on the way."""
    *way, last = path.split(".")
    for name in way:
        if name not in dict(parent.named_children()):
            parent.add_module(name, nn.Module())
        parent = parent.get_submodule(name)
    parent.add_module(last, module)
