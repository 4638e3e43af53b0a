"""A temporal pyramid of transformer blocks with local attention, each level at half the rate of the one below
(ActionFormer, Zhang et al. 2022), and its causal form, which can also be run a frame at a time.

Everything is [K, T, D] with mask_KT. In the causal form no place sees a later one; ``step`` then gives, frame by frame,
what the whole pass gives, with a state whose size does not grow.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[Any, Tensor]  # of a stream: what each layer still needs of what it has seen


class Conv(nn.Module):
    """A convolution over time that keeps the length (over ``stride``), zero beyond the ends and where nothing is."""

    def __init__(self, into: int, out: int, *, kernel: int = 3, stride: int = 1, groups: int = 1, causal: bool):
        super().__init__()
        self.kernel, self.stride, self.causal = kernel, stride, causal
        self.conv = nn.Conv1d(into, out, kernel, stride=stride, groups=groups)

    def forward(self, x_KTD: Tensor, mask_KT: Tensor) -> Tensor:
        side = self.kernel - 1
        left = side if self.causal else side // 2
        x = F.pad((x_KTD * mask_KT.unsqueeze(-1)).transpose(1, 2), (left, side - left))
        return self.conv(x).transpose(1, 2) * mask_KT[:, :: self.stride].unsqueeze(-1)

    def step(self, x_K1D: Tensor, state: State) -> Tensor:
        """What the whole pass gives at this place (of one with a stride: what it would give if this place counted)."""
        before = state.get(self)
        if before is None:
            before = x_K1D.new_zeros(len(x_K1D), self.kernel - 1, x_K1D.shape[-1])
        window = torch.cat([before, x_K1D], 1)
        state[self] = window[:, 1:]
        return self.conv(window.transpose(1, 2)).transpose(1, 2)


class Tower(nn.Module):
    """Convolutions with norms between them, and a last one to ``out`` values."""

    def __init__(self, dim: int, out: int, *, layers: int = 2, causal: bool, bias: float = 0.0):
        super().__init__()
        self.convs = nn.ModuleList(Conv(dim, dim, causal=causal) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.out = Conv(dim, out, causal=causal)
        nn.init.constant_(self.out.conv.bias, bias)

    def forward(self, x_KTD: Tensor, mask_KT: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_KTD = F.relu(norm(conv(x_KTD, mask_KT)))
        return self.out(x_KTD, mask_KT)

    def step(self, x_K1D: Tensor, state: State, level: int) -> Tensor:
        """One place of a level; the towers are shared by all levels, so each has a state of its own."""
        own = _part(state, (self, level))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_K1D = F.relu(norm(conv.step(x_K1D, own)))
        return self.out.step(x_K1D, own)


class Block(nn.Module):
    """Pre-norm local self-attention, its queries, keys and values from depth-wise convolutions, and an MLP. With
    ``stride=2`` the place of every second one comes out."""

    def __init__(self, dim: int, heads: int, window: int, *, stride: int, causal: bool, dropout: float):
        super().__init__()
        self.heads, self.window, self.stride, self.causal = heads, window, stride, causal
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mix = nn.ModuleList(Conv(dim, dim, stride=stride, groups=dim, causal=causal) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.into = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_KTD: Tensor, mask_KT: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm1(x_KTD)
        mask = mask_KT[:, :: self.stride]
        mixed = [mix(normed, mask_KT) for mix in self.mix]
        q, k, v = (into(norm(m)) for m, norm, into in zip(mixed, self.norms, self.into, strict=True))
        y = self.out(self._attend(q, k, v, self._sees(mask)))
        skip = x_KTD if self.stride == 1 else self._pooled(x_KTD, mask_KT)
        x = skip + self.dropout(y)
        return (x + self.dropout(self.mlp(self.norm2(x)))) * mask.unsqueeze(-1), mask

    def step(self, x_K1D: Tensor, state: State, counts: bool) -> Tensor | None:
        """One place; ``counts``: whether one comes out of it."""
        normed = self.norm1(x_K1D)
        mixed = [mix.step(normed, state) for mix in self.mix]
        pooled = x_K1D if self.stride == 1 else self._pooled_step(x_K1D, state)
        if not counts:
            return None
        q, k, v = (into(norm(m)) for m, norm, into in zip(mixed, self.norms, self.into, strict=True))
        for name, new in (("k", k), ("v", v)):
            kept = state.get((self, name))
            state[self, name] = (new if kept is None else torch.cat([kept, new], 1))[:, -self.window :]
        everything = torch.ones(len(q), 1, state[self, "k"].shape[1], dtype=torch.bool, device=q.device)
        x = pooled + self.out(self._attend(q, state[self, "k"], state[self, "v"], everything))
        return x + self.mlp(self.norm2(x))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
        split = [x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v)]
        return F.scaled_dot_product_attention(*split, attn_mask=sees.unsqueeze(1)).transpose(1, 2).flatten(2)

    def _sees(self, mask_KT: Tensor) -> Tensor:
        """bool [K, T, T]: the places around (or before) each one, that hold something; each sees itself."""
        place = torch.arange(mask_KT.shape[1], device=mask_KT.device)
        back = place.unsqueeze(1) - place
        near = (back >= 0) & (back < self.window) if self.causal else back.abs() <= self.window // 2
        return near & mask_KT.unsqueeze(1) | (back == 0)

    def _pooled(self, x_KTD: Tensor, mask_KT: Tensor) -> Tensor:
        x = x_KTD.masked_fill(~mask_KT.unsqueeze(-1), -torch.inf).transpose(1, 2)
        x = F.pad(x, (2, 0) if self.causal else (1, 1), value=-torch.inf)
        pooled = F.max_pool1d(x, 3, self.stride).transpose(1, 2)[:, : -(-x_KTD.shape[1] // self.stride)]
        return pooled.masked_fill(~mask_KT[:, :: self.stride].unsqueeze(-1), 0.0)

    def _pooled_step(self, x_K1D: Tensor, state: State) -> Tensor:
        before = state.get((self, "pool"))
        window = x_K1D if before is None else torch.cat([before, x_K1D], 1)
        state[self, "pool"] = window[:, -2:]
        return window.amax(1, keepdim=True)


class Pyramid(nn.Module):
    """Embedding convolutions, a stem at the full rate, and a block for each further level: the levels' features.

    look_ahead: None: all is seen, in both directions. Else the causal form, whose points stand so many frames before
    the last one that they see.
    """

    def __init__(
        self, into: int, dim: int, *, levels: int, stem: int, heads: int, window: int, dropout: float,
        look_ahead: int | None,
    ):  # fmt: skip
        super().__init__()
        self.levels, self.look_ahead = levels, look_ahead
        causal = look_ahead is not None
        self.embed = nn.ModuleList(Conv(into if i == 0 else dim, dim, causal=causal) for i in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        how = {"causal": causal, "dropout": dropout}
        self.stem = nn.ModuleList(Block(dim, heads, window, stride=1, **how) for _ in range(stem))
        self.branch = nn.ModuleList(Block(dim, heads, window, stride=2, **how) for _ in range(levels - 1))
        self.level_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(levels))

    @property
    def largest(self) -> int:
        """The stride of the highest level."""
        return 2 ** (self.levels - 1)

    def forward(self, x_KTD: Tensor, mask_KT: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(features, mask) of each level. There are ``look_ahead`` places of nothing after each row's last frame, and T
        is filled up to a multiple of the largest stride."""
        x, mask = self.filled(x_KTD, mask_KT)
        for conv, norm in zip(self.embed, self.norms, strict=True):
            x = F.relu(norm(conv(x, mask))) * mask.unsqueeze(-1)
        for block in self.stem:
            x, mask = block(x, mask)
        found = [(self.level_norms[0](x), mask)]
        for block, norm in zip(self.branch, self.level_norms[1:], strict=True):
            x, mask = block(x, mask)
            found.append((norm(x), mask))
        return found

    def filled(self, x_KTD: Tensor, mask_KT: Tensor) -> tuple[Tensor, Tensor]:
        """What the pass reads: frames, then nothing; and which places there are."""
        length = self.length(mask_KT.shape[1])
        x = F.pad(x_KTD * mask_KT.unsqueeze(-1), (0, 0, 0, length - mask_KT.shape[1]))
        place = torch.arange(length, device=mask_KT.device)
        return x, place < (mask_KT.sum(1, keepdim=True) + (self.look_ahead or 0))

    def length(self, frames: int) -> int:
        """Places of a pass over so many frames."""
        places = frames + (self.look_ahead or 0)
        return places + -places % self.largest

    def step(self, x_K1D: Tensor, state: State, number: int) -> list[tuple[int, Tensor]]:
        """The features that place ``number`` (from 0) of a stream completes: (level, [K, 1, D]), from the lowest."""
        for conv, norm in zip(self.embed, self.norms, strict=True):
            x_K1D = F.relu(norm(conv.step(x_K1D, state)))
        for block in self.stem:
            x_K1D = block.step(x_K1D, state, True)
        found = [(0, self.level_norms[0](x_K1D))]
        for level, block in enumerate(self.branch, start=1):
            counts = number % 2**level == 0
            y = block.step(x_K1D, state, counts)
            if y is None:
                break
            x_K1D = y
            found.append((level, self.level_norms[level](x_K1D)))
        return found


def _part(state: State, name: Any) -> State:
    """A state inside a state."""
    return state.setdefault(name, {})  # type: ignore[arg-type,return-value]
