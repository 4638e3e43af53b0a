"""The stem of an English word: Porter's second algorithm (Porter 2001, "English" of Snowball), which METEOR uses."""

from __future__ import annotations

import re
from functools import lru_cache

_VOWELS = "aeiouy"
_WHOLE = {
    "skis": "ski", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "idly": "idl", "gently": "gentl",
    "ugly": "ugli", "early": "earli", "only": "onli", "singly": "singl",
}  # fmt: skip
_KEPT = {"sky", "news", "howe", "atlas", "cosmos", "bias", "andes"}
_KEPT_LATER = {"inning", "outing", "canning", "herring", "earring", "proceed", "exceed", "succeed"}
_REGION = re.compile(r"[aeiouy][^aeiouy]")
_BEGINNING = re.compile(r"gener|commun|arsen")
_SHORT = re.compile(r"(?:[^aeiouy][aeiouy][^aeiouywxY]|^[aeiouy][^aeiouy])$")
_DOUBLE = ("bb", "dd", "ff", "gg", "mm", "nn", "pp", "rr", "tt")
_SECOND = {
    "tional": "tion", "enci": "ence", "anci": "ance", "abli": "able", "entli": "ent", "izer": "ize", "ization": "ize",
    "ational": "ate", "ation": "ate", "ator": "ate", "alism": "al", "aliti": "al", "alli": "al", "fulness": "ful",
    "ousli": "ous", "ousness": "ous", "iveness": "ive", "iviti": "ive", "biliti": "ble", "bli": "ble", "ogi": "og",
    "fulli": "ful", "lessli": "less", "li": "",
}  # fmt: skip
_THIRD = {
    "tional": "tion", "ational": "ate", "alize": "al", "icate": "ic", "iciti": "ic", "ical": "ic", "ful": "",
    "ness": "", "ative": "",
}  # fmt: skip
_FOURTH = (
    "al ance ence er ic able ible ant ement ment ent ism ate iti ous ive ize ion".split()
)  # fmt: skip


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The stem of a lower-case word; a word of other letters mostly stays as it is."""
    if len(word) <= 2 or word in _KEPT:
        return word
    if word in _WHOLE:
        return _WHOLE[word]
    word = re.sub(rf"(^|[{_VOWELS}])y", r"\1Y", word.removeprefix("'"))
    begun = _BEGINNING.match(word)
    first = begun.end() if begun else _after(word, 0)
    second = _after(word, first)
    word = _plural(re.sub(r"(?:'s'|'s|')$", "", word))
    if word in _KEPT_LATER:
        return word
    word = _past(word, first)
    if len(word) > 2 and word[-1] in "yY" and word[-2] not in _VOWELS:
        word = word[:-1] + "i"
    word = _shortened(word, first, second)
    if word.endswith("e") and (len(word) > second or (len(word) > first and not _SHORT.search(word[:-1]))):
        word = word[:-1]
    elif word.endswith("ll") and len(word) > second:
        word = word[:-1]
    return word.replace("Y", "y")


def _after(word: str, start: int) -> int:
    """Where the region begins that follows the first vowel with a consonant behind it."""
    found = _REGION.search(word, start)
    return found.end() if found else len(word)


def _plural(word: str) -> str:
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith(("ied", "ies")):
        return word[:-2] if len(word) > 4 else word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")) and any(c in _VOWELS for c in word[:-2]):
        return word[:-1]
    return word


def _past(word: str, first: int) -> str:
    ending = _longest(word, ("eedly", "ingly", "edly", "eed", "ing", "ed"))
    if not ending:
        return word
    rest = word[: -len(ending)]
    if ending.startswith("eed"):
        return rest + "ee" if len(rest) >= first else word
    if not any(c in _VOWELS for c in rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if rest.endswith(_DOUBLE):
        return rest[:-1]
    return rest + "e" if len(rest) <= first and _SHORT.search(rest) else rest


def _shortened(word: str, first: int, second: int) -> str:
    """Without the endings of derived words."""
    ending = _longest(word, _SECOND)
    rest = word[: len(word) - len(ending)]
    fits = {"ogi": rest.endswith("l"), "li": rest[-1:] in tuple("cdeghkmnrt")}.get(ending, True)
    if ending and len(rest) >= first and fits:
        word = rest + _SECOND[ending]
    ending = _longest(word, _THIRD)
    rest = word[: len(word) - len(ending)]
    if ending and len(rest) >= (second if ending == "ative" else first):
        word = rest + _THIRD[ending]
    ending = _longest(word, _FOURTH)
    rest = word[: len(word) - len(ending)]
    if ending and len(rest) >= second and (ending != "ion" or rest.endswith(("s", "t"))):
        word = rest
    return word


def _longest(word: str, endings: object) -> str:
    return max((e for e in endings if word.endswith(e)), key=len, default="")  # type: ignore[attr-defined]
