"""Dense: every patch becomes a visual token (optionally after pixel shuffle), as in LLaVA and SmolVLM."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from hvlm.config.ranges import PositiveInt
from hvlm.connector._project import Projector
from hvlm.contracts import Connector, Language
from hvlm.types import Patches, Prefix, Tokens


class DensePatches(Connector):
    """v = P(x) per patch. ``shuffle=r`` first folds r × r neighbouring patches into one token of r² times the width."""

    alone = True

    def __init__(
        self,
        projector: Literal["linear", "mlp"] = "mlp",
        visual_scale: float = 1.0,
        standardise: bool = True,
        shuffle: PositiveInt = 1,
        *,
        dim: int,
        text_dim: int,
        grid: tuple[int, int],
    ):
        super().__init__()
        if grid[0] % shuffle or grid[1] % shuffle:
            raise ValueError(f"connector.shuffle={shuffle}: must divide the {grid[0]} x {grid[1]} patch grid")
        self.shuffle, self.grid = shuffle, grid
        self.needs_grid = f"connector.shuffle={shuffle}" if shuffle > 1 else ""
        self.project = Projector(dim * shuffle * shuffle, text_dim, projector, visual_scale, standardise)

    def forward(self, patches: Patches, language: Language, prefix: Prefix | None) -> tuple[Tokens, bool]:
        """Returns (all patch tokens [B, T·N, text_dim], False: rows are clips)."""
        tokens = patches.tokens
        if self.shuffle == 1:
            return tokens._replace(x_BSD=self.project(tokens.x_BSD, tokens.mask_BS)), False
        (b, t), (rows, cols), r = patches.frame_mask_BT.shape, self.grid, self.shuffle
        if tokens.x_BSD.shape[1] != t * rows * cols:
            raise ValueError(f"connector.shuffle={r} needs the whole {rows} x {cols} grid of a frame; use merger=none")
        folded = fold(tokens.x_BSD.reshape(b, t, rows, cols, -1), r)
        whole = Tokens.of_frames(folded, patches.frame_time_BT, patches.frame_mask_BT, (rows // r, cols // r))
        whole = whole._replace(x_BSD=self.project(whole.x_BSD, whole.mask_BS), size_BS=whole.size_BS * r * r)
        return whole, False


def fold(x_BTYXD: Tensor, r: int) -> Tensor:
    """Pixel shuffle: [B, T, Y, X, D] -> [B, T, Y/r · X/r, r²·D]."""
    b, t, y, x, d = x_BTYXD.shape
    x_BTYXD = x_BTYXD.reshape(b, t, y // r, r, x // r, r, d).permute(0, 1, 2, 4, 3, 5, 6)
    return x_BTYXD.reshape(b, t, (y // r) * (x // r), r * r * d)
