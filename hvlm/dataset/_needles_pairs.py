"""The set "pairs": three things appear one after the other, and a caption says which, in which order.

No caption belongs to two clips of a split, as long as it has no more than ``PER_SPLIT`` clips, and no two splits share
one: whoever retrieves a clip by its caption finds that one. Hard negatives hold the same words in another binding: two
colours, two shapes or two places in the order have changed hands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np

from hvlm.dataset._needles_scene import COLOURS, SHAPES, Recipe
from hvlm.dataset._needles_story import Shown, Story, Texts, periods, wandering
from hvlm.dataset._needles_text import draw_tries

THINGS = SHOWN = 3  # sampled frames that a clip needs
PLACES = ("first", "second", "third")
RADIUS = 11.0  # pixels in a frame of 64
TRIPLES = (list(permutations(SHAPES, THINGS)), list(permutations(COLOURS, THINGS)))
ALL = len(TRIPLES[0]) * len(TRIPLES[1])
SHARES = {"test": (0, 1), "val": (1, 2), "train": (2, 8)}  # of each eight captions
PER_SPLIT = {split: (end - start) * ALL // 8 for split, (start, end) in SHARES.items()}
STRIDE = 6007  # prime to ``ALL``: neighbouring clips have little in common

QUESTIONS = {
    "pair_colour": "which color has the {place} thing ?",
    "pair_shape": "which shape has the {place} thing ?",
    "pair_any": "name a shape in this video .",
}
ASK = "tell what appears ."
LIKE = {"cyan": "blue", "magenta": "red"}  # what some people call these colours
LIKENESS = 0.3


def templates() -> list[str]:
    """Questions and captions before anything is filled in."""
    return [*QUESTIONS.values(), "a {colour} {shape} then a {colour2} {shape2} then a {colour3} {shape3} ."]


def sentences() -> Iterator[str]:
    """Sentences with every word of the set."""
    yield ASK
    for i, shape in enumerate(SHAPES):
        for template in QUESTIONS.values():
            yield template.format(place=PLACES[i % THINGS])
        yield from _wordings([(COLOURS[i], shape)] * THINGS)


def _wordings(things: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    named = [f"a {colour} {shape}" for colour, shape in things]
    return (
        f"{' then '.join(named)} .",
        f"first {named[0]} , second {named[1]} , third {named[2]} .",
        f"{named[0]} appears , {named[1]} follows , {named[2]} is last .",
    )


def caption_of(split: str, number: int) -> list[tuple[str, str]]:
    """(colour, shape) of the three things of clip ``number``."""
    start, end = SHARES[split]
    block, place = divmod(number % PER_SPLIT[split], end - start)
    index = (8 * block + start + place) * STRIDE % ALL
    shapes, colours = TRIPLES[0][index % len(TRIPLES[0])], TRIPLES[1][index // len(TRIPLES[0])]
    return list(zip(colours, shapes, strict=True))


def negatives(things: Sequence[tuple[str, str]]) -> list[str]:
    """The same words, bound otherwise: each two colours exchanged, each two shapes, each two things."""
    made = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        swapped = list(things)
        (c, s), (c2, s2) = things[i], things[j]
        for one, other in (((c2, s), (c, s2)), ((c2, s2), (c, s))):
            swapped[i], swapped[j] = one, other
            made.append(_wordings(swapped)[0])
    # Exchanged shapes are exchanged things with exchanged colours: the third of each two.
    for i, j in ((0, 1), (0, 2), (1, 2)):
        swapped = list(things)
        swapped[i], swapped[j] = (things[i][0], things[j][1]), (things[j][0], things[i][1])
        made.append(_wordings(swapped)[0])
    return list(dict.fromkeys(made))


def tell(rng: np.random.Generator, recipe: Recipe, split: str, number: int) -> Story:
    """The story of one clip. Only its caption is a function of the number."""
    domain, things = str(rng.choice(recipe.domains)), caption_of(split, number)
    times, r = periods(recipe, THINGS), RADIUS * recipe.scale
    shown = []
    for (colour, shape), (start, end) in zip(things, times, strict=True):
        begin = rng.uniform(r + 2, recipe.size - r - 2, 2)
        stop = np.clip(begin + rng.uniform(-0.1, 0.1, 2) * recipe.size, r + 2, recipe.size - r - 2)
        shown.append(Shown(shape, colour, start, r, wandering(rng, recipe, begin, stop, r, end - start + 1)))
    windows = [recipe.window(*time) for time in times]
    texts = Texts(rng, recipe)
    texts.caption(ASK, _wordings(things), windows)
    which = rng.integers(THINGS, size=2).tolist()
    colour, shape = things[which[0]][0], things[which[1]][1]
    answers = {colour: 1.0} | ({LIKE[colour]: LIKENESS} if colour in LIKE else {})
    values = [c for c in COLOURS if c == colour or c not in answers]
    for task, answer, of, place, more in (
        ("pair_colour", colour, values, which[0], {"answers": answers}),
        ("pair_shape", shape, SHAPES, which[1], {}),
    ):
        question = QUESTIONS[task].format(place=PLACES[place])
        texts.question(task, question, answer, draw_tries(rng, answer, of), windows, **more)
    shapes = [shape for _, shape in things]
    any_of = {shape: 1.0 for shape in shapes}
    named = shapes[rng.integers(THINGS)]
    others = [s for s in SHAPES if s == named or s not in shapes]
    texts.question("pair_any", QUESTIONS["pair_any"], named, draw_tries(rng, named, others), windows, any_of)
    pairs = [{"text": _wordings(things)[0], "negatives": negatives(things)}]
    return Story(domain, recipe, shown, fields=texts.fields | {"pairs": pairs})
