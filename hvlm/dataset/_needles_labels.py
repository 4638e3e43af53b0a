"""What stands in each patch of a made frame, for stage 0."""

from __future__ import annotations

import numpy as np

from hvlm.dataset._needles_scene import COLOURS, DOMAINS, FLASHES, SHAPES
from hvlm.errors import UserError

# Class names of the per-patch labels, by id.
LABELS = {"shape": ("background", *SHAPES, *FLASHES), "colour": COLOURS, "domain": DOMAINS}
IGNORE = -100  # the colour of a patch with nothing on it


def patch_labels(sample: dict, times: np.ndarray, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """What stands in each cell of a (rows, columns) grid: {"shape", "colour", "domain"}, each int64 [T, rows, columns].

    The ids are positions in ``LABELS``; where there is nothing, shape is 0 and colour ``IGNORE``. A cell belongs to
    a thing if its centre lies within the thing's radius, or the thing's centre in the cell; what is drawn later wins.
    ``times`` [T]: seconds of the sampled frames.
    """
    if "objects" not in sample:
        raise UserError(f"{sample['key']}: no objects in its JSON; per-patch labels need dataset=needles")
    indices = np.minimum(np.rint(times * sample["fps"]).astype(int), sample["frames"] - 1)
    rows, cols = grid
    cell_h, cell_w = sample["size"] / rows, sample["size"] / cols
    centre_y = (np.arange(rows)[:, None] + 0.5) * cell_h
    centre_x = (np.arange(cols)[None, :] + 0.5) * cell_w
    shape = np.zeros((len(indices), rows, cols), np.int64)
    colour = np.full_like(shape, IGNORE)
    for t, frame in enumerate(indices):
        things = [(o["shape"], o["colour"], *o["track"][frame]) for o in sample["objects"]]
        things += [(f["shape"], f["colour"], f["x"], f["y"], f["r"]) for f in sample["flashes"] if f["frame"] == frame]
        for shape_name, colour_name, x, y, r in things:
            cover = (centre_x - x) ** 2 + (centre_y - y) ** 2 <= r * r
            cover[int(np.clip(y / cell_h, 0, rows - 1)), int(np.clip(x / cell_w, 0, cols - 1))] = True
            shape[t, cover] = LABELS["shape"].index(shape_name)
            colour[t, cover] = LABELS["colour"].index(colour_name)
    domain = np.full_like(shape, LABELS["domain"].index(sample["domain"]))
    return {"shape": shape, "colour": colour, "domain": domain}
