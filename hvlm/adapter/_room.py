"""What the adapters of the command line share: where they stand, sets from files and to files, what trains beside."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hvlm.adapter._base import AttachedAdapter
from hvlm.adapter._targets import PLACES
from hvlm.config.ranges import PositiveFloat
from hvlm.errors import UserError, first_few
from hvlm.io import adapter_files
from hvlm.io.adapter_files import Stored

MOST_NUMBERS = 2**30  # of all sets together: what a checkpoint claims is built before its weights are looked at


class AdapterRoom(AttachedAdapter):
    """Settings of every adapter.

    where: the parts that it changes. rate: peak learning rate, where ``stage.trainable`` gives none. alone: the rooms'
    own weights stay as they are, whatever ``stage.trainable`` gives them; heads train as it says. names: the sets of
    weights, by default the domain's. load: {name: folder} of sets that come from files (``hvlm.io.adapter_files``).
    """

    kind: ClassVar[str]
    merge_filled = False  # whether the set that is used goes into the weights as soon as these stand
    wanted: list[str] | None = None  # names of layers in place of the usual ones
    source_config: dict[str, Any] | None

    def __init__(
        self,
        *,
        where: list[str],
        rate: PositiveFloat = 1e-3,
        alone: bool = True,
        names: list[str] | None = None,
        load: dict[str, str] | None = None,
        name: str,
        weights: bool = True,
        source_config: dict[str, Any] | None = None,
    ):
        load = dict(load or {})
        if names is None and load:
            names = [*load, *([] if name in (*load, "off") else [name])]
        super().__init__(names=names, name=name)
        if unknown := [part for part in where if part not in PLACES] or ([] if where else ["nothing"]):
            raise UserError(f"adapter.where: {unknown[0]}; expected some of {', '.join(PLACES)}")
        if extra := [n for n in load if n not in self.names]:
            raise UserError(f"adapter.load names {extra[0]}, and adapter.names does not; the sets are {self.names}")
        if source_config is not None and not _is_whole(source_config):
            raise UserError(
                "adapter: what the checkpoint says of its sets of weights is damaged; take an earlier copy of it, or "
                "name the folders of the weights (adapter.load={name: folder})"
            )
        if load and source_config is None:
            source_config = self.read_source_config({"load": load})
        self.where, self.adapts = list(dict.fromkeys(where)), frozenset(where)
        self.rate, self.alone = rate, alone
        self.source_config = source_config
        self.reads = tuple(load) if weights else ()
        self._from = {n: Path(folder) for n, folder in load.items()} if weights else {}

    @classmethod
    def read_source_config(cls, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """{name: {kind, shapes, alphas, settings}} of the sets that files hold."""
        found = {}
        for name, folder in (settings.get("load") or {}).items():
            if not str(folder or "").strip():
                raise UserError(
                    f"adapter.load.{name}: names no folder; expected one that holds {adapter_files.CONFIG} and "
                    f"{adapter_files.WEIGHTS}, as a run leaves it in <stage>/{adapter_files.ADAPTERS}/<name>"
                )
            stored = adapter_files.read(folder, f"adapter.load.{name}")
            if stored.kind != cls.kind:
                raise UserError(f"adapter.load.{name}={folder}: holds {stored.kind}; use adapter={stored.kind}")
            shapes = {path: {n: list(t.shape) for n, t in own.items()} for path, own in stored.tensors.items()}
            found[name] = {
                "folder": str(folder), "shapes": shapes, "alphas": stored.alphas, "settings": stored.settings
            }  # fmt: skip
        return found or None

    # ------------------------------------------------------------------------------------------------- sets from files

    @abstractmethod
    def sized(self, module: nn.Module, shapes: Mapping[str, list[int]], alpha: float | None) -> nn.Module:
        """``make`` for a set from a file, with the sizes that stand there."""

    def to_file(self, delta: nn.Module, module: nn.Module) -> dict[str, Tensor]:
        """{name in the file: tensor} of what stands beside one module."""
        return dict(delta.state_dict())

    def from_file(self, delta: nn.Module, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Take what a file has for one module, whose own weights stand."""
        delta.load_state_dict(dict(tensors))

    def alpha_of(self, delta: nn.Module) -> float | None:
        """What scales it; None where nothing does."""
        return None

    def file_settings(self) -> dict[str, Any]:
        """What a file must say beside the tensors."""
        return {}

    def made(self, model: nn.Module) -> Iterator[tuple[str, str, nn.Module, nn.Module]]:
        plain = [name for name in self.names if name not in (self.source_config or {})]
        # Files say where their sets stand; a name that is no layer's is an error all the same.
        for path, module in self.targets(model) if plain or self.wanted is not None else ():
            for name in plain:
                yield name, path, module, self.make(module)
        for name, said in (self.source_config or {}).items():
            if name in self.names:
                yield from self._from_a_file(model, name, said)

    def _from_a_file(self, model: nn.Module, name: str, said: Mapping[str, Any]) -> Iterator[Any]:
        there, problems, found = dict(model.named_modules()), [], []
        if said["settings"] != self.file_settings():
            raise UserError(
                f"adapter.load.{name}={said['folder']}: was made with {said['settings']}, and here are "
                f"{self.file_settings()}; give the same settings"
            )
        for path, shapes in said["shapes"].items():
            module = there.get(path)
            delta = None if module is None else self.sized(module, shapes, said["alphas"].get(path))
            own = {} if delta is None else {n: list(t.shape) for n, t in self.to_file_shapes(delta, module).items()}
            for tensor, shape in shapes.items():
                if own.get(tensor) != shape:
                    here = f"{tuple(own[tensor])} here" if tensor in own else "nothing here to stand beside"
                    problems.append(f"{path}.{tensor} is {tuple(shape)} there and {here}")
            problems += [f"{path}.{n} {tuple(own[n])} is missing there" for n in own if n not in shapes]
            found.append((name, path, module, delta))
        if problems:
            raise UserError(
                f"adapter.load.{name}={said['folder']}: was made for another base: {first_few(problems)}; "
                "name the base that it was trained on"
            )
        parts = {path.split(".", 1)[0] for path in said["shapes"]}
        self.adapts = self.adapts | parts
        yield from found

    def to_file_shapes(self, delta: nn.Module, module: nn.Module) -> dict[str, Tensor]:
        """As ``to_file``, of which the shapes alone count."""
        with torch.no_grad():
            return self.to_file(delta, module)

    @torch.no_grad()
    def fill(self) -> None:
        for name, folder in self._from.items():
            stored, index = adapter_files.read(folder, f"adapter.load.{name}"), self.names.index(name)
            for place in self._places:
                if index in place.deltas:
                    self.from_file(place.deltas[index], place.module, stored.tensors[place.path])
        if self.merge_filled and self._merged is None:
            self.merge()

    def save(self, folder: str | Path, name: str | None = None, base: str | None = None) -> Path:
        name = self.used if name is None else self._known(name)
        if name is None:
            raise UserError("adapter: none is used, so there is nothing to save; name one of its sets")
        if self._merged is not None:
            raise UserError(f"adapter {self.merged!r} is merged into the weights; unmerge it, and then save it")
        index, folder = self.names.index(name), Path(folder)
        places = [place for place in self._places if index in place.deltas]
        with torch.no_grad():
            tensors = {place.path: self.to_file(place.deltas[index], place.module) for place in places}
        alphas = {p.path: alpha for p in places if (alpha := self.alpha_of(p.deltas[index])) is not None}
        transposed = any(not hasattr(p.module, "in_features") for p in places if alphas)
        stored = Stored(self.kind, tensors, alphas, self.file_settings())
        try:
            adapter_files.write(folder, stored, base=base, transposed=transposed, dropout=getattr(self, "dropout", 0.0))
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error
        return folder

    def settled(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {**settings, "load": None, "names": list(self.names)}


def _is_whole(source_config: Any) -> bool:
    """Whether a checkpoint, which may be anybody's, says what ``AdapterRoom.read_source_config`` says."""
    if not isinstance(source_config, Mapping):
        return False
    total = 0
    for said in source_config.values():
        maps = [said.get(part) for part in ("shapes", "alphas", "settings")] if isinstance(said, Mapping) else [None]
        if not all(isinstance(one, Mapping) for one in maps) or not isinstance(said.get("folder"), str):
            return False
        shapes, alphas, _ = maps
        if not all(isinstance(alpha, int | float) and alpha > 0 for alpha in alphas.values()):
            return False
        for tensors in shapes.values():
            for shape in tensors.values() if isinstance(tensors, Mapping) else [None]:
                if not isinstance(shape, list | tuple) or not all(type(n) is int and 0 < n for n in shape):
                    return False
                total += math.prod(shape)
    return total <= MOST_NUMBERS
