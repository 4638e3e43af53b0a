"""Options of a multiple-choice question, however they are written, and how a table writes which one is right."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from hvlm.errors import UserError
from hvlm.prepare.problems import Problem

Answers = Literal["text", "letter", "index0", "index1"]
LONGEST = 1 << 16  # characters of a list that is written as text
_LETTER = re.compile(r"\(?([A-Za-z])\)?\s*(?:[.):].*)?", re.DOTALL)
_PREFIX = re.compile(r"\s*\(?([A-Za-z])[.):]\s*")


def options_of(values: Sequence[Any]) -> list[str]:
    """The options of a row: of one cell, or one of each cell. Raises Problem."""
    options = [str(v).strip() for v in values if v not in (None, "")] if len(values) > 1 else _listed(values[0])
    options = _without_letters(options)
    if not options or not all(options):
        raise Problem("no options", "the options are empty, or one of them is")
    if len(options) > 26:
        raise Problem("no options", f"{len(options)} options, at most 26 have letters")
    if len(set(options)) < len(options):
        twice = next(o for o in options if options.count(o) > 1)
        raise Problem("no options", f"the option {twice[:60]!r} stands there twice")
    return options


def fitting(answer: Any, options: Sequence[str]) -> set[Answers]:
    """The ways in which an answer names one of the options."""
    text = str(answer).strip()
    fits: set[Answers] = set()
    if text in options or _bare(text) in options:
        fits.add("text")
    found = _LETTER.fullmatch(text)
    if found and ord(found[1].upper()) - ord("A") < len(options):
        fits.add("letter")
    if (number := _whole(answer)) is not None:
        if 0 <= number < len(options):
            fits.add("index0")
        if 1 <= number <= len(options):
            fits.add("index1")
    return fits


def way(counts: dict[Answers, int]) -> Answers:
    """The way that most rows of a table allow; the option's text before a letter where both do. Raises UserError."""
    best = max(counts.values(), default=0)
    ways: list[Answers] = [name for name in ("text", "letter", "index0", "index1") if counts.get(name, 0) == best]
    if not best:
        raise UserError("answers: none is an option's text, letter or number; say options=… and answer=…")
    if "text" in ways and len(ways) > 1 and ways != ["text", "letter"]:
        raise UserError(f"answers: they could be {' or '.join(ways)}; say which with answers={ways[0]}")
    if ways == ["index0", "index1"]:
        raise UserError(
            "answers: they are numbers, and none is 0 or the last one's, so they may count from 0 or from 1; say which "
            "with answers=index0 or answers=index1"
        )
    return ways[0]


def right(answer: Any, options: Sequence[str], how: Answers) -> str:
    """The text of the right option. Raises Problem."""
    text = str(answer).strip()
    if how == "text":
        for given in (text, _bare(text)):
            if given in options:
                return given
        raise Problem("wrong answer", f"the answer {text[:60]!r} is none of the {len(options)} options")
    if how == "letter":
        found = _LETTER.fullmatch(text)
        place = ord(found[1].upper()) - ord("A") if found else -1
    else:
        number = _whole(answer)
        place = -1 if number is None else number - (how == "index1")
    if not 0 <= place < len(options):
        kind = "letter" if how == "letter" else f"number from {how[-1]}"
        raise Problem("wrong answer", f"the answer {text[:60]!r} is no {kind} of the {len(options)} options")
    return options[place]


def _listed(value: Any) -> list[str]:
    if isinstance(value, dict):  # {"A": "...", "B": "..."}, or {"text": [...], "label": [...]}
        texts = value.get("text")
        return _listed(texts if isinstance(texts, list) else [value[k] for k in sorted(value)])
    if isinstance(value, (list, tuple)):
        if any(isinstance(v, (list, dict)) for v in value):
            raise Problem("no options", "expected a list of texts")
        return ["" if v is None else str(v).strip() for v in value]
    text = "" if value is None else str(value).strip()
    if text[:1] in ("[", "{") and len(text) <= LONGEST:
        for read in (json.loads, ast.literal_eval):
            try:
                return _listed(read(text))
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    for mark in ("\n", "|", ";"):
        if mark in text:
            return [part.strip() for part in text.split(mark) if part.strip()]
    raise Problem("no options", f"{text[:60]!r} is no list: expected [..], or texts between |, ; or line ends")


def _without_letters(options: list[str]) -> list[str]:
    """``A. cat``, ``B. dog`` → ``cat``, ``dog``."""
    found = [_PREFIX.match(option) for option in options]
    if len(options) > 1 and all(f and f[1].upper() == chr(ord("A") + i) for i, f in enumerate(found)):
        return [option[f.end() :].strip() for option, f in zip(options, found, strict=True) if f]
    return options


def _bare(text: str) -> str:
    found = _PREFIX.match(text)
    return text[found.end() :].strip() if found else text


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None
