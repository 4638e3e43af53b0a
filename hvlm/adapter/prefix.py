"""Prefix tuning: keys and values that are learned, beside those of what was read (Li & Liang 2021), behind a gate.

    y_h = softmax(q Kᵀ) V  +  g_h softmax(q K'ᵀ) V'        g one number a head, at first 0

Learned keys among the others would take their share of the softmax even if they were all zero; with a term of their own
(LLaMA-Adapter, Zhang et al. 2023) nothing changes until the gate opens. They are not part of what was read, so every
cache keeps what it keeps without them. 4 length d multiplications a head and token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hvlm.adapter._base import Place
from hvlm.adapter._room import AdapterRoom
from hvlm.adapter._rows import Rows
from hvlm.config.ranges import PositiveFloat, Width
from hvlm.errors import UserError
from hvlm.functional import attend


class PrefixAdapter(nn.Module):
    """length: learned places. num_heads, num_kv_heads, head_dim: the layer's."""

    no_weight_decay = frozenset({"keys", "values"})

    def __init__(self, length: Width, num_heads: int, num_kv_heads: int, head_dim: int):
        super().__init__()
        self.keys = nn.Parameter(torch.randn(length, num_kv_heads, head_dim))
        self.values = nn.Parameter(torch.randn(length, num_kv_heads, head_dim))
        self.gate = nn.Parameter(torch.zeros(num_heads))

    def forward(self, query_KHSd: Tensor, scale: float | None = None) -> Tensor:
        """What the layer's attention is given beside its own, [K, S, H, d]; query: as the layer asks with it."""
        k, v = (
            x.to(query_KHSd.dtype).transpose(0, 1).expand(len(query_KHSd), -1, -1, -1) for x in (self.keys, self.values)
        )
        return (attend(query_KHSd, k, v, scale=scale) * self.gate.to(v.dtype).view(-1, 1, 1)).transpose(1, 2)


class Prefix(AdapterRoom):
    """Learned keys and values in every layer of the language model.

    Args:
        where: ``[language]``: it is attention over text and visual tokens that they join.
        length: of them a layer.
        rate, alone, names, load: see ``AdapterRoom``.
    """

    kind: ClassVar[str] = "prefix"

    def __init__(
        self,
        *,
        where: list[Literal["language"]],
        length: Width = 16,
        rate: PositiveFloat = 1e-2,
        **room: Any,
    ):
        super().__init__(where=list(where), rate=rate, **room)
        self.length = length

    def attach(self, model: nn.Module) -> None:
        language = model.language
        if not language.asks_cache:
            raise UserError(
                "adapter=prefix: keys and values of its own are read by our attention alone; use language.attention="
                "auto, or adapter=lora"
            )
        self._heads = language.num_heads, language.num_kv_heads, language.head_dim
        super().attach(model)

    def targets(self, model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        found = [
            (path, module)
            for path, module in model.named_modules()
            if path.startswith("language.") and hasattr(module, "layer_idx") and hasattr(module, "is_causal")
        ]
        if len(found) != model.language.num_layers:
            raise UserError(
                f"adapter=prefix: {len(found)} modules of this language model attend and it has "
                f"{model.language.num_layers} layers; use adapter=lora"
            )
        return found

    def make(self, module: nn.Module) -> nn.Module:
        return PrefixAdapter(self.length, *self._heads)

    def sized(self, module: nn.Module, shapes: Mapping[str, list[int]], alpha: float | None) -> nn.Module:
        return PrefixAdapter(shapes["keys"][0], *self._heads)

    def hook(self, place: Place) -> None:
        place.module.register_forward_pre_hook(Hand(place), with_kwargs=True)
        place.module.register_forward_hook(Taken(place), with_kwargs=True)


class Beside:
    """What a layer's attention is handed (``hvlm.language._attention``): called with its queries."""

    def __init__(self, place: Place, used: int | Rows):
        self.place, self.used, self.asked = place, used, False

    def __call__(self, query_KHSd: Tensor, scale: float | None) -> Tensor:
        self.asked = True
        deltas, used = self.place.deltas, self.used
        if isinstance(used, int):
            return deltas[used](query_KHSd, scale)
        if len(used) != len(query_KHSd):
            raise ValueError(
                f"adapter: {len(used)} rows choose their weights, but {len(query_KHSd)} go through the language"
            )
        y = query_KHSd.new_zeros(query_KHSd.transpose(1, 2).shape)
        for index, at in used.groups():
            if index in deltas:
                given = deltas[index](query_KHSd[at], scale)
                y = y.to(given.dtype).index_copy(0, at, given)
        return y


class Hand:
    """Before a layer attends: hand it what it is to look at beside its own keys."""

    def __init__(self, place: Place):
        self.place = place

    def __call__(self, module: nn.Module, arguments: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        used = self.place.adapter.working("language")
        if isinstance(used, int) and used not in self.place.deltas:
            return arguments, named
        return arguments, {**named, "beside": Beside(self.place, used)}


class Taken:
    """After it: a class of transformers that does not hand on what it is given would leave the prefix out unsaid."""

    def __init__(self, place: Place):
        self.place = place

    def __call__(self, module: nn.Module, arguments: tuple, named: dict[str, Any], output: Any) -> None:
        beside = named.get("beside")
        if beside is not None and not beside.asked:
            raise UserError(
                f"adapter=prefix: {type(module).__name__} does not hand on what it is given; use adapter=lora"
            )
