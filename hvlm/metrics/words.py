"""A caption's words, as captioning metrics count them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# A number with its points and commas; a word with the hyphens and points inside it; or a mark of its own.
_TOKEN = re.compile(r"\d+(?:[.,:/]\d+)+|\w+(?:[-.]\w+)*|['’]\w+|[^\w\s]")
_NOT = re.compile(r"(?<=\w)(n['’]t)\b")
_ENDINGS = re.compile(r"(?<=\w)(['’](?:s|re|ve|ll|d|m))\b")
_DROPPED = set("'`.?!,:;-\"()[]{}…–—“”‘’")


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation, near to what COCO's evaluation makes with the Penn Treebank's rules:
    ``don't`` is ``do n't``, ``it's`` is ``it 's``, ``t-shirt`` and ``2.5`` are one word each. Its Java program is not
    run, so rare forms may be divided otherwise. Words are what stands between spaces and marks: a script without spaces
    is one long word.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = _ENDINGS.sub(r" \1", _NOT.sub(r" \1", text))
    found: list[str] = []
    for part in text.split():
        found += [part] if _NOT.sub("", "x" + part) == "x" else _TOKEN.findall(part)
    return [word.replace("’", "'") for word in found if word not in _DROPPED]


def all_words(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> list[tuple[list[str], list[list[str]]]]:
    """(words of the candidate, words of each of its references) of every item.

    Raises:
        ValueError: unequal numbers of candidates and sets of references, a text in place of a set, or an empty set.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates and {len(references)} sets of references: expected as many")
    for i, of_one in enumerate(references):
        if isinstance(of_one, str) or not of_one:
            raise ValueError(f"references[{i}] is {of_one!r:.40}: expected one reference or more, in a list")
    return [(words(c), [words(r) for r in of_one]) for c, of_one in zip(candidates, references, strict=True)]
