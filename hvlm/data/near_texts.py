"""Which of many texts are most like another one, by the words that they have in common."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable

import numpy as np


class NearTexts:
    """Texts by their words and pairs of neighbouring words; cheap to pickle.

    texts: each counts once, in the order in which it first comes.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = list(dict.fromkeys(texts))
        places: dict[str, list[int]] = defaultdict(list)
        sizes = []
        for place, text in enumerate(self.texts):
            parts = _parts(text)
            sizes.append(len(parts))
            for part in parts:
                places[part].append(place)
        self._places = {part: np.array(found, np.int32) for part, found in places.items()}
        self._sizes = np.array(sizes, np.int64)

    def __len__(self) -> int:
        return len(self.texts)

    def near(self, text: str, most: int, without: Collection[str] = ()) -> list[str]:
        """The ``most`` texts with the largest share of parts in common (Jaccard), nearest first, the first of equals
        first; fewer where no more have any.

        Args:
            text: need not be one of them, and is not among those returned.
            most: at least 1.
            without: texts that are not returned either.
        """
        parts = _parts(text)
        found = [self._places[part] for part in parts if part in self._places]
        if not found:
            return []
        common = np.bincount(np.concatenate(found), minlength=len(self.texts))
        some = np.flatnonzero(common)
        share = common[some] / (len(parts) + self._sizes[some] - common[some])
        least = most + 1 + len(without)  # as many as may be needed
        if len(some) > least:
            some, share = (x[share >= np.partition(share, -least)[-least]] for x in (some, share))
        order = some[np.argsort(-share, kind="stable")]
        near = (self.texts[place] for place in order.tolist())
        return [other for other in near if other != text and other not in without][:most]


def _parts(text: str) -> set[str]:
    words = re.findall(r"\w+", text.casefold())
    return {*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))}
