"""Multiple choice with letters, as VNBench asks it: the options stand in the prompt and the answer is a letter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
POST_PROMPT = "Answer with the option's letter from the given choices directly."


def lettered_prompt(question: str, options: Iterable[str]) -> str:
    """The question, one ``A. text`` line per option, and the request for the letter."""
    lines = [f"{LETTERS[i]}. {option}" for i, option in enumerate(options)]
    return "\n".join([question, *lines, POST_PROMPT])


def bare_options(options: Sequence[str]) -> tuple[str, ...]:
    """The options without their own letters (``A. red``, ``(A) red``, ``A) red``, ``A: red``), if all have them."""
    found = [re.match(rf"\(?{LETTERS[i]}[.):]\s+(?=\S)", option) for i, option in enumerate(options[: len(LETTERS)])]
    if not options or None in found:
        return tuple(options)
    return tuple(option[own.end() :] for option, own in zip(options, found, strict=True) if own)
