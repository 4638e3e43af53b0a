"""The set "events": long clips in which shapes come into sight and leave again: what happens when.

A clip of 30 to 120 s holds several events, of different length, some at the same time; each has a start, an end and a
class, which is the shape's name. Events of one class never overlap, so that a moment says which is which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hvlm.dataset._needles_scene import COLOURS, SHAPES, Recipe
from hvlm.dataset._needles_story import Shown, Story, Texts, wandering
from hvlm.dataset._needles_text import draw_tries

FEWEST, MOST = 2, 6  # events of a clip
AT_ONCE = 3
SHOWN = 2  # sampled frames that a clip needs
SHORTEST = 4.0  # seconds
LONGEST = 0.45  # of the clip's seconds
APART = 2.0  # seconds between events of one class
RADIUS = 9.0  # pixels in a frame of 64
NEARLY = 0.8  # of the longest event's seconds: who answers with such a one is half right

QUESTIONS = {
    "event_first": "what comes into sight first ?",
    "event_longest": "what stays in sight longest ?",
    "event_count": "how many things come into sight ?",
}
ASK = "list what comes into sight ."


def templates() -> list[str]:
    """Questions and captions before anything is filled in."""
    return [*QUESTIONS.values(), "a {colour} {shape} , then a {colour2} {shape2} ."]


def sentences() -> Iterator[str]:
    """Sentences with every word of the set."""
    yield from QUESTIONS.values()
    yield ASK
    for i in range(len(SHAPES)):
        yield from _wordings([f"{COLOURS[i % len(COLOURS)]} {SHAPES[i]}"] * 2)


def _wordings(things: Sequence[str]) -> tuple[str, ...]:
    return (
        f"{' , then '.join(f'a {thing}' for thing in things)} .",
        f"first comes a {' , then a '.join(things)} .",
        f"{' , '.join(f'a {thing} comes into sight' for thing in things)} .",
    )


def tell(rng: np.random.Generator, recipe: Recipe, split: str, number: int) -> Story:
    """The story of one clip."""
    domain = str(rng.choice(recipe.domains))
    seconds = float(rng.uniform(recipe.min_seconds, recipe.max_seconds))
    recipe = replace(recipe, frames=max(2, round(seconds * recipe.fps)))
    things: list[Shown] = []
    for _ in range(int(rng.integers(FEWEST, MOST + 1))):
        found = _when(rng, recipe, things)
        if found is not None:
            things.append(_thing(rng, recipe, *found, things))
    things.sort(key=lambda thing: (thing.first, thing.last))
    events = [
        {"start": round(thing.first / recipe.fps, 6), "end": round((thing.last + 1) / recipe.fps, 6)}
        | {"label": thing.shape}
        for thing in things
    ]
    return Story(domain, recipe, things, fields=_texts(rng, recipe, things, events) | {"events": events})


def _when(rng: np.random.Generator, recipe: Recipe, others: Sequence[Shown]) -> tuple[str, int, int] | None:
    """(class, first, last frame) of one more event; None where none of a few dozen draws fits."""
    longest = max(SHORTEST, LONGEST * recipe.duration)
    for _ in range(48):
        shape = str(rng.choice(SHAPES))
        seconds = min(recipe.duration, float(np.exp(rng.uniform(np.log(SHORTEST), np.log(longest)))))
        length = max(1, round(seconds * recipe.fps))
        first = int(rng.integers(recipe.frames - length + 1))
        last, gap = first + length - 1, round(APART * recipe.fps)
        alike = [o for o in others if o.shape == shape and o.first - gap <= last and first <= o.last + gap]
        at_once = [o for o in others if o.first <= last and first <= o.last]
        if not alike and len(at_once) < AT_ONCE and first not in [o.first for o in others]:
            return shape, first, last
    return None


def _thing(
    rng: np.random.Generator, recipe: Recipe, shape: str, first: int, last: int, others: Sequence[Shown]
) -> Shown:
    """It wanders a little, as far from what is in sight meanwhile as a few draws can find."""
    r = RADIUS * recipe.scale
    margin, length = r + 2, last - first + 1
    tracks = []
    for _ in range(12):
        start = rng.uniform(margin, recipe.size - margin, 2)
        end = np.clip(start + rng.uniform(-0.2, 0.2, 2) * recipe.size, margin, recipe.size - margin)
        tracks.append(wandering(rng, recipe, start, end, r, length))
    gaps = np.full(len(tracks), np.inf)
    for other in others:
        begin, stop = max(first, other.first), min(last, other.last)
        if begin <= stop:
            theirs = other.track[begin - other.first : stop - other.first + 1]
            for i, track in enumerate(tracks):
                ours = track[begin - first : stop - first + 1]
                gaps[i] = min(gaps[i], np.linalg.norm(ours - theirs, axis=-1).min())
    return Shown(shape, str(rng.choice(COLOURS)), first, r, tracks[int(gaps.argmax())])


def _texts(
    rng: np.random.Generator, recipe: Recipe, things: Sequence[Shown], events: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    texts = Texts(rng, recipe)
    windows = [[event["start"], event["end"]] for event in events]
    texts.caption(ASK, _wordings([f"{thing.colour} {thing.shape}" for thing in things]), windows)

    def ask(task: str, answer: str, values: Sequence[str], near: Sequence[str] = (), **more: Any) -> None:
        tries = draw_tries(rng, answer, values, near)
        texts.question(task, QUESTIONS[task], answer, tries, windows, **more)

    near = list(dict.fromkeys(thing.shape for thing in things))
    ask("event_first", things[0].shape, SHAPES, near)
    seconds = {thing.shape: 0.0 for thing in things}
    for thing in things:
        seconds[thing.shape] = max(seconds[thing.shape], float(len(thing.track)))
    answer = max(seconds, key=lambda shape: seconds[shape])
    answers = {answer: 1.0}
    nearly = [s for s, n in seconds.items() if s != answer and n >= NEARLY * seconds[answer]]
    answers |= dict.fromkeys(nearly[:2], 0.5)  # three wrong options are left
    # Options have one right answer: who is half right stands among the answers alone.
    ask("event_longest", answer, [s for s in SHAPES if s == answer or s not in answers], answers=answers)
    numbers = [str(n) for n in range(1, MOST + 1)]
    ask("event_count", str(len(things)), numbers)
    return texts.fields
