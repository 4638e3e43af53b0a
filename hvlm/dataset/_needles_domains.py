"""The set "domains": each domain asks its own questions in its own words, about what the others do not show.

sports: two players run across the pitch one after the other: who, when, which way. tutorials: four steps are drawn on
a page: which is first, which follows. news: two headlines: what they say. general: what the set "easy" shows and asks.

Someone who cannot see the clip is at chance in each: answers are uniform, also given the question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from string import Formatter
from typing import Any

import numpy as np

from hvlm.dataset import _needles_text as easy
from hvlm.dataset._needles_scene import COLOURS, DIRECTIONS, SHAPES, Recipe, plan
from hvlm.dataset._needles_story import Headline, Shown, Story, Texts, periods, standing, wandering

HEADLINES = ("fire", "snow", "vote", "bank", "ship", "gold", "jury", "moon")
WHEN = ("early", "late", "always", "never")
WHICH = ("opening", "closing", "both", "neither")
NUMBERS = ("one", "two", "three", "four")
STEPS = SHOWN = len(NUMBERS)  # sampled frames that a clip needs
PLAYER_RADIUS, STEP_RADIUS = 9.0, 14.0  # pixels in a frame of 64

QUESTIONS = {
    "run_first": "which player runs first ?",
    "run_last": "which player runs last ?",
    "run_when": "when does the {colour} player run ?",
    "run_way": "which way is the first run ?",
    "step_first": "with which step do we begin ?",
    "step_last": "with which step do we finish ?",
    "step_next": "which step follows the {shape} ?",
    "step_number": "which number has the step {shape} ?",
    "headline_first": "what does the opening headline say ?",
    "headline_last": "what does the closing headline say ?",
    "headline_which": "which headline says {headline} ?",
}
CAPTIONS = {  # domain: (what asks for one, its wordings)
    "sports": (
        "report the match .",
        (
            "the {colour} player runs {direction} , then the {colour2} player runs {direction2} .",
            "first {colour} runs {direction} , then {colour2} runs {direction2} .",
            "a {colour} run {direction} and a {colour2} run {direction2} .",
        ),
    ),
    "tutorials": (
        "list the steps .",
        (
            "step one {shape} , step two {shape2} , step three {shape3} , step four {shape4} .",
            "first the {shape} , then the {shape2} , then the {shape3} , then the {shape4} .",
            "we begin with the {shape} , the {shape2} and the {shape3} follow , we finish with the {shape4} .",
        ),
    ),
    "news": (
        "read the headlines .",
        (
            "{headline} , then {headline2} .",
            "the opening headline says {headline} , the closing headline says {headline2} .",
            "first {headline} and then {headline2} .",
        ),
    ),
}
VALUES: dict[str, Sequence[str]] = {
    "colour": COLOURS, "shape": SHAPES, "direction": tuple(DIRECTIONS), "headline": HEADLINES,
}  # fmt: skip


def templates() -> list[str]:
    """Questions and captions before anything is filled in."""
    return [*QUESTIONS.values(), *(text for _, wordings in CAPTIONS.values() for text in wordings)]


def sentences() -> Iterator[str]:
    """Sentences with every word of the set."""
    for template in (*QUESTIONS.values(), *(text for ask, wordings in CAPTIONS.values() for text in (ask, *wordings))):
        slots = [name for _, name, _, _ in Formatter().parse(template) if name]
        values = {name: VALUES[name.rstrip("234")] for name in slots}
        for i in range(max(map(len, values.values()), default=1)):
            yield template.format(**{name: of[i % len(of)] for name, of in values.items()})
    for words in (HEADLINES, WHEN, WHICH, NUMBERS):
        yield from words


def tell(rng: np.random.Generator, recipe: Recipe, split: str, number: int) -> Story:
    """The story of one clip: of each domain equally often, in turn."""
    domain = recipe.domains[number % len(recipe.domains)]
    return {"sports": _match, "tutorials": _steps, "news": _headlines, "general": _general}[domain](rng, recipe)


def _twice(rng: np.random.Generator, values: Sequence[str]) -> tuple[str, str, str, int]:
    """(what comes first, what comes last, which one is asked about, its answer's place in (first, last, both, none)).

    Each of the four answers is equally likely, and first and last are each uniform.
    """
    first, other, third = rng.permutation(len(values))[:3]
    answer = int(rng.integers(4))
    last = first if answer == 2 or (answer == 3 and rng.random() < 0.5) else other
    asked = {0: first, 1: last, 2: first, 3: third}[answer]
    return values[first], values[last], values[asked], answer


def _match(rng: np.random.Generator, recipe: Recipe) -> Story:
    first, last, asked, when = _twice(rng, COLOURS)
    ways = [str(way) for way in rng.choice(list(DIRECTIONS), 2)]
    shape, halves, r = str(rng.choice(SHAPES)), periods(recipe, 2), PLAYER_RADIUS * recipe.scale
    things = []
    for colour, way, (start, end) in zip((first, last), ways, halves, strict=True):
        edge, across = r + 2, rng.uniform(r + 2, recipe.size - r - 2)
        far = recipe.size - edge
        dx, dy = DIRECTIONS[way]
        begin = (edge if dx > 0 else far if dx < 0 else across), (edge if dy > 0 else far if dy < 0 else across)
        finish = (far if dx > 0 else edge if dx < 0 else across), (far if dy > 0 else edge if dy < 0 else across)
        track = wandering(rng, recipe, begin, finish, r, end - start + 1)
        things.append(Shown(shape, colour, start, r, track))
    windows = [recipe.window(*half) for half in halves]
    texts = Texts(rng, recipe)
    ask = _asking(texts, rng)
    ask("run_first", first, COLOURS, windows[:1], near=(last,))
    ask("run_last", last, COLOURS, windows[1:], near=(first,))
    ask("run_when", WHEN[when], WHEN, windows, colour=asked)
    ask("run_way", ways[0], tuple(DIRECTIONS), _parts(recipe, halves[0]))
    prompt, wordings = CAPTIONS["sports"]
    values = {"colour": first, "colour2": last, "direction": ways[0], "direction2": ways[1]}
    evidence = [part for half in halves for part in _parts(recipe, half)]
    texts.caption(prompt, [text.format(**values) for text in wordings], evidence)
    return Story("sports", recipe, things, fields=texts.fields)


def _parts(recipe: Recipe, period: tuple[int, int]) -> list[list[float]]:
    """To tell a way one must have looked in both halves of the run."""
    first, last = period
    middle = (first + last) // 2
    return [recipe.window(first, middle), recipe.window(middle + 1, last)]


def _steps(rng: np.random.Generator, recipe: Recipe) -> Story:
    shapes = rng.permutation(SHAPES)[:STEPS].tolist()
    times, r = periods(recipe, STEPS), STEP_RADIUS * recipe.scale
    things = []
    for shape, (start, end) in zip(shapes, times, strict=True):
        x, y = (round((middle + float(rng.uniform(-4, 4))) * recipe.scale) for middle in (32, 30))
        things.append(Shown(shape, str(rng.choice(COLOURS)), start, r, standing(x, y, end - start + 1)))
    windows = [recipe.window(*time) for time in times]
    texts = Texts(rng, recipe)
    ask = _asking(texts, rng)
    ask("step_first", shapes[0], SHAPES, windows[:1], near=shapes)
    ask("step_last", shapes[-1], SHAPES, windows[-1:], near=shapes)
    before = int(rng.integers(STEPS - 1))
    others = [shape for shape in SHAPES if shape != shapes[before]]
    near = [shape for shape in shapes if shape != shapes[before]]
    ask("step_next", shapes[before + 1], others, windows[before : before + 2], near=near, shape=shapes[before])
    which = int(rng.integers(STEPS))
    ask("step_number", NUMBERS[which], NUMBERS, windows, shape=shapes[which])
    prompt, wordings = CAPTIONS["tutorials"]
    values = {f"shape{i or ''}": shape for i, shape in zip((0, 2, 3, 4), shapes, strict=True)}
    texts.caption(prompt, [text.format(**values) for text in wordings], windows)
    return Story("tutorials", recipe, things, page=True, fields=texts.fields)


def _headlines(rng: np.random.Generator, recipe: Recipe) -> Story:
    first, last, asked, which = _twice(rng, HEADLINES)
    halves = periods(recipe, 2)
    windows = [recipe.window(*half) for half in halves]
    texts = Texts(rng, recipe)
    ask = _asking(texts, rng)
    ask("headline_first", first, HEADLINES, windows[:1], near=(last,))
    ask("headline_last", last, HEADLINES, windows[1:], near=(first,))
    ask("headline_which", WHICH[which], WHICH, windows, headline=asked)
    prompt, wordings = CAPTIONS["news"]
    values = {"headline": first, "headline2": last}
    texts.caption(prompt, [text.format(**values) for text in wordings], windows)
    shown = [Headline(word, *half) for word, half in zip((first, last), halves, strict=True)]
    return Story("news", recipe, headlines=shown, fields=texts.fields)


def _general(rng: np.random.Generator, recipe: Recipe) -> Story:
    as_easy = replace(recipe, set="easy", domains=("general",))
    scene = plan(rng, as_easy, 0)
    things = [Shown(thing.shape, thing.colour, 0, thing.r, thing.track) for thing in scene.objects]
    things += [Shown(f.shape, f.colour, f.frame, f.r, standing(f.x, f.y, 1)) for f in scene.flashes]
    # What kind of video it is goes without saying where every domain asks questions of its own.
    said = [c for c in easy.captions(rng, scene, as_easy) if c["prompt"] not in easy.CAPTIONS["scene"][0]]
    captions = [c | {"references": [c["text"]]} for c in said]
    asked = [q for q in easy.questions(rng, scene, as_easy) if q["task"] != "domain"]
    questions = [q | {"id": f"q{i}"} for i, q in enumerate(asked)]
    return Story("general", recipe, things, fields={"captions": captions, "questions": questions})


def _asking(texts: Texts, rng: np.random.Generator):
    def ask(task: str, answer: str, values: Sequence[str], evidence: list, near: Sequence[str] = (), **slots: Any):
        tries = easy.draw_tries(rng, answer, values, near)
        texts.question(task, QUESTIONS[task].format(**slots), answer, tries, evidence)

    return ask
