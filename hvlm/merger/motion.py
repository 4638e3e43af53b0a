"""Motion: what moves keeps its patches, what stands still shares them."""

from __future__ import annotations

from typing import Any

from hvlm.config.ranges import Share
from hvlm.merger._base import Choice, MergerRoom
from hvlm.merger._scores import Motion, View, distance_from_mean, motion_of
from hvlm.merging import best_of_clip, roots_in_frame

_STILL = 1e-3  # of the scale of a saliency: below it, nothing moves


class MotionAwareTokenMerge(MergerRoom):
    """The patches that move most stay, at least one of every frame; each other one joins the most similar of those in
    its frame. So the budget follows the motion: a frame in which much moves has many tokens, a still one has few.

    motion: ``flow``, optical flow with the camera's own motion taken off, computed where the data is read
    (``hvlm.data.optical_flow``); ``features``, how far the encoder's features are from what usually is at their place.
    Where nothing moves, a patch's distance from the clip's mean decides.
    """

    across = False

    def __init__(self, keep: Share = 0.25, motion: Motion = "features", **room: Any):
        super().__init__(keep, **room)
        self.motion, self.wants_flow = motion, motion == "flow"

    def choose(self, view: View) -> Choice:
        motion = motion_of(view, self.motion)
        highest = motion.amax((1, 2), keepdim=True).clamp(min=1e-12)
        score = motion / highest + _STILL * distance_from_mean(view.x_BTND, view.mask_BT)
        kept = best_of_clip(score, view.mask_BT, view.total_B, view.least)
        return Choice(roots_in_frame(view.x_BTND, kept))
