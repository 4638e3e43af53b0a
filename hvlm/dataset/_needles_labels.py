"""What stands in each patch of a made frame, for stage 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from hvlm.data.sample_fields import FieldError, as_list, as_number, as_object, as_whole
from hvlm.dataset._needles_scene import COLOURS, DOMAINS, FLASHES, SHAPES

# Class names of the per-patch labels, by id.
LABELS = {"shape": ("background", *SHAPES, *FLASHES), "colour": COLOURS, "domain": DOMAINS}
IGNORE = -100  # the colour of a patch with nothing on it


def patch_labels(sample: dict, times: np.ndarray, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """What stands in each cell of a (rows, columns) grid: {"shape", "colour", "domain"}, each int64 [T, rows, columns].

    The ids are positions in ``LABELS``; where there is nothing, shape is 0 and colour ``IGNORE``. A cell belongs to
    a thing if its centre lies within the thing's radius, or the thing's centre in the cell; what is drawn later wins.
    ``times`` [T]: seconds of the sampled frames. Raises FieldError for a malformed scene.
    """
    if "objects" not in sample:
        raise FieldError("no objects in it; per-patch labels need dataset=needles")
    count, size = (as_whole(sample.get(name), name) for name in ("frames", "size"))
    if count < 1 or size < 1 or "fps" not in sample:
        raise FieldError(f"frames is {count}, size is {size}, fps is {sample.get('fps')}: expected numbers above 0")
    objects, flashes = _objects(sample["objects"], count), _flashes(sample.get("flashes", []))
    indices = np.clip(np.rint(times * sample["fps"]).astype(int), 0, count - 1)
    rows, cols = grid
    cell_h, cell_w = size / rows, size / cols
    centre_y = (np.arange(rows)[:, None] + 0.5) * cell_h
    centre_x = (np.arange(cols)[None, :] + 0.5) * cell_w
    shape = np.zeros((len(indices), rows, cols), np.int64)
    colour = np.full_like(shape, IGNORE)
    for t, frame in enumerate(indices):
        things = [
            (shape_id, colour_id, *track[frame - first])
            for shape_id, colour_id, first, track in objects
            if first <= frame < first + len(track)
        ]
        things += [thing for at, *thing in flashes if at == frame]
        for shape_id, colour_id, x, y, r in things:
            cover = (centre_x - x) ** 2 + (centre_y - y) ** 2 <= r * r
            cover[int(np.clip(y / cell_h, 0, rows - 1)), int(np.clip(x / cell_w, 0, cols - 1))] = True
            shape[t, cover] = shape_id
            colour[t, cover] = colour_id
    domain = np.full_like(shape, _class("domain", sample["domain"], "domain"))
    return {"shape": shape, "colour": colour, "domain": domain}


def _objects(value: Any, frames: int) -> list[tuple[int, int, int, list[list[float]]]]:
    """(shape, colour, first frame, [x, y, r] of every frame in which it is in sight) of each moving thing."""
    out = []
    for i, item in enumerate(as_list(value, "objects")):
        where = f"objects[{i}]"
        thing = as_object(item, where)
        track = [as_list(place, f"{where}.track") for place in as_list(thing.get("track"), f"{where}.track")]
        first = as_whole(thing.get("first", 0), f"{where}.first")
        fits = first >= 0 and (first + len(track) <= frames if "first" in thing else len(track) == frames)
        if not fits or any(len(place) != 3 for place in track):
            which = (
                f"those of the {frames} frames from {first} on" if "first" in thing else f"each of the {frames} frames"
            )
            raise FieldError(f"{where}.track: expected [x, y, r] for {which}")
        track = [[as_number(number, f"{where}.track") for number in place] for place in track]
        out.append((*_shape_and_colour(thing, where), first, track))
    return out


def _flashes(value: Any) -> list[tuple[int, int, int, float, float, float]]:
    """(frame, shape, colour, x, y, r) of each."""
    out = []
    for i, item in enumerate(as_list(value, "flashes")):
        where = f"flashes[{i}]"
        thing = as_object(item, where)
        place = (as_number(thing.get(name), f"{where}.{name}") for name in ("x", "y", "r"))
        out.append((as_whole(thing.get("frame"), f"{where}.frame"), *_shape_and_colour(thing, where), *place))
    return out


def _shape_and_colour(thing: dict[str, Any], where: str) -> tuple[int, int]:
    return tuple(_class(name, thing.get(name), f"{where}.{name}") for name in ("shape", "colour"))


def _class(kind: str, name: Any, where: str) -> int:
    if name not in LABELS[kind]:
        raise FieldError(f"{where} is none of {', '.join(LABELS[kind])}")
    return LABELS[kind].index(name)
