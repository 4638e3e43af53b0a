"""What mergers judge patches by: what the encoder, the reader or their own features say of them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Saliency = Literal["attention", "sharpness", "spectral", "distance"]
Motion = Literal["flow", "features"]
NEEDS_ENCODER = ("attention", "sharpness", "spectral")


class View(NamedTuple):
    """A clip's patches frame by frame, and how many of them may stay.

    x_BTND float32, mask_BT (valid frames), saliency_BTN and motion_BTN where the merger asked for them, total_B int64
    (exact), least: how many of every frame at least.
    """

    x_BTND: Tensor
    mask_BT: Tensor
    saliency_BTN: Tensor | None
    motion_BTN: Tensor | None
    total_B: Tensor
    least: int

    @property
    def valid_BS(self) -> Tensor:
        return self.mask_BT.repeat_interleave(self.x_BTND.shape[2], 1)

    def even_BT(self) -> Tensor:
        """The budget shared evenly, what does not divide going to evenly spaced frames: int64 [B, T]."""
        index = self.mask_BT.cumsum(1)  # 1 … frames
        total, frames = self.total_B.unsqueeze(1), self.mask_BT.sum(1, keepdim=True).clamp(min=1)
        return (index * total // frames - (index - 1) * total // frames) * self.mask_BT


def saliency_of(view: View, kind: Saliency) -> Tensor:
    """[B, T, N]. ValueError where the patches came without the scores that are asked for."""
    if kind == "distance":
        return distance_from_mean(view.x_BTND, view.mask_BT)
    if view.saliency_BTN is None:
        raise ValueError(f"merger.saliency={kind}: the patches carry no saliency; encode with Wants(saliency={kind!r})")
    return view.saliency_BTN


def distance_from_mean(x_BTND: Tensor, mask_BT: Tensor) -> Tensor:
    """1 - cosine of every patch to the mean direction of its clip."""
    unit = F.normalize(x_BTND, dim=-1) * mask_BT[..., None, None]
    mean = F.normalize(unit.sum((1, 2)), dim=-1)
    return (1 - unit @ mean[:, None, :, None]).squeeze(-1)


def motion_of(view: View, kind: Motion) -> Tensor:
    """[B, T, N], not negative. ValueError where the patches came without the flow that is asked for."""
    if kind == "features":
        return feature_motion(view.x_BTND, view.mask_BT)
    if view.motion_BTN is None:
        raise ValueError("merger.motion=flow: the batch carries no motion (motion_BTYX); use merger.motion=features")
    return view.motion_BTN


def feature_motion(x_BTND: Tensor, mask_BT: Tensor, window: int = 8) -> Tensor:
    """How unlike a patch is what mostly is at its place: 1 - the median cosine to its place in ``window`` frames
    around.

    [B, T, N], not negative. What passes by or flashes stands out in the frames that show it and not in those around
    them, and a background does not when it comes back into sight. What the whole frame has in common (a moving
    camera) is taken off as its lower quartile.
    """
    b, t, n, d = x_BTND.shape
    unit = F.normalize(x_BTND, dim=-1)
    frames = mask_BT.sum(1, keepdim=True)
    # The window moves inwards at both ends of the clip.
    now = torch.arange(t, device=mask_BT.device).expand(b, t)
    start = torch.minimum(now - window // 2, frames - window).clamp(min=0)
    alike = []
    for i in range(min(window, t)):
        other = start + i
        cosine = (unit * unit.gather(1, other.clamp(max=t - 1)[..., None, None].expand(-1, -1, n, d))).sum(-1)
        alike.append(cosine.masked_fill((other >= frames).unsqueeze(-1), torch.nan))
    # torch's median is the lower one of two; of likenesses the higher: half the window may differ.
    differs = (1 + (-torch.stack(alike)).nanmedian(0).values).nan_to_num(0.0)
    differs = (differs - differs.quantile(0.25, dim=-1, keepdim=True)).clamp(min=0)
    return differs * mask_BT.unsqueeze(-1)


def mean_one(score_BTN: Tensor, mask_BT: Tensor) -> Tensor:
    """Scores with mean 1 over the clip's valid patches; all 1 where there is nothing to tell them apart."""
    valid = mask_BT.unsqueeze(-1)
    count = valid.sum((1, 2), keepdim=True) * score_BTN.shape[2]
    mean = (score_BTN * valid).sum((1, 2), keepdim=True) / count.clamp(min=1)
    return torch.where(mean > 1e-9, score_BTN / mean.clamp(min=1e-9), 1.0)
