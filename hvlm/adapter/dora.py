"""DoRA: LoRA that learns the length of every row of the weight apart from its direction (Liu et al. 2024).

    y = m / ‖W + s B A‖ ⊙ (W + s B A) x + b        m at first ‖W‖, so that nothing changes

Norms are over each output's row and count as constants going back, as published. What is learned is kept as m - ‖W‖:
zero at first whatever the weight is, even one that is loaded later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from hvlm.adapter._low_rank import LoRAAdapter, LowRank, side_by_side
from hvlm.adapter._rows import Rows
from hvlm.adapter._targets import as_linear
from hvlm.errors import UserError

VECTOR = "lora_magnitude_vector"  # in files


class DoRAAdapter(LoRAAdapter):
    """Beside one layer, whose weight it is asked with. longer: m - ‖W‖, [out_dim]."""

    def __init__(self, dim: int, rank: int, alpha: float, dropout: float, out_dim: int):
        super().__init__(dim, rank, alpha, dropout, out_dim)
        self.longer = nn.Parameter(torch.zeros(out_dim))
        self._norm: tuple[int, int, Tensor] | None = None  # of the layer's own weight, while that stays

    def factor(self, weight: Tensor) -> Tensor:
        """m / ‖W + s B A‖, float32 [out_dim]; weight: [out_dim, dim]."""
        with torch.no_grad():
            now = norms(weight.float() + self.change(drop=False))
        return (self.norm(weight) + self.longer.float()) / now

    @torch.no_grad()
    def norm(self, weight: Tensor) -> Tensor:
        """‖W‖ of each row, float32 [out_dim]."""
        if weight.is_meta or weight.is_inference():
            return norms(weight.float())
        key = (weight.data_ptr(), weight._version)
        if self._norm is None or self._norm[:2] != key or self._norm[2].device != weight.device:
            self._norm = (*key, norms(weight.float() + 0.0))
        return self._norm[2]


def norms(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=1)


class DoRA(LowRank):
    """See ``LowRank``, whose settings it has."""

    kind: ClassVar[str] = "dora"
    layer: ClassVar[type[LoRAAdapter]] = DoRAAdapter

    def make(self, module: nn.Module) -> nn.Module:
        _refuse_packed(module)
        return super().make(module)

    def sized(self, module: nn.Module, shapes: Mapping[str, list[int]], alpha: float | None) -> nn.Module:
        _refuse_packed(module)
        return super().sized(module, shapes, alpha)

    def applied(self, delta: nn.Module, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """f (W x + s B A x) + b, in terms of y = W x + b."""
        factor = delta.factor(as_linear(module.weight, module)).to(output.dtype)
        bare = output if module.bias is None else output - module.bias.to(output.dtype)
        b = factor.unsqueeze(1) * delta.lora_B.weight.to(output.dtype)
        thin = delta.thin(x)
        y = torch.addmm(
            ((factor - 1) * bare).reshape(-1, output.shape[-1]),
            thin.reshape(-1, thin.shape[-1]).to(output.dtype),
            b.T,
            alpha=delta.scale,
        )
        return output + y.view(output.shape)

    def mixed(self, deltas: Mapping[int, nn.Module], rows: Rows, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        own = [deltas[index] for index in rows.sets if index in deltas]
        if len(own) < len(rows.sets) or len({delta.rank for delta in own}) > 1:
            return super(LowRank, self).mixed(deltas, rows, module, x, y)
        weight = as_linear(module.weight, module)
        factors = torch.stack([*(delta.factor(weight) for delta in own), torch.ones(len(weight), device=y.device)])
        factor = factors.to(y.dtype)[rows.place()].view(len(y), *(1,) * (y.dim() - 2), -1)
        bare = y if module.bias is None else y - module.bias.to(y.dtype)
        thin, b = side_by_side(own, rows, x)
        return y + (factor - 1) * bare + factor * (thin.to(y.dtype) @ b.to(y.dtype).T)

    def changed(self, delta: nn.Module, module: nn.Module, weight: Tensor, drop: bool) -> Tensor:
        own = as_linear(weight, module)
        changed = (own.float() + delta.change(drop)) * delta.factor(own).unsqueeze(1)
        return as_linear(changed, module).to(weight.dtype)

    def to_file(self, delta: nn.Module, module: nn.Module) -> dict[str, Tensor]:
        weight = as_linear(module._parameters["weight"], module)
        found = {name: value for name, value in delta.state_dict().items() if name != "longer"}
        return found | {VECTOR: delta.norm(weight) + delta.longer.float()}

    def from_file(self, delta: nn.Module, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        weight = as_linear(module._parameters["weight"], module)
        given = dict(tensors)
        longer = given.pop(VECTOR).float().to(weight.device) - delta.norm(weight)
        delta.load_state_dict(given | {"longer": longer})


def _refuse_packed(module: nn.Module) -> None:
    if not module._parameters["weight"].is_floating_point():
        raise UserError(
            "adapter=dora: quantised weights have no rows whose length could be learned; use adapter=lora, or "
            "language.quantize=null"
        )
