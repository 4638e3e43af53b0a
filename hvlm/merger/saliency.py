"""Saliency: what stands out stays, the rest joins it."""

from __future__ import annotations

from typing import Any

from hvlm.config.ranges import Share
from hvlm.merger._base import Choice, MergerRoom
from hvlm.merger._scores import NEEDS_ENCODER, Saliency, View, saliency_of
from hvlm.merging import best_of_clip, roots_in_frame


class SaliencyMerge(MergerRoom):
    """The patches with the highest saliency of the clip stay, at least one of every frame; each other one joins the
    most similar of those in its frame.

    saliency: ``attention``, of CLS in the encoder's last layer (without CLS: what a patch receives from the others);
    ``sharpness``, of a patch's own attention (vid-TLDR); ``spectral``, spectral residual of the pixels, model-free;
    ``distance``, 1 - cosine to the clip's mean patch.
    """

    across = False

    def __init__(self, keep: Share = 0.25, saliency: Saliency = "attention", **room: Any):
        super().__init__(keep, **room)
        self.saliency = saliency
        self.wants_saliency = saliency if saliency in NEEDS_ENCODER else None

    def choose(self, view: View) -> Choice:
        kept = best_of_clip(saliency_of(view, self.saliency), view.mask_BT, view.total_B, view.least)
        return Choice(roots_in_frame(view.x_BTND, kept))
