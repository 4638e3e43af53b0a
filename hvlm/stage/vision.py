"""Stage 0: an encoder that starts from nothing first learns to say what stands where.

Every patch token is asked, for each of its ``cells`` x ``cells`` parts, which shape and which colour is there, and in
what kind of video it is. Shape has a background class, weighted down, for most of a frame is background; colour is
asked only where there is something; the domain keeps the background's tokens from all becoming alike.

The gaze practises too: one learned query per shape ("the ring") and per colour ("the red one") reads every frame, and
from what it brings back the stage must tell whether the thing is there, its shape, its colour and its place. Without
that, a query that a language model writes later starts out reading the same average everywhere (z varies less between
queries than between frames).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.config.ranges import NonNegativeFloat, PositiveInt
from hvlm.data.views import PatchLabels
from hvlm.stage._base import Losses, Mean, Stage
from hvlm.types import Batch, Wants


class VisionPretraining(Stage):
    """Mean over cells of w · CE(shape) + [not background] · CE(colour) + ``domain_weight`` · w · CE(domain), where w is
    ``background_weight`` for background cells and 1 elsewhere. ``rows_per_clip`` neighbouring frames of each clip.

    labels: {name: number of classes}, from the dataset; "shape" counts the background as class 0. The heads live in the
    stage, not in the encoder, and stay behind when the next stage starts.

    Plus ``gaze_weight`` times, mean over frames and kinds: CE(there or not) + [there] · (CE(shape) + CE(colour) +
    ``place_weight`` · (CE(row) + CE(column))), row and column of the thing's middle among the frame's cells. As
    classes, not as two numbers: a regressed place is a faint direction of z that no later stage finds. The gaze's own
    projections count as the part ``connector``. ``depth``: how its queries read, as in the connector that comes later.
    """

    view = PatchLabels()

    def __init__(
        self,
        *,
        labels: dict[str, int],
        background_weight: NonNegativeFloat = 0.15,
        domain_weight: NonNegativeFloat = 0.3,
        gaze_weight: NonNegativeFloat = 1.0,
        place_weight: NonNegativeFloat = 1.0,
        depth: Literal["deep", "shallow"] = "deep",
        cells: PositiveInt = 2,
        **stage: Any,
    ):
        super().__init__(**stage)
        self.labels, self.cells = dict(labels), cells
        self.background_weight, self.domain_weight, self.gaze_weight = background_weight, domain_weight, gaze_weight
        self.place_weight, self.shallow = place_weight, depth == "shallow"
        self.patch_heads = nn.Linear(self.model.vision.dim, cells**2 * sum(labels.values()))
        self.sides = [cells * n for n in self.model.vision.grid(*[self.model.vision.image_size] * 2)]
        self.gaze_widths = [2, labels["shape"], labels["colour"], *self.sides]  # there or not, shape, colour, place
        self.kinds = nn.Embedding(labels["shape"] - 1 + labels["colour"], self.model.vision.query_dim)
        self.gaze_heads = nn.Linear(self.model.vision.dim, sum(self.gaze_widths))

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return super().parts() | {"heads": [(n, p) for n, p in self.named_parameters() if not n.startswith("model.")]}

    def units(self, batch: Batch) -> dict[str, float]:
        counts = {"cells": self._weight(batch)[0].sum()}
        if self.gaze_weight:
            there = self._kinds(batch)[2]
            counts |= {"gaze_asked": batch.frame_mask_BT.sum() * there.shape[1], "gaze_there": there.sum()}
        return {name: float(count) for name, count in counts.items()}

    def losses(self, batch: Batch) -> Losses:
        if self.model.features is not None:
            tokens, kv, *_ = self.model.features.encode(batch)
        else:
            frames = (batch.frames_BTCHW, batch.frame_time_BT, batch.frame_mask_BT)
            tokens, kv, *_ = self.model.vision.encode(*frames, Wants(kv=True))
        b, t = batch.frame_mask_BT.shape
        rows, cols = self.model.vision.grid(*batch.frames_BTCHW.shape[-2:])
        logits = self.patch_heads(tokens.x_BSD).float()
        logits = to_cells(logits, (b, t, rows, cols), self.cells)
        shape, colour, domain = logits.split([self.labels[name] for name in ("shape", "colour", "domain")], -1)
        want_shape, want_colour = batch.labels["shape"], batch.labels["colour"]
        weight, thing = self._weight(batch)
        shape_loss = F.cross_entropy(shape.flatten(0, 3), want_shape.flatten(), reduction="none")
        total = (shape_loss * weight.flatten()).sum()
        total = total + F.cross_entropy(colour[thing], want_colour[thing], reduction="sum")
        domain_loss = F.cross_entropy(domain.flatten(0, 3), batch.labels["domain"].flatten(), reduction="none")
        total = total + self.domain_weight * (domain_loss * weight.flatten()).sum()
        right = (shape.argmax(-1) == want_shape) & (colour.argmax(-1) == want_colour) & thing
        found = Losses({"cells": Mean(total, weight.sum())}, {"object_accuracy": Mean(right.sum(), thing.sum())})
        if self.gaze_weight:
            gaze = self._gaze_losses(batch, kv)
            found = Losses(found.terms | gaze.terms, found.measures | gaze.measures)
        return found

    def _weight(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(weight of every cell, 0 in padded frames; where there is a thing), each [B, T, rows, columns]."""
        want_shape = batch.labels["shape"]
        seen = batch.frame_mask_BT[:, :, None, None].expand_as(want_shape)
        thing = seen & (want_shape > 0)
        return torch.where(thing, 1.0, self.background_weight) * seen, thing

    def _kinds(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(cells of each kind [frames, cells, kinds], each cell's shape [frames, cells, classes], whether the kind is
        in the frame at all [frames, kinds], each cell's colour)."""
        shape, colour = batch.labels["shape"].flatten(0, 1), batch.labels["colour"].flatten(0, 1)
        by_shape = F.one_hot(shape.clamp(min=0), self.labels["shape"]).flatten(1, 2).float()
        by_colour = F.one_hot(colour.clamp(min=0), self.labels["colour"]).flatten(1, 2).float()
        by_colour = by_colour * (shape > 0).flatten(1).unsqueeze(-1)
        cells = torch.cat([by_shape[..., 1:], by_colour], -1)
        return cells, by_shape, cells.any(1), by_colour

    def _gaze_losses(self, batch: Batch, kv: Any) -> Losses:
        """Terms over all frames and kinds, and over the things that are there; of these the share whose shape and
        colour are right."""
        cells, by_shape, there, by_colour = self._kinds(batch)
        z, _ = self.model.vision.gaze(self.kinds.weight.expand(len(there), -1, -1), kv, shallow=self.shallow)
        answers = self.gaze_heads(z).float().split(self.gaze_widths, -1)
        there_logits, shape_logits, colour_logits, *place_logits = answers

        # What most of a kind's cells say: a colour may stand on an object and on a flash, and the object is larger.
        want_shape = torch.einsum("fnk,fnc->fkc", cells, by_shape).argmax(-1)
        want_colour = torch.einsum("fnk,fnc->fkc", cells, by_colour).argmax(-1)
        by_place = cells.unflatten(1, self.sides)  # [frames, rows, columns, kinds]
        places = [middle(by_place.sum(2)), middle(by_place.sum(1))]

        seen = batch.frame_mask_BT.flatten()
        asked = F.cross_entropy(there_logits[seen].flatten(0, 1), there[seen].flatten().long(), reduction="sum")
        things = F.cross_entropy(shape_logits[there], want_shape[there], reduction="sum")
        things = things + F.cross_entropy(colour_logits[there], want_colour[there], reduction="sum")
        for logits, want in zip(place_logits, places, strict=True):
            things = things + self.place_weight * F.cross_entropy(logits[there], want[there], reduction="sum")
        hits = (shape_logits.argmax(-1) == want_shape) & (colour_logits.argmax(-1) == want_colour) & there
        terms = {
            "gaze_asked": Mean(self.gaze_weight * asked, seen.sum() * there.shape[1]),
            "gaze_there": Mean(self.gaze_weight * things, there.sum()),
        }
        return Losses(terms, {"gaze_accuracy": Mean(hits.sum(), there.sum())})


def middle(count_FNK: Tensor) -> Tensor:
    """Row (or column) of each thing's centre of mass, int64 [F, K], from how many of its cells each of N rows holds."""
    place = torch.arange(count_FNK.shape[1], device=count_FNK.device).view(1, -1, 1)
    return ((count_FNK * place).sum(1) / count_FNK.sum(1).clamp(min=1)).round().long()


def to_cells(x_BSD: Tensor, grid: tuple[int, int, int, int], cells: int) -> Tensor:
    """[B, T·rows·cols, cells²·C] -> [B, T, rows·cells, cols·cells, C]."""
    b, t, rows, cols = grid
    x = x_BSD.reshape(b, t, rows, cols, cells, cells, -1).permute(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(b, t, rows * cells, cols * cells, -1)
