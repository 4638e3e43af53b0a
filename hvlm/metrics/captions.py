"""CIDEr-D, BLEU and ROUGE-L as COCO's caption evaluation computes them, over items of words.

An item is (words of the candidate, words of each reference); ``hvlm.metrics.words.all_words`` makes them of texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

Words = Sequence[str]
Item = tuple[Words, Sequence[Words]]
ORDERS = 4  # n-grams of 1 to so many words
_SIGMA = 6.0  # of CIDEr-D's penalty for another length
_BETA = 1.2  # of ROUGE-L: recall counts so many times as much as precision
_TINY, _SMALL = 1e-15, 1e-9  # COCO's, so that nothing is divided by 0


def ngrams(of: Words, n: int) -> Counter[tuple[str, ...]]:
    """How often each run of ``n`` words occurs."""
    return Counter(tuple(of[i : i + n]) for i in range(len(of) - n + 1))


# ------------------------------------------------------------------------------------------------------------ CIDEr-D


def cider_d(items: Sequence[Item]) -> list[float]:
    """CIDEr-D of every item (Vedantam et al. 2015), 0 to 10; the corpus' figure is their mean.

    An n-gram weighs less the more items have it in their references, so the figure of an item depends on all of them,
    and with one item everything weighs 0.
    """
    counts = [[[ngrams(reference, n) for n in range(1, ORDERS + 1)] for reference in item[1]] for item in items]
    documents: Counter[tuple[str, ...]] = Counter()
    for references in counts:
        documents.update({gram for orders in references for grams in orders for gram in grams})
    total = math.log(len(items)) if items else 0.0

    def vector(grams: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        return {gram: n * (total - math.log(max(1, documents[gram]))) for gram, n in grams.items()}

    scores = []
    for (candidate, _), references in zip(items, counts, strict=True):
        own = [ngrams(candidate, n) for n in range(1, ORDERS + 1)]
        vectors = [vector(grams) for grams in own]
        found = 0.0
        for reference in references:
            apart = own[1].total() - reference[1].total()  # of bigrams, as in COCO's code
            similar = sum(_cosine(mine, vector(theirs)) for mine, theirs in zip(vectors, reference, strict=True))
            found += math.exp(-(apart**2) / (2 * _SIGMA**2)) * similar / ORDERS
        scores.append(10 * found / len(references))
    return scores


def _cosine(candidate: dict[tuple[str, ...], float], reference: dict[tuple[str, ...], float]) -> float:
    """Cosine of the two, where the candidate gets for no n-gram more than the reference has."""
    norm = math.sqrt(sum(v * v for v in candidate.values())) * math.sqrt(sum(v * v for v in reference.values()))
    return (
        sum(min(v, reference.get(g, 0.0)) * reference.get(g, 0.0) for g, v in candidate.items()) / norm if norm else 0.0
    )


# --------------------------------------------------------------------------------------------------------------- BLEU


class BleuCounts(NamedTuple):
    """matched, possible: n-grams of each order; candidate, reference: words. Counts of a corpus are sums."""

    matched: tuple[int, ...]
    possible: tuple[int, ...]
    candidate: int
    reference: int


def bleu_counts(item: Item) -> BleuCounts:
    """Of one item: n-grams that a reference has, too, and the length of the reference of the nearest length (of two as
    near the shorter)."""
    candidate, references = item
    matched = []
    for n in range(1, ORDERS + 1):
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= ngrams(reference, n)
        matched.append((ngrams(candidate, n) & most).total())
    nearest = min((abs(len(r) - len(candidate)), len(r)) for r in references)[1]
    possible = tuple(max(0, len(candidate) - n) for n in range(ORDERS))
    return BleuCounts(tuple(matched), possible, len(candidate), nearest)


def bleu(counts: BleuCounts) -> list[float]:
    """BLEU-1 to 4 of a corpus (Papineni et al. 2002), 0 to 1; all 0 where it has no words."""
    if counts.candidate == 0:
        return [0.0] * ORDERS
    ratio = (counts.candidate + _TINY) / (counts.reference + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, found = 1.0, []
    for n, (matched, possible) in enumerate(zip(counts.matched, counts.possible, strict=True), start=1):
        product *= (matched + _TINY) / (possible + _SMALL)
        found.append(product ** (1 / n) * penalty)
    return found


# ------------------------------------------------------------------------------------------------------------ ROUGE-L


def rouge_l(item: Item) -> float:
    """ROUGE-L of one item (Lin 2004), 0 to 1, with COCO's beta of 1.2: the best precision and the best recall of the
    longest common subsequence, each over all references."""
    candidate, references = item
    common = [(_common(candidate, reference), len(reference)) for reference in references]
    recall = max(n / length if length else 0.0 for n, length in common)
    precision = max(n for n, _ in common) / len(candidate) if candidate else 0.0
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(one: Words, other: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for j, against in enumerate(other, start=1):
            row[j], before = (before + 1 if word == against else max(row[j], row[j - 1])), row[j]
    return row[-1]
