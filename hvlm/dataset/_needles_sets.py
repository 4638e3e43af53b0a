"""The sets whose clips tell a story, and the words of all sets together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from types import ModuleType

from hvlm.dataset import _needles_binding, _needles_domains, _needles_events, _needles_pairs, _needles_text
from hvlm.dataset._needles_scene import COLOURS, SHAPES

# In the order in which they came: words of an older set keep their places in the vocabulary.
STORIES: dict[str, ModuleType] = {
    "domains": _needles_domains,
    "events": _needles_events,
    "pairs": _needles_pairs,
    "binding": _needles_binding,
}

# What a sample of a set can hold, where that is a closed list.
NAMES: dict[tuple[str, str], tuple[str, ...]] = {
    ("events", "events"): tuple(SHAPES),
    ("events", "answers"): (*SHAPES, *(str(n) for n in range(1, _needles_events.MOST + 1))),
    ("pairs", "answers"): (*SHAPES, *COLOURS),
    ("binding", "answers"): (*SHAPES, *COLOURS, *_needles_binding.COUNTS),
}


def vocabulary() -> Iterator[str]:
    """Sentences that hold every word any set can contain; the same whatever is generated."""
    return chain(_needles_text.vocabulary(), *(story.sentences() for story in STORIES.values()))


def templates(set_name: str, wording: str = "both") -> list[str]:
    """The questions and captions of one set before anything is filled in, as the manifest names them. wording: of the
    set 'keys'."""
    return STORIES[set_name].templates() if set_name in STORIES else _needles_text.templates(set_name, wording)
