"""METEOR with its modules "exact" and "stem", over items of words.

METEOR 1.5 (Denkowski and Lavie 2014) with its parameters for English also matches synonyms (WordNet) and paraphrases,
from tables that are not here, so these figures are below those of the whole and not to be compared with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hvlm.metrics.stem import stem

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # of METEOR 1.5 for English
STEM_WEIGHT = 0.6  # of a match of stems; one of words counts 1
# Words that make up more than a thousandth of English text: METEOR counts them less, as it does its list of such words.
FUNCTION_WORDS = frozenset(
    """
    the to of and a in that for is on 's it with was as said at he by be from have has are his but an this not i will
    they who their had we which were been more or s its would about new one after you also up when there than all out
    her people she year two can if last first over other into some what so no time years could 't
    """.split()
)  # fmt: skip
_BEAM = 40  # partial alignments that are kept


class MeteorCounts(NamedTuple):
    """Of one candidate with one reference; those of a corpus are sums. candidate, reference: lengths in words,
    weighted; matched: candidate words with a partner, and reference words, both weighted. pairs: their number.
    chunks: runs of pairs that stand in the same order in both, 0 where both are the same from end to end."""

    candidate: float
    reference: float
    matched_candidate: float
    matched_reference: float
    pairs: int
    chunks: int


def meteor(counts: MeteorCounts) -> float:
    """The score, 0 to 1, of one item or of a corpus."""
    if counts.pairs == 0:
        return 0.0
    precision = counts.matched_candidate / counts.candidate
    recall = counts.matched_reference / counts.reference
    mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    return mean * (1 - GAMMA * (counts.chunks / counts.pairs) ** BETA)


def meteor_counts(item: tuple[Sequence[str], Sequence[Sequence[str]]]) -> MeteorCounts:
    """Counts of an item with the reference that gives it the best score (of equals the first)."""
    candidate, references = item
    return max((_counts(candidate, reference) for reference in references), key=meteor)


def _counts(candidate: Sequence[str], reference: Sequence[str]) -> MeteorCounts:
    pairs, chunks = _align(candidate, reference)
    own = theirs = 0.0
    for i, j in pairs:
        weight = 1.0 if candidate[i] == reference[j] else STEM_WEIGHT
        own += weight * _weight(candidate[i])
        theirs += weight * _weight(reference[j])
    whole = chunks == 1 and len(pairs) == len(candidate) == len(reference)
    lengths = sum(map(_weight, candidate)), sum(map(_weight, reference))
    return MeteorCounts(*lengths, own, theirs, len(pairs), 0 if whole else chunks)


def _weight(word: str) -> float:
    return 1 - DELTA if word in FUNCTION_WORDS else DELTA


class _Alignment(NamedTuple):
    """pairs: (place in the candidate, place in the reference). apart: sum of the distances of their places."""

    pairs: tuple[tuple[int, int], ...] = ()
    chunks: int = 0
    apart: int = 0

    @property
    def rank(self) -> tuple[int, int, int]:
        return -len(self.pairs), self.chunks, self.apart


def _align(candidate: Sequence[str], reference: Sequence[str]) -> tuple[tuple[tuple[int, int], ...], int]:
    """(pairs, chunks) of the alignment with most pairs, among these with fewest chunks, among these with the nearest
    places. As in METEOR a search that keeps the best ``_BEAM`` partial alignments."""
    of_stem: dict[str, list[int]] = {}
    for j, word in enumerate(reference):
        of_stem.setdefault(stem(word), []).append(j)
    beam = [_Alignment()]
    for i, word in enumerate(candidate):
        partners = of_stem.get(stem(word), [])
        if not partners:
            continue
        grown = list(beam)
        for one in beam:
            used = {j for _, j in one.pairs}
            last = one.pairs[-1] if one.pairs else (-2, -2)
            for j in partners:
                if j not in used:
                    goes_on = (i - 1, j - 1) == last
                    grown.append(_Alignment((*one.pairs, (i, j)), one.chunks + (not goes_on), one.apart + abs(i - j)))
        beam = sorted(grown, key=lambda a: a.rank)[:_BEAM]
    return beam[0].pairs, beam[0].chunks
