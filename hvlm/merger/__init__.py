"""Fewer visual tokens; the mergers can be used on their own: ``Patches -> Patches``."""

from hvlm.merger.adaptive import AdaptiveMerge
from hvlm.merger.motion import MotionAwareTokenMerge
from hvlm.merger.saliency import SaliencyMerge
from hvlm.merger.tome import ToMe

__all__ = ["AdaptiveMerge", "MotionAwareTokenMerge", "SaliencyMerge", "ToMe"]
