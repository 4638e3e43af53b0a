"""How many bytes of weights, gradients and optimiser states this process holds."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def held_bytes(module: nn.Module, optimizers: Iterable[torch.optim.Optimizer] = ()) -> dict[str, int]:
    """{parameters, gradients, optimiser, buffers}: of divided tensors the part that is here; shared ones count once.

    Gradients are there between the backward pass and the next step's beginning.
    """
    parameters = list(module.parameters())
    states = (value for optimizer in optimizers for state in optimizer.state.values() for value in state.values())
    return {
        "parameters": _bytes(parameters),
        "gradients": _bytes(p.grad for p in parameters if p.grad is not None),
        "optimiser": _bytes(value for value in states if isinstance(value, Tensor)),
        "buffers": _bytes(module.buffers()),
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    found: dict[int, int] = {}
    for tensor in tensors:
        here = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        storage = here.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())
