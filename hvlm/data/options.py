"""Which option an answer names: by its text, its letter or its place."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from hvlm.prompts import LETTERS

# Spaces are not given back, ``*+``: between two that may share a long run of them, every division would be tried.
_LETTER = re.compile(r"\s*+\(?\s*+([A-Za-z])\s*+[).:]?\s*+")


def gold_of(answer: Any, options: Sequence[Any]) -> int:
    """The place of the option that ``answer`` names, from 0.

    An option's text comes first (as it is, then case and spaces aside), then a letter (``B``, ``b``, ``(B)``, ``B.``),
    then a whole number, which counts from 0. A number that is one option's text and another one's place is refused,
    unless the options are numbers, too.

    Raises ValueError with what was expected.
    """
    one = "exactly one of the options, its letter or its place (from 0)"
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or answer == "":
        raise ValueError(one)
    if isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(one)
    place = int(answer) if isinstance(answer, int | float) and answer == int(answer) else None
    for form in (str, _folded):
        by_text = [i for i, option in enumerate(options) if form(str(option)) == form(str(answer))]
        if len(by_text) > 1:
            raise ValueError(one)
        if by_text:
            certain = place is None or isinstance(options[by_text[0]], int | float)
            if not certain and place != by_text[0] and 0 <= place < len(options):
                raise ValueError(
                    f"its letter: {answer} is the text of option {LETTERS[by_text[0]]} and the place of option "
                    f"{LETTERS[place]}"
                )
            return by_text[0]
    if isinstance(answer, str) and (said := _LETTER.fullmatch(answer)):
        place = LETTERS.index(said[1].upper())
    elif isinstance(answer, str) and answer.strip().isdecimal():
        place = int(answer)
    if place is None or not 0 <= place < len(options):
        raise ValueError(one)
    return place


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
