"""Weights, gradients and optimiser states divided among processes (FSDP2), for models that do not fit each of them.

The encoder is a unit, each layer of the language model is one, and the rest of the stage is the root. A unit's weights
are put together while it computes. FSDP notices that by ``forward``; what is called past it is registered here: the
root's ``losses`` (``token_logprobs`` of a reference), inside which everything that is no unit of its own is whole, so
``language.embed`` and ``logits`` need nothing, and the encoder's ``encode`` and ``gaze``.

The encoder stays whole for all of a pass: one process may call it more often than another, for its frames are more
parts (``vision.frames_at_once``), or some are remembered (``vision.cache_gb``), and each call would wait for all.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from hvlm.errors import UserError
from hvlm.model import VLM, Encoder


def shard(root: nn.Module, model: VLM | Encoder, entries: tuple[str, ...], mesh: DeviceMesh) -> None:
    """Divide ``root``, which holds or is ``model``, over ``mesh``; its methods ``entries`` are how it is called.

    Every process must have the same weights before.

    Raises:
        UserError: a weight is a single number, which FSDP cannot divide.
    """
    if single := [name for name, parameter in root.named_parameters() if parameter.ndim == 0]:
        raise UserError(
            f"trainer.strategy=fsdp: {', '.join(single)} is a single number, which cannot be divided among processes; "
            "use trainer=ddp"
        )
    units: list[tuple[nn.Module, tuple[str, ...]]] = [(model.vision, ("encode", "gaze"))]
    if isinstance(model, VLM):
        lists = [module for module in model.language.modules() if isinstance(module, nn.ModuleList)]
        units += [(layer, ()) for layers in lists for layer in layers]
    for parameter in root.parameters():
        parameter.data = parameter.data.contiguous()  # convolutions may lie in memory channels last
    for module, methods in [*units, (root, entries)]:
        unit: Any = fully_shard(module, mesh=mesh)
        for method in methods:
            register_fsdp_forward_method(unit, method)
        if module is model.vision:
            unit.set_reshard_after_forward(False)
