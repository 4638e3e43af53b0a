"""Weights, gradients and optimiser states divided among processes (FSDP2), for models that do not fit each of them.

The encoder is a unit, each layer of the language model is one, and the rest of the stage is the root. A unit's weights
are put together while it computes. FSDP notices that by ``forward``; what is called past it is registered here: the
root's ``losses`` (``token_logprobs`` of a reference), inside which everything that is no unit of its own is whole, so
``language.embed`` and ``logits`` need nothing, and the encoder's ``encode`` and ``gaze``.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from hvlm.model import VLM, Encoder


def shard(root: nn.Module, model: VLM | Encoder, entries: tuple[str, ...], mesh: DeviceMesh) -> None:
    """Divide ``root``, which holds or is ``model``, over ``mesh``; its methods ``entries`` are how it is called.

    Every process must have the same weights before.
    """
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
