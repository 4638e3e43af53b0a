"""Which of the offered options a written answer means.

Models and other programs write one choice in many ways. Read are, whatever the case and the width of the letters:

    B   b   B.   B)   (B)   [B]   B:   "B"   **B**   \\boxed{B}   <answer>B</answer>   <think>...</think> B
    a blue cube   A blue cube.   B. a blue cube   (B) a blue cube   B: a blue cube   B - a blue cube
    B. The cube is blue.   Answer: B   The correct answer is (B).   Best option: (B)   Option B   Answer: a blue cube

Nothing is guessed: what could mean two options is ``AMBIGUOUS``, any other text is ``UNREAD``. Letters inside a
sentence, the first letter of a word, and options that are only mentioned do not count. (Published parsers do guess:
VNBench's takes the first of A, B, C, D that stands anywhere before a full stop, so that "Answer: B" is A; others draw
lots.)
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from hvlm.prompts import LETTERS

MISSING, UNREAD, AMBIGUOUS = "missing", "unread", "ambiguous"

_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_OPENED = re.compile(r"(<answer>)|\\boxed\{(?:\\text\{)?", re.IGNORECASE)
_CLOSED = re.compile(r"</answer>", re.IGNORECASE), re.compile(r"\}\}?")  # of <answer>, of \boxed{
_MARKS = re.compile(r"[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}")  # Markdown's emphasis
PHRASES = 8  # such as "the answer is" that may stand before each other; a text of nothing else means no option
_QUOTES = "\"'“”‘’«»„"
_AROUND = " \t\n:.-–"  # stripped from what follows a letter
COMPOSED = 4  # characters, at most, that Unicode composes into one
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060"))
# "Answer: ", "The correct answer is ", "Best option: ", "Option "
_PHRASE = re.compile(
    r"(?:\b(?:the|my|final|correct|right|best)\s+){0,6}\b(?:answer|option|choice)\b(?:\s+(?:is|would be))?\s*[:=]?\s*"
    r"(?:(?:option|choice)\b\s*:?\s*)?",
    re.IGNORECASE,
)


class Reading(NamedTuple):
    """index: of the option that is meant, or None with the ``problem``: missing, unread or ambiguous."""

    index: int | None
    problem: str = ""


def read_answer(written: str, options: Sequence[str], letters: bool = True) -> Reading:
    """Which option a text means; see above for the forms.

    Args:
        written: what was answered.
        options: what was offered, in the order of its letters.
        letters: whether a letter may stand for an option. False where the prompt showed none.
    """
    text, meant = plain(written), set[int]()
    for _ in range(PHRASES):
        if not text:
            return Reading(None, MISSING)
        meant = _by_text(text, options) | (_by_letter(text, options) if letters else set())
        phrase = None if meant else _PHRASE.match(text)
        if phrase is None or phrase.end() == len(text):
            break
        text = plain(text[phrase.end() :])
    if len(meant) > 1:
        return Reading(None, AMBIGUOUS)
    return Reading(meant.pop()) if meant else Reading(None, UNREAD)


def read_number(number: float, options: Sequence[str]) -> Reading:
    """The option that an index means: whole numbers only, also written 1.0. NaN: no answer.

    A number that is also the text of another option is ambiguous. Raises ValueError for one that is no index.
    """
    if math.isnan(number):
        return Reading(None, MISSING)
    if number != int(number) or not 0 <= number < len(options):
        raise ValueError
    index = int(number)
    by_text = {i for i, option in enumerate(options) if _folded(option) == str(index)}
    return Reading(None, AMBIGUOUS) if by_text - {index} else Reading(index)


def same(written: str | None, answer: str) -> bool:
    """Whether an open answer is word for word the expected one; case, spaces, quotes and a last full stop aside."""
    return written is not None and _folded(plain(written)) == _folded(answer)


def plain(written: str) -> str:
    """The answer itself: without thoughts, frames, emphasis and invisible characters; letters of usual width."""
    text = unicodedata.normalize("NFKC", written.translate(_INVISIBLE))
    text = _THOUGHT.sub("", text)
    framed = _framed(text)
    if len(framed) == 1:
        text = framed.pop()
    return _MARKS.sub("", text).strip().strip(_QUOTES).strip()


def _framed(text: str) -> set[str]:
    """What stands in frames, each up to the first end of its kind. Where a kind has no end any more none is looked for
    again: a long text of openings alone would take the square of its length."""
    found, at, open_for_ever = set(), 0, set()
    while opened := _OPENED.search(text, at):
        at, kind = opened.end(), 0 if opened[1] else 1
        closed = None if kind in open_for_ever else _CLOSED[kind].search(text, at)
        if closed is None:
            open_for_ever.add(kind)
        else:
            found.add(text[at : closed.start()])
            at = closed.end()
    return found


def _folded(text: Any) -> str:
    """For comparison: one case, single spaces, no quotes around it and no full stop after it."""
    text = " ".join(unicodedata.normalize("NFKC", str(text)).split()).casefold()
    return text.removesuffix(".").strip().strip(_QUOTES)


def _by_text(text: str, options: Sequence[str]) -> set[int]:
    folded = _folded(text)
    return {i for i, option in enumerate(options) if _folded(option) == folded}


def _by_letter(text: str, options: Sequence[str]) -> set[int]:
    """Options whose letter the text gives as the answer; two where it contradicts itself."""
    known = LETTERS[: len(options)]
    either = f"[{known}{known.lower()}]"
    # Spaces are not given back, ``*+``: between two that may share a long run of them, every division would be tried.
    if alone := re.fullmatch(rf"[(\[]?\s*+({either})\s*+[)\]]?\s*+[.:,;]?", text):
        return {_index(alone[1])}
    # A letter with its sign, then the option or a reason. In lower case only in brackets: "a - b" is no choice.
    first = re.match(rf"(?:[(\[]\s*({either})\s*[)\]]|([{known}])\s*[.):\]])(\s*[:.\-–]?\s*)(?=\S)", text)
    first = first or re.match(rf"()([{known}])(\s+[-–]\s+)(?=\S)", text)
    if first:
        index, rest = _index(first[1] or first[2]), text[first.end() :]
        if first[3] or index in _by_text(rest, options):
            return {index} | _contradicting(rest, index, options)
    # After "the answer is" a letter ends with the text or at a sign: "the answer is a cube" names no letter.
    said_how = [
        re.compile(rf"[(\[]\s*({either})\s*[)\]]"),
        re.compile(rf"([{known}])(?=\s*[.,;:)\]\n]|\s*$)"),
        re.compile(rf"({either})\s*+\.?\s*+$"),
    ]
    meant: set[int] = set()
    rests = _Rests(text, options)
    for phrase in _PHRASE.finditer(text):
        said = next((found for how in said_how if (found := how.match(text, phrase.end()))), None)
        if said:
            index = _index(said[1])
            meant |= {index} | rests.contradicting(said.end(), index)
    return meant


def _contradicting(rest: str, index: int, options: Sequence[str]) -> set[int]:
    return _Rests(rest, options).contradicting(0, index)


class _Rests:
    """What follows a letter in a text, which may say many: every rest is read without going through all of it."""

    def __init__(self, text: str, options: Sequence[str]) -> None:
        self.text, self.options = text, options
        self._end = len(text.rstrip(_AROUND))

    def contradicting(self, start: int, index: int) -> set[int]:
        """What follows may be the letter's own option or words of explanation, but not another option or letter."""
        others = _by_text(self.text[start:].strip(_AROUND), self.options) if start >= self._nearest else set()
        if index in others:
            return set()
        return others | {letter for letter, place in self._last.items() if place >= start}

    @cached_property
    def _last(self) -> dict[int, int]:
        """{letter: where it stands last}."""
        known = LETTERS[: len(self.options)]
        letter = re.compile(rf"(?:[(\[]([{known}])[)\]]|(?<![\w'])([{known}])[.):](?=\s|$))")
        return {_index(found[1] or found[2]): found.start() for found in letter.finditer(self.text, 0, self._end)}

    @cached_property
    def _nearest(self) -> int:
        """Where the longest rest begins that can be an option: what begins before it is longer than all of them, also
        without all that may be stripped, and where up to ``COMPOSED`` characters become one."""
        uncounted = _AROUND + _QUOTES
        left = COMPOSED * (max((len(_folded(option)) for option in self.options), default=0) + 1)
        for place in range(self._end - 1, -1, -1):
            if not (self.text[place].isspace() or self.text[place] in uncounted):
                left -= 1
                if left < 0:
                    return place + 1
        return 0


def _index(letter: str) -> int:
    return LETTERS.index(letter.upper())
