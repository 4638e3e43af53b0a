"""The one frame sampler. Everything that shows frames to a model asks here when to look.

Times are seconds from the start of the clip. Sampling is by timestamp, not by frame number, so that a clip with a
variable frame rate is sampled evenly in time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TOLERANCE = 1e-3  # seconds; float32 times and rounded container timestamps stay well below


def uniform_times(duration_s: float, num_frames: int) -> np.ndarray:
    """Midpoints of ``num_frames`` equal bins over ``duration_s`` seconds: float64 [num_frames]."""
    return (np.arange(num_frames) + 0.5) * (duration_s / num_frames)


def nearest_frames(pts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Index of the frame nearest in time to each of ``times``, ascending and without repeats.

    ``pts``: ascending presentation times of all frames. A tie goes to the earlier frame. With no more frames than times
    every frame is returned once, so that a short clip is never padded with copies.
    """
    if len(pts) <= len(times):
        return np.arange(len(pts))
    right = np.searchsorted(pts, times).clip(1, len(pts) - 1)
    left = right - 1
    nearer_left = times - pts[left] <= pts[right] - times + TOLERANCE
    return np.unique(np.where(nearer_left, left, right))


def shown_frames(pts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Index of the frame that is shown at each of ``times`` (the last one that has begun), ascending, each once."""
    return np.unique((np.searchsorted(pts, times, side="right") - 1).clip(0))


def is_shown(evidence: Sequence[Sequence[float]], times: np.ndarray) -> bool:
    """Whether every half-open interval [t0, t1) of ``evidence`` holds at least one of the sampled ``times``."""
    return all(np.any((times >= t0 - TOLERANCE) & (times < t1 - TOLERANCE)) for t0, t1 in evidence)
