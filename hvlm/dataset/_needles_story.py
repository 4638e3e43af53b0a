"""A clip of the sets that tell a story: what is in sight when, what is written on the screen, and how that is drawn.

The story of a clip (``Story``) is told by the module of its set (``_needles_domains``, ``_needles_events``,
``_needles_pairs``) together with everything that is said about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hvlm.data.sampling import is_shown
from hvlm.dataset._needles_draw import OUTLINE, dress, letters, paste, sprite
from hvlm.dataset._needles_scene import JITTER, Recipe

NAVY, PAPER = (24, 34, 96), (240, 240, 236)


@dataclass
class Shown:
    """A shape in sight in encoded frames first..first + len(track) - 1; ``track`` [frames, 2]: integer centres."""

    shape: str
    colour: str
    first: int
    r: float
    track: np.ndarray

    @property
    def last(self) -> int:
        return self.first + len(self.track) - 1


@dataclass
class Headline:
    """A word in large letters, in sight in encoded frames first..last."""

    word: str
    first: int
    last: int


@dataclass
class Story:
    """One clip.

    recipe: the set's, with this clip's own number of frames. page: shapes stand on an empty page of the size of the
    frame's middle. fields: what goes into the sample's JSON beside the geometry: captions, questions, events, pairs.
    """

    domain: str
    recipe: Recipe
    things: list[Shown] = field(default_factory=list)
    headlines: list[Headline] = field(default_factory=list)
    page: bool = False
    fields: dict[str, Any] = field(default_factory=dict)

    def objects(self) -> list[dict[str, Any]]:
        """The things as a sample's JSON holds them: ``track`` begins at the frame ``first``."""
        return [
            {"shape": thing.shape, "colour": thing.colour, "first": thing.first}
            | {"track": [[x, y, thing.r] for x, y in thing.track.tolist()]}
            for thing in self.things
        ]


def render(story: Story, background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [frames, size, size, 3]."""
    recipe = story.recipe
    frames = background.astype(np.float32)
    line = OUTLINE * recipe.scale if recipe.outline else 0.0
    dress(rng, story.domain, frames, recipe.scale)
    if story.page:
        left, right, bottom = (round(edge * recipe.scale) for edge in (9, 55, 51))
        frames[:, left:bottom, left:right] = PAPER
    for thing in story.things:
        image = sprite(thing.shape, thing.colour, thing.r, line)
        for frame, (x, y) in zip(frames[thing.first : thing.last + 1], thing.track.tolist(), strict=True):
            paste(frame, x, y, *image)
    for headline in story.headlines:
        _write(headline.word, frames[headline.first : headline.last + 1])
    return (frames + 0.5).astype(np.uint8)


def _write(word: str, frames: np.ndarray) -> None:
    """White letters on a band across the lower half, as large as a word of four letters can be."""
    size = frames.shape[1]
    drawn = letters(word, max(1, size // 32))[:, :size]
    height, width = drawn.shape
    top, left = round(0.75 * size) - height // 2, (size - width) // 2
    navy = np.asarray(NAVY, np.float32)
    frames[:, top : top + height] = navy
    frames[:, top : top + height, left : left + width] = navy + drawn[..., None] / 255 * (240 - navy)


# ---------------------------------------------------------------------------------------------------------- planning


def standing(x: int, y: int, frames: int) -> np.ndarray:
    """The track of something that stays where it is."""
    return np.broadcast_to([[x, y]], (frames, 2)).astype(int)


def wandering(rng: np.random.Generator, recipe: Recipe, start: Sequence[float], end: Sequence[float], r: float,
              frames: int) -> np.ndarray:  # fmt: skip
    """A straight track between two places, a little unsteady, inside the frame."""
    way = np.linspace(0, 1, frames)[:, None]
    track = np.asarray(start) + way * (np.asarray(end) - np.asarray(start))
    track = track + rng.normal(0, JITTER * recipe.scale, track.shape)
    margin = np.ceil(r) + 1
    return np.clip(np.round(track), margin, recipe.size - 1 - margin).astype(int)


def periods(recipe: Recipe, count: int) -> list[tuple[int, int]]:
    """(first, last) encoded frames of ``count`` periods that follow each other and show equally many sampled frames,
    as nearly as that goes."""
    shown = recipe.shown
    # A period's border lies half-way between the sampled frames beside it: finer sampling sees the same order.
    borders = [(int(shown[cut - 1]) + int(shown[cut]) + 1) // 2
               for cut in (round(i * len(shown) / count) for i in range(1, count))]  # fmt: skip
    return list(zip([0, *borders], [*(border - 1 for border in borders), recipe.frames - 1], strict=True))


# ------------------------------------------------------------------------------------------------------------- texts


class Texts:
    """What is said about a clip, as its JSON holds it; what the sampled frames do not show is left out."""

    def __init__(self, rng: np.random.Generator, recipe: Recipe):
        self.rng, self.times = rng, recipe.shown / recipe.fps
        self.captions: list[dict[str, Any]] = []
        self.questions: list[dict[str, Any]] = []

    def caption(self, prompt: str, references: Sequence[str], evidence: list[list[float]]) -> None:
        """A caption in several wordings; which one is learned first is drawn."""
        if not is_shown(evidence, self.times):
            return
        said = list(dict.fromkeys(references))
        text = said[self.rng.integers(len(said))]
        self.captions.append({"prompt": prompt, "text": text, "references": said, "evidence": evidence})

    def question(self, task: str, question: str, answer: str, tries: list[dict[str, Any]],
                 evidence: list[list[float]], answers: dict[str, float] | None = None) -> None:  # fmt: skip
        """A closed question. answers: how far each answer counts as right, where that is more than one."""
        if not is_shown(evidence, self.times):
            return
        wrong = [option for option in tries[0]["options"] if option not in (answers or {answer: 1.0})]
        asked: dict[str, Any] = {"id": f"q{len(self.questions)}", "task": task, "question": question, "answer": answer}
        if wrong:
            asked["rejected"] = wrong[self.rng.integers(len(wrong))]
        if answers:
            asked["answers"] = answers
        self.questions.append(asked | {"tries": tries, "evidence": evidence})

    @property
    def fields(self) -> dict[str, Any]:
        return {"captions": self.captions, "questions": self.questions}
