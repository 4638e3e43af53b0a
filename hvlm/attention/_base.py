"""What all mixing rooms share: the residual shell around a layer, and the read-out."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hvlm.config.ranges import PositiveInt
from hvlm.contracts import Attention
from hvlm.types import Tokens


def read_out(tokens: Tokens, k: int) -> Tokens:
    """Every k-th token: of each k in a row the last that is valid. What is further away must have been carried there by
    the mixing."""
    if k == 1:
        return tokens
    place = torch.arange(tokens.mask_BS.shape[1], device=tokens.mask_BS.device)
    last = torch.where(tokens.mask_BS, place, -1)
    last = F.pad(last, (0, -last.shape[1] % k), value=-1).unflatten(1, (-1, k)).amax(-1)
    read = tokens.gather(last.clamp(min=0))
    return read._replace(mask_BS=last >= 0, position_BS=None)  # what stands for k tokens has the place of none


def check_readout(k: int) -> int:
    if k < 1:
        raise ValueError(f"attention.readout={k}: expected 1 (all tokens) or more (every k-th)")
    return k


def check_streams(causal: bool) -> None:
    if not causal:
        raise ValueError("a stream needs attention.causal=true: what looks ahead cannot go token by token")


class MixingRoom(Attention):
    """x <- x + layer(LN(x)), ``layers`` times over the visual tokens of the whole video: Tokens -> (Tokens, state).

    A variant says which ``layer`` (and, where there are several of one mechanism, how to ``make`` one). Its settings
    are the layer's own, those of ``make``, and these:

    readout=k: hand on every k-th token. gradient_checkpointing: compute the layers again in the backward pass instead
    of keeping what they made. There is no state: what streams, streams layer by layer, by ``step``.
    """

    layer: ClassVar[type[nn.Module]]

    def __init__(
        self,
        *,
        layers: PositiveInt = 1,
        readout: PositiveInt = 1,
        gradient_checkpointing: bool = False,
        dim: int,
        **layer: Any,
    ):
        super().__init__()
        self.readout, self.gradient_checkpointing = check_readout(readout), gradient_checkpointing
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.layers = nn.ModuleList(self.make(dim=dim, **layer) for _ in range(layers))
        self.causal = self.layers[0].causal

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.__signature__ = _joined(cls)  # what the checks and ``help`` read

    def make(self, **layer: Any) -> nn.Module:
        """One layer, called as ``layer(x_BSD, mask_BS)``."""
        return self.layer(**layer)

    def mixed_again(self, layer: nn.Module, x_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        """What the layer gives, computed again in the backward pass."""
        return checkpoint(layer, x_BSD, mask_BS, use_reentrant=False)

    def forward(self, tokens: Tokens) -> tuple[Tokens, None]:
        x, mask = tokens.x_BSD, tokens.mask_BS
        mask = None if bool(mask.all()) else mask
        for norm, layer in zip(self.norms, self.layers, strict=True):
            if self.gradient_checkpointing and self.training:
                y = self.mixed_again(layer, norm(x), mask)
            else:
                y = layer(norm(x), mask)
            x = x + y
        return read_out(tokens._replace(x_BSD=x), self.readout), None


def no_memory(layer: nn.Module, memory: Tensor | None) -> None:
    if memory is not None:
        raise ValueError(f"{type(layer).__name__} reads no memory; CrossMemoryAttention does")


def _joined(room: type[MixingRoom]) -> inspect.Signature:
    """The arguments of the layer, of ``make`` and of the room itself, all by keyword. The widths have no defaults here:
    they are those of the language model."""
    found: dict[str, inspect.Parameter] = {}
    for function in (room.layer, room.make, room.__init__):
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
            if name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
                default = parameter.empty if name in ("dim", "num_heads") else parameter.default
                found[name] = parameter.replace(kind=parameter.KEYWORD_ONLY, default=default)
    return inspect.Signature(list(found.values()))
