"""A pyramid of visual tokens: means over cells of place and time, the coarsest first."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hvlm.fusion._local import LocalFusion
from hvlm.types import Tokens


class Level(NamedTuple):
    """Cells of tokens. cell_KV: the one that each token lies in. share_KV: how much of its cell's mean each token is.
    mask_KC: which cells have a token."""

    cell_KV: Tensor
    share_KV: Tensor
    mask_KC: Tensor

    def mean(self, x_KVD: Tensor) -> Tensor:
        """Of states of the tokens, the cells' means: [K, C, D]."""
        cells = x_KVD.new_zeros(*self.mask_KC.shape, x_KVD.shape[-1])
        return cells.scatter_add(1, self._wide(x_KVD), x_KVD * self.share_KV.unsqueeze(-1).to(x_KVD.dtype))

    def at_tokens(self, x_KCD: Tensor) -> Tensor:
        """What each token's cell says: [K, V, D]."""
        return x_KCD.gather(1, self._wide(x_KCD))

    def _wide(self, x: Tensor) -> Tensor:
        return self.cell_KV.unsqueeze(-1).expand(-1, -1, x.shape[-1])


def level(tokens: Tokens, side: int, frames: int) -> Level:
    """``side`` x ``side`` cells of the frame and ``frames`` neighbouring frames; tokens count by their sizes.

    Tokens are known by their place and time, so that merged ones, those of any grid and a single one a frame all have
    their cells.
    """
    frame_KV = tokens.frame_BS.masked_fill(~tokens.mask_BS, 0) // frames
    y, x = (tokens.yx_BS2 * side).long().clamp(0, side - 1).unbind(-1)
    cell_KV = (frame_KV * side + y) * side + x
    cells = (int(frame_KV.max()) + 1) * side**2
    weight_KV = tokens.size_BS * tokens.mask_BS
    total_KC = weight_KV.new_zeros(len(cell_KV), cells).scatter_add(1, cell_KV, weight_KV)
    share_KV = weight_KV / total_KC.gather(1, cell_KV).clamp(min=1e-6)
    return Level(cell_KV, share_KV, total_KC > 0)


def coarse_to_fine(tokens: Tokens, stages: int) -> list[Level]:
    """The ``stages`` - 1 levels above the tokens themselves. The coarsest has one cell of 2^(stages - 1) frames, each
    further one twice the sides and half the frames."""
    return [level(tokens, 2**i, 2 ** (stages - 1 - i)) for i in range(stages - 1)]


class CoarseToFine(nn.Module):
    """A local fusion for each level, the last of which are the tokens themselves: (visual [K, V, D], text [K, P, D]).

    The text carries what it has learned from level to level; what a level's cells have learned is added to the tokens
    in them, times a learned factor, before the next level. local: arguments of ``LocalFusion``.
    """

    def __init__(self, dim: int, num_heads: int, stages: int, text_side: bool = True, **local: Any):
        super().__init__()
        self.stages = nn.ModuleList(
            LocalFusion(dim, num_heads, text_side=text_side or i + 1 < stages, **local) for i in range(stages)
        )
        if stages > 1:
            self.carry = nn.Parameter(torch.ones(stages - 1))

    def forward(self, tokens: Tokens, text_KPD: Tensor, mask_KP: Tensor) -> tuple[Tensor, Tensor]:
        v, t = tokens.x_BSD, text_KPD
        *coarse, fine = self.stages
        for i, (stage, level) in enumerate(zip(coarse, coarse_to_fine(tokens, len(self.stages)), strict=True)):
            known = level.mean(v)
            learned, t = stage(known, t, level.mask_KC, mask_KP)
            v = v + self.carry[i] * level.at_tokens(learned - known)
        return fine(v, t, tokens.mask_BS, mask_KP)
