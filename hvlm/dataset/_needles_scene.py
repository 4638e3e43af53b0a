"""What happens in a generated clip: objects and their paths, flashes, needles. Positions are pixels, x right, y down.

``Recipe`` is everything that decides the pixels and texts of a clip besides its number; ``plan`` draws one scene. All
draws are uniform and independent (of each other and of any question's wording), so that someone who cannot see the
clip is at chance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hvlm.data.sampling import nearest_frames, uniform_times

SETS = ("easy", "hard", "vnbench", "keys", "domains", "events", "pairs", "binding")
DOMAINS = ("general", "sports", "tutorials", "news")
SHAPES = ("circle", "square", "triangle", "diamond", "star", "plus")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
FLASHES = ("ring", "cross")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
WORDS = ("apple", "bread", "chair", "dance", "eagle", "flame", "grape", "horse")
WORDS += ("ivory", "jelly", "knife", "lemon", "mango", "night", "ocean", "piano")
VNBENCH = ("ret_edit1", "ret_insert1", "ret_insert2", "ord_edit1", "ord_insert1", "ord_insert2")
VNBENCH += ("cnt_edit1", "cnt_edit2", "cnt_insert1")
MAX_OBJECTS = 4
MAX_COUNT = 6  # of needles in a counting clip; not more than there are colours
ORDERED = 4  # needles in an ordering clip

# Pixels in a frame of 64; everything scales with the size.
OBJECT_RADII = {"easy": (8, 9, 10), "hard": (7, 8, 9)}
FLASH_RADIUS = {"easy": 6.0, "hard": 4.5}
EDIT_RADIUS = 8.0
KEY_RADIUS = 9.0
MIDDLE = 3.0  # no path runs along the middle lines, where "top" and "bottom" would be a matter of taste
JITTER = 0.5  # standard deviation


@dataclass(frozen=True)
class Recipe:
    """The settings of a set, see ``Needles`` for their meaning."""

    set: str
    size: int
    frames: int
    fps: float
    num_frames: int
    outline: bool
    displacement: float
    domains: tuple[str, ...]
    seed: int
    crf: int
    keys: int = 4
    turns: int = 6
    wording: str = "both"
    min_seconds: float = 30.0
    max_seconds: float = 120.0

    @property
    def scale(self) -> float:
        return self.size / 64

    @property
    def duration(self) -> float:
        return self.frames / self.fps

    @cached_property
    def shown(self) -> np.ndarray:
        """The encoded frames that the configured sampler returns, ascending: here flashes and needles are placed."""
        times = uniform_times(self.duration, self.num_frames)
        return np.unique(nearest_frames(np.arange(self.frames) / self.fps, times))

    def window(self, first: int, last: int | None = None) -> list[float]:
        """Half-open seconds in which a sampled frame shows encoded frames first..last (half a frame to either side)."""
        last = first if last is None else last
        start = max(0.0, (first - 0.5) / self.fps)
        return [round(start, 6), round(min(self.duration, (last + 0.5) / self.fps), 6)]

    @property
    def whole(self) -> list[float]:
        return [0.0, round(self.duration, 6)]


@dataclass
class Object:
    """A moving shape: ``track`` [frames, 2] integer centres, ``r`` radius without the outline."""

    shape: str
    colour: str
    direction: str
    r: float
    track: np.ndarray

    def quadrant(self, frame: int, size: int) -> str:
        x, y = self.track[frame]
        return f"{'top' if y < size / 2 else 'bottom'} {'left' if x < size / 2 else 'right'}"

    def stays(self, end: bool, size: int) -> int:
        """How many frames from the start (or up to the end) the object is in the quadrant of its first (last) frame."""
        order = range(len(self.track))[::-1] if end else range(len(self.track))
        names = [self.quadrant(i, size) for i in order]
        return next((i for i, name in enumerate(names) if name != names[0]), len(names))


@dataclass
class Flash:
    """A shape that is visible in exactly one encoded frame."""

    shape: str
    colour: str
    frame: int
    x: int
    y: int
    r: float


@dataclass
class Needle:
    """An insertion of the vnbench set, visible in encoded frames first..last.

    kind: "subtitle" (``word``), "plain" (a still: shape on an empty page), "scene" (a still: small shape on another
    picture of the haystack), "edit" (a shape drawn into the running video).
    """

    kind: str
    first: int
    last: int
    word: str = ""
    shape: str = ""
    colour: str = ""
    x: int = 0
    y: int = 0
    r: float = 0.0


@dataclass
class Scene:
    domain: str
    objects: list[Object] = field(default_factory=list)
    flashes: list[Flash] = field(default_factory=list)
    needles: list[Needle] = field(default_factory=list)
    task: str = ""  # the one vnbench task that this clip is made for


def max_displacement(recipe: Recipe) -> float:
    """The largest displacement (in frame widths) that keeps the biggest object inside the frame."""
    return 1 - 2 * (max(OBJECT_RADII["easy"]) + 2) / 64


def plan(rng: np.random.Generator, recipe: Recipe, index: int) -> Scene:
    """Draw the scene of clip number ``index``. The number itself decides only which vnbench task comes next."""
    domain = str(rng.choice(recipe.domains))
    if recipe.set == "vnbench":
        task = VNBENCH[index % len(VNBENCH)]
        return Scene(domain, needles=_needles(rng, recipe, task), task=task)
    if recipe.set == "keys":
        return Scene(domain, flashes=_keys(rng, recipe))
    count = 1 if recipe.set == "easy" else int(rng.integers(1, MAX_OBJECTS + 1))
    objects = _objects(rng, recipe, count)
    return Scene(domain, objects, _flashes(rng, recipe, objects))


# ---------------------------------------------------------------------------------------------- objects and flashes


def _objects(rng: np.random.Generator, recipe: Recipe, count: int) -> list[Object]:
    """Objects of distinct shapes and colours whose paths keep apart as far as a few dozen draws can find."""
    shapes = rng.permutation(SHAPES)[:count].tolist()
    colours = rng.permutation(COLOURS)[:count].tolist()
    placed: list[Object] = []
    for shape, colour in zip(shapes, colours, strict=True):
        # Direction and radius are drawn once and only the place is drawn again: they stay exactly uniform.
        direction = str(rng.choice(list(DIRECTIONS)))
        r = float(rng.choice(OBJECT_RADII[recipe.set])) * recipe.scale
        tracks = _tracks(rng, recipe, direction, r, 1 if not placed else 48)
        gaps = np.full(len(tracks), np.inf)  # smallest gap between rims over the clip, in pixels, per candidate
        for other in placed:
            distance = np.linalg.norm(tracks - other.track, axis=-1).min(-1)
            gaps = np.minimum(gaps, distance - r - other.r)
        placed.append(Object(shape, colour, direction, r, tracks[int(gaps.argmax())]))
    return placed


def _tracks(rng: np.random.Generator, recipe: Recipe, direction: str, r: float, count: int) -> np.ndarray:
    """``count`` random paths [count, frames, 2] in a direction that stay inside the frame."""
    size, margin, middle = recipe.size, r + 1, MIDDLE * recipe.scale
    travel = recipe.displacement * size
    along = rng.uniform(margin, size - margin - travel, (count, 1)) + np.linspace(0, travel, recipe.frames)
    reach = size / 2 - margin - middle  # on either side of the middle line
    across = rng.uniform(0, reach, (count, 1)) + np.where(rng.random((count, 1)) < 0.5, margin, size / 2 + middle)
    across = np.broadcast_to(across, along.shape)
    dx, dy = DIRECTIONS[direction]
    if dx + dy < 0:
        along = along[:, ::-1]
    tracks = np.stack([along, across] if dx else [across, along], -1)
    tracks = tracks + rng.normal(0, JITTER * recipe.scale, tracks.shape)
    return np.clip(np.round(tracks), np.ceil(margin), np.floor(size - 1 - margin)).astype(int)


def _flashes(rng: np.random.Generator, recipe: Recipe, objects: list[Object]) -> list[Flash]:
    """One ring and one cross, in time order: distinct colours and shown frames, beside the objects if possible."""
    frames = np.sort(rng.choice(recipe.shown, 2, replace=False)).tolist()
    colours = rng.permutation(COLOURS)[:2].tolist()
    r = FLASH_RADIUS[recipe.set] * recipe.scale
    flashes = []
    for shape, colour, frame in zip(rng.permutation(FLASHES).tolist(), colours, frames, strict=True):
        places = _places(rng, recipe, r, 24)
        gaps = np.full(len(places), np.inf)
        for thing in objects:
            gaps = np.minimum(gaps, np.linalg.norm(places - thing.track[frame], axis=-1) - r - thing.r)
        # The first place that is free, not the freest one: flashes must not all land in far corners.
        x, y = places[int((gaps > 0).argmax()) if (gaps > 0).any() else int(gaps.argmax())].tolist()
        flashes.append(Flash(shape, colour, frame, x, y, r))
    return flashes


def _keys(rng: np.random.Generator, recipe: Recipe) -> list[Flash]:
    """Flashes of distinct shapes in distinct shown frames, in time order. Each colour is drawn from all: one says
    nothing of another."""
    frames = np.sort(rng.choice(recipe.shown, recipe.keys, replace=False)).tolist()
    shapes, colours = rng.permutation(SHAPES)[: recipe.keys].tolist(), rng.choice(COLOURS, recipe.keys).tolist()
    r = KEY_RADIUS * recipe.scale
    places = _places(rng, recipe, r, recipe.keys).tolist()
    return [Flash(*thing, x, y, r) for *thing, (x, y) in zip(shapes, colours, frames, places, strict=True)]


def _places(rng: np.random.Generator, recipe: Recipe, r: float, count: int) -> np.ndarray:
    """Random integer centres [count, 2] of something with radius ``r`` inside the frame."""
    margin = int(np.ceil(r)) + 1
    return rng.integers(margin, recipe.size - margin, (count, 2))


# -------------------------------------------------------------------------------------------------- vnbench needles


def _needles(rng: np.random.Generator, recipe: Recipe, task: str) -> list[Needle]:
    """Retrieval: one needle. Ordering: four distinct ones. Counting: one to ``MAX_COUNT``."""
    slots = _slots(recipe)
    group, style = task.split("_")
    count = {"ret": 1, "ord": ORDERED, "cnt": int(rng.integers(1, min(MAX_COUNT, len(slots)) + 1))}[group]
    chosen = np.sort(rng.choice(len(slots), count, replace=False))
    if task == "cnt_edit2":
        return _edits(rng, recipe, [slots[i] for i in chosen])
    words = rng.permutation(WORDS)[:count].tolist()
    shapes = (rng.permutation(SHAPES) if group == "ord" else rng.choice(SHAPES, count))[:count].tolist()
    colours = rng.permutation(COLOURS)[:count].tolist()  # distinct, so that neighbours can be told apart and counted
    needles = []
    for i, slot in enumerate(chosen):
        first, last = slots[slot]
        if style == "edit1":
            needles.append(Needle("subtitle", first, last, word=words[i]))
        elif style == "insert1":
            middle = recipe.size // 2
            needles.append(Needle("plain", first, last, "", shapes[i], colours[i], middle, middle, 0.32 * recipe.size))
        else:
            r = 0.16 * recipe.size
            x, y = _places(rng, recipe, r, 1)[0].tolist()
            needles.append(Needle("scene", first, last, "", shapes[i], colours[i], x, y, r))
    return needles


def _edits(rng: np.random.Generator, recipe: Recipe, slots: list[tuple[int, int]]) -> list[Needle]:
    """One kind of shape, drawn into the video once per slot, each at its own place and in its own colour."""
    shape = str(rng.choice(SHAPES))
    r = EDIT_RADIUS * recipe.scale
    needles = []
    for (first, last), colour in zip(slots, rng.permutation(COLOURS).tolist(), strict=False):
        x, y = _places(rng, recipe, r, 1)[0].tolist()
        needles.append(Needle("edit", first, last, "", shape, colour, x, y, r))
    return needles


def _slots(recipe: Recipe) -> list[tuple[int, int]]:
    """(first, last) encoded frames nearest to each shown frame: a needle fills one, so finer sampling sees it too."""
    shown = recipe.shown
    owner = np.abs(np.arange(recipe.frames)[:, None] - shown[None]).argmin(1)
    return [(int(frames[0]), int(frames[-1])) for frames in (np.flatnonzero(owner == i) for i in range(len(shown)))]
