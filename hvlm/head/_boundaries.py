"""The two ways to find a segment's ends from a moment, and the focal loss of its classes.

``DistanceEnds``: two distances (ActionFormer). ``TridentEnds``: an expectation over bins, for which start and end of
each class are looked for among the neighbouring moments (TriDet). Distances are in strides of the moment's level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.head._grid import Assigned, Points
from hvlm.head._pyramid import State, Tower

Where = tuple[Tensor, Tensor, Tensor]  # row, point and class of what is learned


def focal(logits: Tensor, right: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss (Lin et al. 2017) of every logit, for targets between 0 and 1."""
    p = logits.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits, right, reduction="none")
    missed = p * (1 - right) + (1 - p) * right
    return (alpha * right + (1 - alpha) * (1 - right)) * missed**gamma * cross


class Scale(nn.Module):
    """A learned factor for each level."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(levels))


def positives(want: Assigned) -> Where:
    """Every class that a point learns."""
    row, point, label = want.classes_KPC.nonzero(as_tuple=True)
    return row, point, label


class DistanceEnds(nn.Module):
    """Distances to start and end, the same for all classes."""

    def __init__(self, dim: int, levels: int, causal: bool) -> None:
        super().__init__()
        self.tower, self.scale = Tower(dim, 2, causal=causal), Scale(levels)

    def forward(self, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
        """float32 [K, P, 2] for the features and masks of all levels."""
        found = [self._scaled(self.tower(x, mask), level) for level, (x, mask) in enumerate(levels)]
        return torch.cat(found, 1)

    def step(self, x_K1D: Tensor, state: State, level: int) -> Tensor:
        return self._scaled(self.tower.step(x_K1D, state, level), level)

    def _scaled(self, x: Tensor, level: int) -> Tensor:
        return F.relu(x.float() * self.scale.factor[level])

    def of_positives(self, ends: Tensor, want: Assigned) -> tuple[Tensor, Tensor, Where]:
        """(distances found, those that are right, where), one for each positive point."""
        return ends[want.positive_KP], want.offsets_KP2[want.positive_KP], positives(want)

    def segments(self, ends: Tensor, points: Points) -> tuple[Tensor, Tensor]:
        """Start and end on the grid, [K, P] each."""
        return points.place_P - ends[..., 0] * points.stride_P, points.place_P + ends[..., 1] * points.stride_P


class TridentEnds(nn.Module):
    """Expected distances over ``bins`` + 1 bins: of each class the logits of a start (an end) at the neighbours on that
    side, and what the moment itself says of each distance, are added, and a softmax is taken. The towers of start and
    end learn from features that they do not change. Bins are later moments, too, so there are no steps."""

    def __init__(self, dim: int, classes: int, levels: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.start, self.end = Tower(dim, classes, causal=False), Tower(dim, classes, causal=False)
        self.tower, self.scale = Tower(dim, 2 * (bins + 1), causal=False), Scale(levels)

    def forward(self, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
        """float32 [K, P, 2, C] for the features and masks of all levels."""
        found = []
        for level, (x, mask) in enumerate(levels):
            own = F.relu(self.tower(x, mask).float() * self.scale.factor[level])
            left, right = own.unflatten(-1, (2, self.bins + 1)).unbind(-2)  # [K, T, bins + 1]
            start = self._neighbours(self.start(x.detach(), mask).float(), mask, before=True)
            end = self._neighbours(self.end(x.detach(), mask).float(), mask, before=False)
            far = torch.arange(self.bins + 1, device=x.device, dtype=torch.float32)
            to_start = ((start + left.unsqueeze(-1)).softmax(2) * far.flip(0)[:, None]).sum(2)
            to_end = ((end + right.unsqueeze(-1)).softmax(2) * far[:, None]).sum(2)
            found.append(torch.stack([to_start, to_end], 2))
        return torch.cat(found, 1)

    def _neighbours(self, x_KTC: Tensor, mask_KT: Tensor, before: bool) -> Tensor:
        """The ``bins`` places before (or after) each one and itself, zero where there is none: [K, T, bins + 1, C]."""
        x = F.pad(x_KTC * mask_KT.unsqueeze(-1), (0, 0, self.bins, 0) if before else (0, 0, 0, self.bins))
        return x.unfold(1, self.bins + 1, 1).transpose(2, 3)

    def of_positives(self, ends: Tensor, want: Assigned) -> tuple[Tensor, Tensor, Where]:
        """(distances found, those that are right, where), one for each class of each positive point."""
        where = positives(want)
        row, point, label = where
        return ends[row, point, :, label], want.offsets_KP2[row, point], where

    def segments(self, ends: Tensor, points: Points) -> tuple[Tensor, Tensor]:
        """Start and end on the grid, [K, P, C] each."""
        place, stride = points.place_P.unsqueeze(-1), points.stride_P.unsqueeze(-1)
        return place - ends[:, :, 0] * stride, place + ends[:, :, 1] * stride
