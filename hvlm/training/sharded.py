"""``trainer=fsdp``: weights, gradients and optimiser states divided among processes, and their checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from hvlm.errors import UserError
from hvlm.io.checkpoint import local
from hvlm.io.shards import (
    ENDS,
    KEY,
    Pieces,
    folder_of,
    is_index,
    load_archive,
    map_tree,
    named_by,
    stand_in,
    write_piece,
)

DIVIDED = ("state_dict", "optimizer_states")  # what of a checkpoint may hold divided tensors


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes, on GPUs or on CPUs. (Lightning's own ``fsdp`` is the first FSDP, which needs GPUs and
    flattens parameters of one unit together.)

    Optimiser states are stored under the numbers that a single process's optimiser gives its parameters, and read by
    them; Lightning's own numbers, those of all parameters of the module, mean others there.

    Args:
        checkpoint: ``whole`` puts each tensor together on the first process, which writes one file; ``sharded`` lets
            each process write what it holds (``hvlm.io.shards``). Either is read with any number of processes.
    """

    def __init__(self, checkpoint: Literal["whole", "sharded"] = "whole") -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=checkpoint == "sharded")
        self.in_pieces = checkpoint == "sharded"

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        self._data_parallel_size = self.world_size

    # -- writing -------------------------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Of this process: divided tensors are ``DTensor``."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Of this process; in the order of the parameters, which has to be that of all processes."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return {**state, "state": {number: state["state"][number] for number in sorted(state["state"])}}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Called by all processes.

        Raises:
            UserError: on all of them, where one could not write; the previous file is whole.
        """
        path = local(self.broadcast(filepath))
        if self.in_pieces:
            self._save_pieces(checkpoint, path, storage_options)
            return
        divided = {key: map_tree(checkpoint[key], self._put_together, key) for key in DIVIDED if key in checkpoint}
        self._on_first(lambda: self.checkpoint_io.save_checkpoint(checkpoint | divided, path, storage_options))

    def _put_together(self, path: str, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if self.is_global_zero else None

    def _save_pieces(self, checkpoint: dict[str, Any], path: Path, storage_options: Any) -> None:
        held: dict[str, tuple[int, Tensor]] = {}

        def take(place: str, value: Any) -> Any:
            if not isinstance(value, DTensor):
                return value
            rows = value.to_local().cpu()
            # what is saved of a tensor is all of its memory, and the last rows may be padded there
            alone = rows.untyped_storage().nbytes() == rows.numel() * rows.element_size()
            held[place] = (rows_of(value)[0], rows if alone else rows.clone())
            return stand_in(place, value)

        index = checkpoint | {key: map_tree(checkpoint[key], take, key) for key in DIVIDED if key in checkpoint}
        name = f"{self.broadcast(time.time_ns()):x}-{self.global_rank}of{self.world_size}"
        entry, problem = None, None
        try:
            entry = write_piece(path, name, held)
        except (OSError, RuntimeError) as error:
            problem = f"{folder_of(path)}: {name}{ENDS} not written ({error}); the previous checkpoint is whole"
        entries: list[Any] = [None] * self.world_size
        dist.all_gather_object(entries, (entry, problem))
        problem = next((said for _, said in entries if said), None)
        try:
            if problem is not None:
                raise UserError(problem)
            self._on_first(lambda: self._save_index(index, [entry for entry, _ in entries], path, storage_options))
        except UserError:
            names = named_by(path)
            if names is not None and name not in names:  # it may have failed after the index was there
                (folder_of(path) / (name + ENDS)).unlink(missing_ok=True)
            raise

    def _save_index(self, index: dict[str, Any], entries: list[Any], path: Path, storage_options: Any) -> None:
        for entry in entries:
            file = folder_of(path) / (entry["name"] + ENDS)
            if not file.is_file() or file.stat().st_size != entry["bytes"]:
                raise UserError(
                    f"{file}: another process has written it, and this one does not see it; runs/ has to be a folder "
                    "that all machines share, or use trainer.checkpoint=whole"
                )
        self.checkpoint_io.save_checkpoint(index | {KEY: entries}, path, storage_options)

    def _on_first(self, work: Callable[[], None]) -> None:
        """``work()`` on the first process; what stops it there stops all."""
        problem = None
        if self.is_global_zero:
            try:
                work()
            except UserError as error:
                problem = str(error)
        if (problem := self.broadcast(problem)) is not None:
            raise UserError(problem)

    # -- reading -------------------------------------------------------------------------------------------------------

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = True) -> dict[str, Any]:
        """Put weights and optimiser states back, of which only this process's rows are read, and return the rest.

        Written by any number of processes, whole or in pieces; its sum has been looked at by whoever chose the file.
        """
        path = local(self.broadcast(checkpoint_path))
        content = load_archive(path, mmap=True)
        pieces = Pieces(path, content) if is_index(content) else None
        module = self.lightning_module
        assert module is not None
        own = module.state_dict()
        state = {name: _like(own.get(name), value, pieces) for name, value in content.pop("state_dict").items()}
        module.load_state_dict(state, strict=module.strict_loading)
        del state
        for optimizer, saved in zip(self.optimizers, content.pop("optimizer_states", []), strict=False):
            optimizer.load_state_dict(_optimizer_state(optimizer, saved, pieces))
        return {key: value for key, value in content.items() if key != KEY}


def rows_of(tensor: DTensor) -> tuple[int, int]:
    """(first, one past the last) row of a tensor that this process holds, as FSDP divides them."""
    if tensor.device_mesh.ndim != 1 or not all(type(p) is Shard and p.dim == 0 for p in tensor.placements):
        raise TypeError(f"divided as {tensor.placements} on {tensor.device_mesh}, expected by rows over one dimension")
    count, mesh = tensor.shape[0], tensor.device_mesh
    each = -(-count // mesh.size())
    start = min(mesh.get_local_rank() * each, count)
    stop = min(start + each, count)
    if len(tensor.to_local()) != stop - start:
        raise TypeError(f"{len(tensor.to_local())} rows are here, expected {stop - start} of {count}")
    return start, stop


def _like(own: Any, value: Any, pieces: Pieces | None) -> Any:
    """A stored tensor, or what stands for one in an index, divided as ``own`` is."""
    if isinstance(own, DTensor):
        start, stop = rows_of(own)
        rows = (
            value[start:stop].clone(memory_format=torch.contiguous_format)
            if isinstance(value, Tensor)
            else _rows(pieces, value, start, stop)
        )
        if isinstance(value, Tensor) and value.shape != own.shape:
            return value  # for torch to say so
        there = rows.to(own.to_local().device)
        return DTensor.from_local(
            there, own.device_mesh, own.placements, run_check=False, shape=own.shape, stride=own.stride()
        )
    return value if isinstance(value, Tensor) else _rows(pieces, value, 0, value["shape"][0])


def _rows(pieces: Pieces | None, value: Any, start: int, stop: int) -> Tensor:
    if pieces is None:
        raise TypeError(f"expected a tensor in a whole checkpoint, found {type(value).__name__}")
    return pieces.rows(value, start, stop)


def _optimizer_state(optimizer: Optimizer, saved: Mapping[str, Any], pieces: Pieces | None) -> dict[str, Any]:
    """The saved state of an optimiser for this process. Parameters are known by their places in the groups."""
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[Any, dict[str, Any]] = {}
    for number, parameter in zip(numbers, own, strict=True):
        if number in saved["state"]:
            state[number] = {
                key: value if isinstance(value, Tensor) and value.ndim == 0 else _like(parameter, value, pieces)
                for key, value in saved["state"][number].items()
            }
    return {**saved, "state": state}
