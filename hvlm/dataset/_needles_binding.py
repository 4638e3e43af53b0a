"""The set "binding": shapes stand in a grid, and which colour, shape and place belong together is asked, or what
holds of all of them. One frame shows everything.

Clips take turns. In one of every two, shapes and colours all differ and the questions are about things (tasks bind_*,
beside_*): which shape has the red thing, what is left of it. Who knows which shapes and colours there are, and not what
belongs to what, must guess among all that are in sight; what is asked about always has another neighbour, too. In the
others the questions are about the whole (twice_*, count): how many there are, which colour and which shape is there
twice, so that no thing alone gives the answer.

Someone who cannot see the clip is at chance: answers are uniform, also given the question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hvlm.dataset._needles_scene import COLOURS, SHAPES, Recipe
from hvlm.dataset._needles_story import Shown, Story, Texts, wandering
from hvlm.dataset._needles_text import draw_tries

SHOWN = 1  # sampled frames that a clip needs
FEWEST, MOST = 3, 6  # things of a clip; where things are told apart there is one more at least
RADIUS, CELL = 7.0, 21.0  # pixels in a frame of 64
SHAKE = 2.0  # pixels that a thing may stand off the middle of its cell
SIDE = 3  # cells in a row
WHERE = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COUNTS = tuple(str(n) for n in range(FEWEST, MOST + 1))

QUESTIONS = {
    "bind_shape": "which shape has the {colour} thing ?",
    "bind_colour": "which color has the {shape} ?",
    "beside_shape": "which shape is {where} the {colour} one ?",
    "beside_colour": "which color is {where} the {shape} ?",
    "twice_colour": "which color is there twice ?",
    "twice_shape": "which shape is there twice ?",
    "count": "how many things are there ?",
}
LOCAL = ("bind_shape", "bind_colour", "beside_shape", "beside_colour")
WHOLE = ("twice_colour", "twice_shape", "count")
ASK, ASK_WHOLE = "tell where things are .", "tell what there is ."
BESIDE = ("a {one} {where} a {other} .", "the {one} is {where} the {other} .", "a {other} {opposite} a {one} .")
OF_ALL = (
    "{count} things , {colour} twice , {shape} twice .",
    "there are {count} things , the shape {shape} is there twice and the color {colour} , too .",
    "twice a {shape} , twice {colour} , {count} things .",
)


def templates() -> list[str]:
    """Questions and captions before anything is filled in."""
    return [*QUESTIONS.values(), *BESIDE, *OF_ALL]


def sentences() -> Iterator[str]:
    """Sentences with every word of the set."""
    yield from (ASK, ASK_WHOLE, *COUNTS)
    for where in WHERE:
        for text in (*QUESTIONS.values(), *OF_ALL):
            yield text.format(colour=COLOURS[0], shape=SHAPES[0], where=where, count=COUNTS[0])
        yield from _beside(("red", "star"), ("blue", "plus"), where)


def _beside(one: tuple[str, str], other: tuple[str, str], where: str) -> tuple[str, ...]:
    words = {"one": " ".join(one), "other": " ".join(other), "where": where, "opposite": OPPOSITE[where]}
    return tuple(text.format(**words) for text in BESIDE)


def tell(rng: np.random.Generator, recipe: Recipe, split: str, number: int) -> Story:
    """The story of one clip: about things and about the whole in turn."""
    return (_things if number % 2 == 0 else _whole)(rng, recipe, str(rng.choice(recipe.domains)))


def _things(rng: np.random.Generator, recipe: Recipe, domain: str) -> Story:
    count = int(rng.integers(FEWEST + 1, MOST + 1))
    shapes, colours = rng.permutation(SHAPES)[:count].tolist(), rng.permutation(COLOURS)[:count].tolist()
    where = str(rng.choice(list(WHERE)))
    # The first thing is the one that is named, the second stands beside it as asked, the third beside it elsewhere.
    cells = [(x, y) for x in range(SIDE) for y in range(SIDE)]
    anchor = [cell for cell in cells if _next(cell, where) in cells]
    first = anchor[rng.integers(len(anchor))]
    second = _next(first, where)
    beside = [cell for way in WHERE if (cell := _next(first, way)) in cells and cell != second]
    third = beside[rng.integers(len(beside))]
    left = [cell for cell in cells if cell not in (first, second, third)]
    places = [first, second, third, *(left[i] for i in rng.permutation(len(left)).tolist())][:count]
    shown = _shown(rng, recipe, shapes, colours, places)
    texts = Texts(rng, recipe)
    which = int(rng.integers(count))
    near = {"shape": shapes, "colour": colours}
    for task, thing, named in zip(LOCAL, (which, which, 1, 1), (which, which, 0, 0), strict=True):
        of = "shape" if task.endswith("shape") else "colour"
        question = QUESTIONS[task].format(colour=colours[named], shape=shapes[named], where=where)
        answer, values = near[of][thing], SHAPES if of == "shape" else COLOURS
        # What was named itself is no likelier a wrong answer than what is not there.
        others = [value for i, value in enumerate(near[of]) if i != named]
        texts.question(task, question, answer, draw_tries(rng, answer, values, others), [recipe.whole])
    pair = list(zip(colours, shapes, strict=True))[:2]
    (named_c, named_s), (beside_c, beside_s) = pair
    said = _beside(pair[1], pair[0], where)
    texts.caption(ASK, said, [recipe.whole])
    wrong = [
        _beside((named_c, beside_s), (beside_c, named_s), where)[0],  # colours exchanged
        _beside((named_c, named_s), (beside_c, beside_s), where)[0],  # things exchanged
        _beside(pair[1], pair[0], OPPOSITE[where])[0],
    ]
    # Exchanged things say the same as the opposite side does: both are wrong, in other words.
    return Story(domain, recipe, shown, fields=texts.fields | {"pairs": [{"text": said[0], "negatives": wrong}]})


def _whole(rng: np.random.Generator, recipe: Recipe, domain: str) -> Story:
    count = int(rng.integers(FEWEST, MOST + 1))
    shapes, colours = (_one_twice(rng, values, count) for values in (SHAPES, COLOURS))
    cells = [(x, y) for x in range(SIDE) for y in range(SIDE)]
    places = [cells[i] for i in rng.permutation(len(cells))[:count].tolist()]
    shown = _shown(rng, recipe, shapes[1], colours[1], places)
    texts = Texts(rng, recipe)
    for task, answer, values, near in (
        ("twice_colour", colours[0], COLOURS, colours[1]),
        ("twice_shape", shapes[0], SHAPES, shapes[1]),
        ("count", str(count), COUNTS, ()),
    ):
        tries = draw_tries(rng, answer, values, list(dict.fromkeys(near)))
        texts.question(task, QUESTIONS[task], answer, tries, [recipe.whole])
    words = {"count": str(count), "colour": colours[0], "shape": shapes[0]}
    said = [text.format(**words) for text in OF_ALL]
    texts.caption(ASK_WHOLE, said, [recipe.whole])
    wrong = [OF_ALL[0].format(**(words | {"count": other})) for other in COUNTS if other != str(count)]
    for name, of, there in (("colour", COLOURS, colours), ("shape", SHAPES, shapes)):
        others = [value for value in of if value != there[0]]
        wrong.append(OF_ALL[0].format(**(words | {name: others[rng.integers(len(others))]})))
    return Story(domain, recipe, shown, fields=texts.fields | {"pairs": [{"text": said[0], "negatives": wrong}]})


def _one_twice(rng: np.random.Generator, values: Sequence[str], count: int) -> tuple[str, list[str]]:
    """(the value that is there twice, ``count`` values in any order), all others once."""
    drawn = [values[i] for i in rng.permutation(len(values))[: count - 1].tolist()]
    every = [drawn[0], *drawn]
    return drawn[0], [every[i] for i in rng.permutation(count).tolist()]


def _next(cell: tuple[int, int], where: str) -> tuple[int, int]:
    """The cell on that side of another."""
    dx, dy = WHERE[where]
    return cell[0] + dx, cell[1] + dy


def _shown(
    rng: np.random.Generator,
    recipe: Recipe,
    shapes: Sequence[str],
    colours: Sequence[str],
    cells: Sequence[tuple[int, int]],
) -> list[Shown]:
    r, shown = RADIUS * recipe.scale, []
    for shape, colour, cell in zip(shapes, colours, cells, strict=True):
        middle = [(32 + CELL * (n - (SIDE - 1) / 2) + float(rng.uniform(-SHAKE, SHAKE))) * recipe.scale for n in cell]
        shown.append(Shown(shape, colour, 0, r, wandering(rng, recipe, middle, middle, r, recipe.frames)))
    # What is drawn first says nothing of what is asked.
    return [shown[i] for i in rng.permutation(len(shown)).tolist()]
