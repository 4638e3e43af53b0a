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
from typing import Any, NamedTuple

from hvlm.prompts import LETTERS

MISSING, UNREAD, AMBIGUOUS = "missing", "unread", "ambiguous"

_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_FRAMED = re.compile(r"<answer>(.*?)</answer>|\\boxed\{(?:\\text\{)?(.*?)\}?\}", re.DOTALL | re.IGNORECASE)
_MARKS = re.compile(r"[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}")  # Markdown's emphasis
PHRASES = 8  # such as "the answer is" that may stand before each other; a text of nothing else means no option
_QUOTES = "\"'“”‘’«»„"
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
    framed = {a or b for a, b in _FRAMED.findall(text)}
    if len(framed) == 1:
        text = framed.pop()
    return _MARKS.sub("", text).strip().strip(_QUOTES).strip()


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
    if alone := re.fullmatch(rf"[(\[]?\s*({either})\s*[)\]]?\s*[.:,;]?", text):
        return {_index(alone[1])}
    # A letter with its sign, then the option or a reason. In lower case only in brackets: "a - b" is no choice.
    first = re.match(rf"(?:[(\[]\s*({either})\s*[)\]]|([{known}])\s*[.):\]])(\s*[:.\-–]?\s*)(?=\S)", text)
    first = first or re.match(rf"()([{known}])(\s+[-–]\s+)(?=\S)", text)
    if first:
        index, rest = _index(first[1] or first[2]), text[first.end() :]
        if first[3] or index in _by_text(rest, options):
            return {index} | _contradicting(rest, index, options)
    meant: set[int] = set()
    for phrase in _PHRASE.finditer(text):
        # After "the answer is" a letter ends with the text or at a sign: "the answer is a cube" names no letter.
        rest = text[phrase.end() :]
        said = re.match(rf"[(\[]\s*({either})\s*[)\]]", rest)
        said = said or re.match(rf"([{known}])(?=\s*[.,;:)\]\n]|\s*$)", rest)
        said = said or re.match(rf"({either})\s*\.?\s*$", rest)
        if said:
            index = _index(said[1])
            meant |= {index} | _contradicting(rest[said.end() :], index, options)
    return meant


def _contradicting(rest: str, index: int, options: Sequence[str]) -> set[int]:
    """What follows a letter may be its own option or words of explanation, but not another option or letter."""
    rest = rest.strip(" \t\n:.-–")
    others = _by_text(rest, options)
    if index in others:
        return set()
    known = LETTERS[: len(options)]
    letters = re.findall(rf"(?:[(\[]([{known}])[)\]]|(?<![\w'])([{known}])[.):](?=\s|$))", rest)
    return others | {_index(a or b) for a, b in letters}


def _index(letter: str) -> int:
    return LETTERS.index(letter.upper())
