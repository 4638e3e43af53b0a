"""Train, val and test by source: whatever shares a source, a file or its content stands in one split.

The draw is a function of (seed, name of the source) and of nothing else, so that a table that grows keeps its splits. A
split that would come out empty is given the source that was drawn nearest to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence

from hvlm.prepare.settings import SPLITS


class Groups:
    """What belongs together (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def join(self, names: Iterable[Hashable]) -> None:
        first, *others = [self.of(name) for name in names]
        for other in others:
            self._parent[self.of(other)] = self.of(first)

    def of(self, name: Hashable) -> Hashable:
        """What stands for the group of ``name``."""
        self._parent.setdefault(name, name)
        way = []
        while self._parent[name] != name:
            way.append(name)
            name = self._parent[name]
        for passed in way:
            self._parent[passed] = name
        return name


def drawn(names: Sequence[str], shares: Sequence[float], seed: int) -> dict[str, str]:
    """{name of a group: its split}, each by a number between 0 and 1 that its name gives."""
    place = {name: _number(name, seed) for name in names}
    edges = [(split, sum(shares[:i]), sum(shares[: i + 1])) for i, split in enumerate(SPLITS) if shares[i] > 0]
    split_of = {name: next((s for s, _, end in edges if x < end), edges[-1][0]) for name, x in place.items()}
    if len(place) >= len(edges):
        for split, start, end in edges:
            if split in split_of.values():
                continue
            held = {s: sum(v == s for v in split_of.values()) for s, _, _ in edges}
            most = max(held, key=lambda s: held[s])
            near = min(
                (n for n in place if split_of[n] == most), key=lambda n: (max(start - place[n], place[n] - end), n)
            )
            split_of[near] = split
    return split_of


def _number(name: str, seed: int) -> float:
    digest = hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
