"""Multiple choice with letters, as VNBench asks it: the options stand in the prompt and the answer is a letter."""

from __future__ import annotations

from collections.abc import Iterable

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
POST_PROMPT = "Answer with the option's letter from the given choices directly."


def lettered_prompt(question: str, options: Iterable[str]) -> str:
    """The question, one ``A. text`` line per option, and the request for the letter."""
    lines = [f"{LETTERS[i]}. {option}" for i, option in enumerate(options)]
    return "\n".join([question, *lines, POST_PROMPT])
