"""How a written answer becomes an option: this program's strict reading, and the lenient ones of published scorers.

The published rules are followed so that a figure can be compared with the literature, with one exception: what cannot
be read is always wrong and counted. Published scorers drop it from the denominator, take an empty text for right, or
draw lots.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from hvlm.evaluation.answers import AMBIGUOUS, MISSING, UNREAD, Reading, read_answer
from hvlm.prompts import LETTERS

# Forms of a letter, the surest last; each finds the letter in its group. Of equals the last in the text counts.
_FORMS = ("{x}", "{x} ", "{x})", "{x}:", "{x}.", "({x})")
# Published with ``\s*``; ``\s*+`` finds the same, and does not try every division of a long run of spaces.
_PHRASE = re.compile(r"(?:answer|option|choice)\s*+(?:is|:)?\s*+:?\s*+\(?([A-Z])\b")
_BEFORE = (
    "The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is",
    "The correct option is", "Final Answer:", "Best answer:", "Best option:", "Answer:", "Option:",
)  # fmt: skip


def strict(text: str, options: Sequence[str]) -> Reading:
    """See ``hvlm.evaluation.answers``: nothing is guessed."""
    return read_answer(text, options, True)


def letter_priority(text: str, options: Sequence[str]) -> Reading:
    """lmms-eval's for Video-MME: a letter at the text's start, at its end, after "answer is", then (A), A., A:, A), A
    and a space, any other; of equals the last."""
    text = text.strip().strip(".,:;!?\"' \n")
    if not text:
        return Reading(None, MISSING)
    known = LETTERS[: len(options)]
    found: list[tuple[int, int, str]] = []
    if start := re.match(rf"([{known}])(?![\w'])", text):
        found.append((10, 0, start[1]))
    if end := re.search(rf"(?<![\w'])([{known}])$", text):
        found.append((9, end.start(), end[1]))
    found += [(8, one.start(), one[1]) for one in _PHRASE.finditer(text) if one[1] in known]
    for rank, form in enumerate(_FORMS):
        shape = re.escape(form).replace(re.escape("{x}"), f"([{known}])")
        bounds = ("", "") if form.startswith("(") else (r"(?<!\w)", r"(?!\w)" if form == "{x}" else "")
        found += [(rank, one.start(), one[1]) for one in re.finditer(bounds[0] + shape + bounds[1], text)]
    return Reading(LETTERS.index(max(found)[2])) if found else Reading(None, UNREAD)


def first_letter(text: str, options: Sequence[str]) -> Reading:
    """lmms-eval's for MVBench: a letter with a full stop at the start; else without punctuation the first letter that
    stands alone, in either case: the article "a" is A."""
    if not text.strip():
        return Reading(None, MISSING)
    known = LETTERS[: len(options)]
    if start := re.match(rf"([{known}])\.", text.strip()):
        return Reading(LETTERS.index(start[1]))
    bare = text.translate(str.maketrans("", "", string.punctuation)).upper()
    alone = re.search(rf"\b([{known}])\b", bare)
    return Reading(LETTERS.index(alone[1])) if alone else Reading(None, UNREAD)


def first_word(text: str, options: Sequence[str]) -> Reading:
    """VideoChat2's for MVBench: the first word of the first line, if it is part of "(a)" or has it as a part. There, a
    word without a letter, such as ")", is right whatever was asked; here it is unread."""
    words = text.strip().split("\n")[0].split()
    if not words:
        return Reading(None, MISSING)
    word = words[0].lower().replace(".", "")
    marks = [f"({letter})" for letter in LETTERS[: len(options)].lower()]
    meant = [i for i, mark in enumerate(marks) if mark in word or (word in mark and word.strip("()"))]
    if len(meant) > 1:
        return Reading(None, AMBIGUOUS)
    return Reading(meant[0]) if meant else Reading(None, UNREAD)


def starts_with_letter(text: str, options: Sequence[str]) -> Reading:
    """lmms-eval's for ScienceQA: the letter alone, in either case, or a capital and a full stop at the start."""
    text = text.strip()
    if not text:
        return Reading(None, MISSING)
    known = LETTERS[: len(options)]
    if len(text) == 1 and text.upper() in known:
        return Reading(LETTERS.index(text.upper()))
    return Reading(LETTERS.index(text[0])) if text[0] in known and text[1:2] == "." else Reading(None, UNREAD)


def first_capital(text: str, options: Sequence[str]) -> Reading:
    """LongVideoBench's, Video-MME's first and Video-MME-v2's: the first capital letter of an option anywhere in the
    text, behind phrases such as "The answer is". LongVideoBench's draws lots where there is none; here it is unread."""
    if not text.strip():
        return Reading(None, MISSING)
    for phrase in _BEFORE:
        text = text.replace(phrase, "")
    found = re.search(f"[{LETTERS[: len(options)]}]", text)
    return Reading(LETTERS.index(found[0])) if found else Reading(None, UNREAD)


PARSERS: dict[str, Callable[[str, Sequence[str]], Reading]] = {
    "strict": strict,
    "letter_priority": letter_priority,
    "first_letter": first_letter,
    "first_word": first_word,
    "starts_with_letter": starts_with_letter,
    "first_capital": first_capital,
}
