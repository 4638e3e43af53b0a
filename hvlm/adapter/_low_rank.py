"""A product of two thin matrices beside a weight W (Hu et al. 2021, "LoRA: Low-Rank Adaptation").

    y = W x + (alpha / r) B A x        A [r, in] random, B [out, r] zero, so that at first nothing changes

2 r (in + out) multiplications a token beside the layer's own 2 in out. Merged, W + (alpha / r) B A costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.adapter._room import AdapterRoom
from hvlm.adapter._rows import Rows
from hvlm.adapter._targets import as_linear, chosen, sizes
from hvlm.config.ranges import PositiveFloat, Probability, Width
from hvlm.errors import UserError


class LoRAAdapter(nn.Module):
    """(alpha / rank) B A x, added to ``output``: that of the layer beside which it stands, or x itself.

    Works on its own: ``LoRAAdapter(dim=768, rank=8)(x)`` is x + (alpha / rank) B A x, at first x itself.

    Args:
        dim: width of what goes in. rank: of the product. alpha: scale times rank. dropout: of what goes in, while it
            trains. out_dim: width of what comes out, by default the same.
    """

    def __init__(
        self,
        dim: int = 768,
        rank: Width = 8,
        alpha: PositiveFloat = 16.0,
        dropout: Probability = 0.0,
        out_dim: int | None = None,
    ):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank={rank}: expected 1 or more")
        self.rank, self.alpha, self.scale, self.dropout = rank, alpha, alpha / rank, dropout
        self.lora_A = nn.Linear(dim, rank, bias=False)
        self.lora_B = nn.Linear(rank, dim if out_dim is None else out_dim, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor, output: Tensor | None = None) -> Tensor:
        """x [..., dim], output [..., out_dim] or None -> [..., out_dim]."""
        return added(self.thin(x), self.lora_B.weight, self.scale, x if output is None else output)

    def thin(self, x: Tensor) -> Tensor:
        """A x, [..., rank]."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return F.linear(x, self.lora_A.weight.to(x.dtype))

    def change(self, drop: bool = True) -> Tensor:
        """(alpha / rank) B A, float32 [out_dim, dim]; drop: with dropout, while it trains."""
        with torch.autocast(self.lora_A.weight.device.type, enabled=False):
            a = self.lora_A.weight.float()
            if drop and self.dropout and self.training:  # of whole features, for here nobody sees the tokens
                a = a * F.dropout(torch.ones_like(a[:1]), self.dropout)
            return (self.scale * self.lora_B.weight.float()) @ a


def added(thin: Tensor, b: Tensor, scale: float, output: Tensor) -> Tensor:
    """output + scale * thin bᵀ, in one product."""
    y = torch.addmm(
        output.reshape(-1, output.shape[-1]),
        thin.reshape(-1, thin.shape[-1]).to(output.dtype),
        b.to(output.dtype).T,
        alpha=scale,
    )
    return y.view(output.shape)


class LowRank(AdapterRoom):
    """What LoRA and DoRA share: W x + (alpha / rank) B A x beside linear layers.

    Args:
        where: the parts with these layers. targets: names of layers (ends of their paths: ``q_proj``,
            ``layers.0.mlp.down_proj``), or the words ``attention``, ``mlp``, ``all``; null: attention's projections in
            language model and encoder, whatever the family calls them, and all layers of the other rooms.
        rank, alpha, dropout: see ``LoRAAdapter``.
        merge: put the set that is used into the weights, for a model that only answers.
        rate, alone, names, load: see ``AdapterRoom``.
    """

    kind: ClassVar[str] = "lora"
    layer: ClassVar[type[LoRAAdapter]] = LoRAAdapter

    def __init__(
        self,
        *,
        targets: list[str] | None = None,
        rank: Width = 8,
        alpha: PositiveFloat = 16.0,
        dropout: Probability = 0.0,
        merge: bool = False,
        **room: Any,
    ):
        super().__init__(**room)
        self.merge_filled = merge
        self.wanted, self.rank, self.alpha, self.dropout = targets, rank, alpha, dropout

    def targets(self, model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        return [(one.path, one.module) for one in chosen(model, self.where, self.wanted)]

    def make(self, module: nn.Module) -> nn.Module:
        dim, out = sizes(module)
        return self.layer(dim, self.rank, self.alpha, self.dropout, out)

    def sized(self, module: nn.Module, shapes: Mapping[str, list[int]], alpha: float | None) -> nn.Module:
        dim, out = sizes(module)
        return self.layer(dim, shapes["lora_A.weight"][0], alpha or self.alpha, self.dropout, out)

    def alpha_of(self, delta: nn.Module) -> float | None:
        return float(delta.alpha)

    def applied(self, delta: nn.Module, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        return delta(x, output)

    def mixed(self, deltas: Mapping[int, nn.Module], rows: Rows, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """All sets side by side as one product, in which each row reads its own part."""
        own = [deltas[index] for index in rows.sets if index in deltas]
        if len(own) < len(rows.sets) or len({delta.rank for delta in own}) > 1:
            return super().mixed(deltas, rows, module, x, y)
        thin, b = side_by_side(own, rows, x)
        return added(thin, b, 1.0, y)

    def changed(self, delta: nn.Module, module: nn.Module, weight: Tensor, drop: bool) -> Tensor:
        """``weight``, the module's own, with what stands beside it."""
        return (weight.float() + as_linear(delta.change(drop), module)).to(weight.dtype)

    def weight_read(self, delta: nn.Module, module: nn.Module, weight: Tensor) -> Tensor:
        return self.changed(delta, module, weight, drop=True)

    def merged_weight(self, delta: nn.Module, module: nn.Module) -> Tensor:
        weight = module._parameters["weight"]
        if not weight.is_floating_point():
            raise UserError("adapter: quantised weights cannot take an adapter in; use language.quantize=null")
        return self.changed(delta, module, weight, drop=False)


def side_by_side(deltas: Sequence[LoRAAdapter], rows: Rows, x: Tensor) -> tuple[Tensor, Tensor]:
    """(A x of all sets, blank but for the row's own [K, ..., sets * rank]; their B beside each other, scaled)."""
    first = deltas[0]
    if first.dropout and first.training:
        x = F.dropout(x, first.dropout)
    thin = F.linear(x, torch.cat([delta.lora_A.weight for delta in deltas]).to(x.dtype))
    b = torch.cat([delta.scale * delta.lora_B.weight for delta in deltas], 1)
    return thin * rows.mask(first.rank, thin.dim(), thin), b
