"""What stands where in a picture of easy-VQA, for stage 0: said by its questions, seen in its pixels.

The package publishes questions, not labels. The shape and the colour are what the answers to a picture's own questions
say or suppose ("what color is the triangle?"), so that nothing is known that the training split does not say. Where the
shape stands is where pixels differ from the corner's: every picture is one shape on a plain ground.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hvlm.data.sample_fields import FieldError, as_list, as_object, as_whole

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
LABELS = {"shape": ("background", *SHAPES), "colour": COLOURS, "domain": ("general",)}
IGNORE = -100  # the colour where nothing stands
SIDE = 16  # parts of a picture's side in which it is written down where the shape stands
APART = 60  # sum over the channels by which a pixel of the shape differs from the ground at least


def said(asked: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{"shape", "colour"} of a picture as its (question, answer)s have it; without what they leave open."""
    found: dict[str, str] = {}
    for question, answer in asked:
        words = set(question.rstrip("?").split())
        denies = bool({"no", "not"} & words)
        if answer not in ("yes", "no") or (answer == "yes") != denies:
            words.add(answer)
            for kind, names in (("shape", SHAPES), ("colour", COLOURS)):
                for name in words & set(names):
                    found[kind] = name
    return found


def where(pixels_HWC: np.ndarray) -> list[int]:
    """``SIDE`` rows of ``SIDE`` parts, each row a whole number whose bits say where more than half is the shape."""
    ground = pixels_HWC[0, 0].astype(int)
    thing = np.abs(pixels_HWC.astype(int) - ground).sum(-1) > APART
    rows, cols = (np.arange(SIDE + 1) * side // SIDE for side in thing.shape)
    parts = np.add.reduceat(np.add.reduceat(thing.astype(float), rows[:-1], 0), cols[:-1], 1)
    half = np.diff(rows)[:, None] * np.diff(cols)[None, :] / 2
    return [int("".join("1" if part else "0" for part in row), 2) for row in parts > half]


def patch_labels(sample: dict, times: np.ndarray, grid: tuple[int, int]) -> dict[str, np.ndarray] | None:
    """{"shape", "colour", "domain"} of each cell of a (rows, columns) grid, int64 [T, rows, columns], as places in
    ``LABELS``; the same for all ``times`` [T]. None: the sample does not say what is seen, as in the test split and
    controls.

    Raises:
        FieldError: it does, in another form.
    """
    if "seen" not in sample:
        return None
    seen = as_object(sample["seen"], "seen")
    bits = [as_whole(row, "seen.where") for row in as_list(seen.get("where"), "seen.where")]
    if len(bits) != SIDE or not all(0 <= row < 2**SIDE for row in bits):
        raise FieldError(f"seen.where: expected {SIDE} numbers of {SIDE} bits")
    for kind in ("shape", "colour"):
        if seen.get(kind) not in LABELS[kind][kind == "shape" :]:
            raise FieldError(f"seen.{kind} is none of {', '.join(LABELS[kind][kind == 'shape' :])}")
    fine = np.array([[row >> (SIDE - 1 - x) & 1 for x in range(SIDE)] for row in bits], bool)
    y, x = (((np.arange(n) + 0.5) * SIDE / n).astype(int) for n in grid)
    thing = np.broadcast_to(fine[y][:, x], (len(times), *grid))
    return {
        "shape": np.where(thing, LABELS["shape"].index(seen["shape"]), 0).astype(np.int64),
        "colour": np.where(thing, COLOURS.index(seen["colour"]), IGNORE).astype(np.int64),
        "domain": np.zeros((len(times), *grid), np.int64),
    }


def labels_of(asked: Iterable[tuple[str, str]], pixels_HWC: np.ndarray) -> dict[str, Any] | None:
    """The field ``seen`` of a sample; None where the questions leave shape or colour open."""
    found = said(asked)
    return found | {"where": where(pixels_HWC)} if len(found) == 2 else None
