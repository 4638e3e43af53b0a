"""What a view asks of a sample, and what stands in each patch of a made frame."""

from __future__ import annotations

import numpy as np
from _clips import sample

from hvlm.data.views import Questions
from hvlm.dataset._needles_labels import LABELS, patch_labels


def test_only_what_the_frames_show_is_asked():
    info, rng = sample("k"), np.random.default_rng(0)
    every, few = np.arange(16) / 8, np.array([0.25, 1.25])
    assert [row.meta["question_id"] for row in Questions().rows(info, every, rng, None)] == ["q0", "q1", "q2"]
    assert [row.meta["question_id"] for row in Questions().rows(info, few, rng, None)] == ["q0", "q1"]
    row = Questions().rows(info, every, rng, None)[0]
    assert (
        row.meta["tries"][0]["options"][0] == "red" and row.meta["task"] == "shape" and row.meta["domain"] == "general"
    )


def test_patch_labels_follow_the_object_and_the_flash():
    clip = sample("k")
    labels = patch_labels(clip, np.array([0, 5]) / clip["fps"], (8, 8))
    circle, ring = LABELS["shape"].index("circle"), LABELS["shape"].index("ring")
    assert labels["shape"].shape == (2, 8, 8) and labels["shape"].dtype == np.int64
    assert labels["shape"][0, 2, 0] == circle and labels["shape"][0, 2, 5] == 0  # x 8, y 20
    assert labels["shape"][1, 2, 2] == circle  # x 23
    assert labels["shape"][1, 6, 6] == ring and not np.any(labels["shape"][0] == ring)  # smaller than a cell
    assert labels["colour"][1, 6, 6] == LABELS["colour"].index("blue")
    assert np.array_equal(labels["colour"] == -100, labels["shape"] == 0)
