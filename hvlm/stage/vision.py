"""Stage 0: an encoder that starts from nothing first learns to say what stands where.

Every patch token is asked, for each of its ``cells`` x ``cells`` parts, which shape and which colour is there. Shape has a
background class, weighted down, for most of a frame is background; colour is asked only where there is something.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.stage._base import Stage
from hvlm.types import Batch


class VisionPretraining(Stage):
    """Mean over cells of w · CE(shape) + [not background] · CE(colour), w = ``background_weight`` for background cells.

    labels: {name: number of classes}, from the dataset; "shape" counts the background as class 0. The heads live in the
    stage, not in the encoder, and stay behind when the next stage starts.
    """

    view = "patches"

    def __init__(self, *, labels: dict[str, int], background_weight: float = 0.15, cells: int = 2, **stage: Any):
        super().__init__(**stage)
        self.labels, self.cells, self.background_weight = dict(labels), cells, background_weight
        self.patch_heads = nn.Linear(self.model.vision.dim, cells**2 * sum(labels.values()))

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return super().parts() | {"heads": list(self.patch_heads.named_parameters("patch_heads"))}

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        tokens = self.model.see(batch).tokens
        b, t = batch.frame_mask_BT.shape
        rows, cols = self.model.vision.grid(*batch.frames_BTCHW.shape[-2:])
        logits = self.patch_heads(tokens.x_BSD).float()
        logits = to_cells(logits, (b, t, rows, cols), self.cells)
        shape, colour = logits.split(list(self.labels.values()), -1)
        want_shape, want_colour = batch.labels["shape"], batch.labels["colour"]
        seen = batch.frame_mask_BT[:, :, None, None].expand_as(want_shape)
        thing = seen & (want_shape > 0)
        weight = torch.where(thing, 1.0, self.background_weight) * seen
        shape_loss = F.cross_entropy(shape.flatten(0, 3), want_shape.flatten(), reduction="none")
        total = (shape_loss * weight.flatten()).sum()
        total = total + F.cross_entropy(colour[thing], want_colour[thing], reduction="sum")
        right = (shape.argmax(-1) == want_shape) & (colour.argmax(-1) == want_colour) & thing
        count = weight.sum()
        return total, count, {"object_accuracy": right.sum() / thing.sum().clamp(min=1) * count}


def to_cells(x_BSD: Tensor, grid: tuple[int, int, int, int], cells: int) -> Tensor:
    """[B, T·rows·cols, cells²·C] -> [B, T, rows·cells, cols·cells, C]."""
    b, t, rows, cols = grid
    x = x_BSD.reshape(b, t, rows, cols, cells, cells, -1).permute(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(b, t, rows * cells, cols * cells, -1)
