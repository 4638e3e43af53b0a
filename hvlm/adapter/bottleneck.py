"""Bottlenecks: two thin layers with a bend between them, behind what a layer hands on.

    y <- y + W_up act(W_down y)        W_up at first zero, so that nothing changes

Houlsby et al. (2019) have one behind attention and one behind the MLP of every layer, Pfeiffer et al. (2021) one behind
the MLP alone, both before the residual sum. 4 size dim multiplications a token each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.adapter._room import AdapterRoom
from hvlm.adapter._rows import Rows
from hvlm.adapter._targets import chosen, ends, is_linear, sizes
from hvlm.config.ranges import Probability, Width
from hvlm.errors import UserError

BENDS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
KINDS = {"houlsby": ("attention", "mlp"), "pfeiffer": ("mlp",)}


class BottleneckAdapter(nn.Module):
    """x + W_up act(W_down x), at first x itself; works on its own.

    Args:
        dim: width of x. size: of the bottleneck. activation: relu, gelu or silu. dropout: of the bottleneck, while it
            trains.
    """

    def __init__(
        self,
        dim: int = 768,
        size: Width = 64,
        activation: Literal["relu", "gelu", "silu"] = "gelu",
        dropout: Probability = 0.0,
    ):
        super().__init__()
        if activation not in BENDS:
            raise ValueError(f"activation={activation!r}: expected one of {', '.join(BENDS)}")
        self.down, self.up = nn.Linear(dim, size), nn.Linear(size, dim)
        self.activation, self.dropout = activation, dropout
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        narrow = self.bent(F.linear(x, self.down.weight.to(x.dtype), self.down.bias.to(x.dtype)))
        return x + F.linear(narrow, self.up.weight.to(x.dtype), self.up.bias.to(x.dtype))

    def bent(self, narrow: Tensor) -> Tensor:
        narrow = BENDS[self.activation](narrow)
        return F.dropout(narrow, self.dropout) if self.dropout and self.training else narrow


class Bottleneck(AdapterRoom):
    """Bottlenecks behind the sub-layers of language model and encoder, the projector and the room that mixes.

    Args:
        where: the parts. style: ``houlsby`` or ``pfeiffer``, of the first two. targets: names of linear layers behind
            which they stand, in place of the style's.
        size, activation, dropout: see ``BottleneckAdapter``.
        rate, alone, names, load: see ``AdapterRoom``.
    """

    kind: ClassVar[str] = "bottleneck"

    def __init__(
        self,
        *,
        style: Literal["houlsby", "pfeiffer"] = "pfeiffer",
        targets: list[str] | None = None,
        size: Width = 16,
        activation: Literal["relu", "gelu", "silu"] = "gelu",
        dropout: Probability = 0.0,
        **room: Any,
    ):
        super().__init__(**room)
        if style not in KINDS:
            raise ValueError(f"adapter.style={style!r}: expected one of {', '.join(KINDS)}")
        self.style, self.wanted, self.size = style, targets, size
        self.activation, self.dropout = activation, dropout

    def attach(self, model: nn.Module) -> None:
        self._dim = model.language.dim
        super().attach(model)

    def targets(self, model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        if self.wanted is not None:
            if "attention" in self.where:
                raise UserError(
                    "adapter.targets: of the room that mixes there is no choice; leave attention out of where"
                )
            return [(one.path, one.module) for one in chosen(model, self.where, self.wanted)]
        found = [(one.path, one.module) for one in ends(model, self.where, KINDS[self.style])]
        if "connector" in self.where:
            found += _projectors(model.connector)
        if "attention" in self.where and model.attention.mixes:
            found.append(("attention", model.attention))
        for part in self.where:
            if not any(path.split(".", 1)[0] == part for path, _ in found):
                raise UserError(
                    f"adapter.where names {part}, and nothing of this model's {part} is known to end a layer; leave it "
                    "out, or name layers with adapter.targets"
                )
        return found

    def make(self, module: nn.Module) -> nn.Module:
        return BottleneckAdapter(self._width(module), self.size, self.activation, self.dropout)

    def sized(self, module: nn.Module, shapes: Mapping[str, list[int]], alpha: float | None) -> nn.Module:
        return BottleneckAdapter(self._width(module), shapes["down.bias"][0], self.activation, self.dropout)

    def _width(self, module: nn.Module) -> int:
        return sizes(module)[1] if is_linear(module) else self._dim

    def file_settings(self) -> dict[str, Any]:
        return {"activation": self.activation}

    def applied(self, delta: nn.Module, module: nn.Module, x: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # of the room that mixes: (Tokens, state)
            return output[0]._replace(x_BSD=delta(output[0].x_BSD)), *output[1:]
        return delta(output)

    def mixed(self, deltas: Mapping[int, nn.Module], rows: Rows, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """All sets side by side, of which each row reads its own part."""
        own = [deltas[index] for index in rows.sets if index in deltas]
        if len(own) < len(rows.sets) or len({len(delta.down.bias) for delta in own}) > 1:
            return super().mixed(deltas, rows, module, x, y)
        down = torch.cat([delta.down.weight for delta in own]), torch.cat([delta.down.bias for delta in own])
        narrow = own[0].bent(F.linear(y, *(of.to(y.dtype) for of in down)))
        narrow = narrow * rows.mask(len(own[0].down.bias), narrow.dim(), narrow)
        up = F.linear(narrow, torch.cat([delta.up.weight for delta in own], 1).to(y.dtype))
        bias = torch.stack([*(delta.up.bias for delta in own), torch.zeros_like(own[0].up.bias)])[rows.place()]
        return y + (up + bias.to(up.dtype).view(len(y), *(1,) * (y.dim() - 2), -1))


def _projectors(connector: nn.Module) -> list[tuple[str, nn.Module]]:
    """The last linear layer of each of the connector's own modules that has several layers."""
    found = []
    for name, child in connector.named_children():
        inside = [(path, module) for path, module in child.named_modules() if path and is_linear(module)]
        if inside:
            found.append((f"connector.{name}.{inside[-1][0]}", inside[-1][1]))
    return found
