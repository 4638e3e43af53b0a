"""Clips drawn from several sources, each with a share of its own, as a pure function of (seed, position).

Which source a position shows is drawn from the shares; which of its clips, by going through a permutation of them and,
when it has come to its end, through another. A small source therefore comes round more often than a large one, and each
clip of a source as often as any other of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from hvlm.errors import UserError

_WHICH, _CLIPS = 3, 4  # streams of random numbers beside those of hvlm/data/order.py


def shares_of(weights: Mapping[str, float], temperature: float) -> dict[str, float]:
    """{source: probability}: proportional to weight ** (1 / temperature). At 1 as the weights are, above more even."""
    logs = {name: np.log(weight) / temperature for name, weight in weights.items() if weight > 0}
    most = max(logs.values())
    scaled = {name: float(np.exp(value - most)) for name, value in logs.items()}
    return {name: value / sum(scaled.values()) for name, value in sorted(scaled.items())}


class Drawn:
    """The clips of a whole run of ``steps`` batches.

    Args:
        domains: the source of each clip.
        shares: {source: probability}, which together are 1. Those that are not named give none.
        batch_size: clips of a batch.
        steps: batches.
        seed: of the draw.
    """

    def __init__(
        self, domains: Sequence[str], shares: Mapping[str, float], *, batch_size: int, steps: int, seed: int
    ) -> None:
        names = np.asarray(domains)
        self.names = sorted(name for name, share in shares.items() if share > 0)
        self._clips = [np.flatnonzero(names == name) for name in self.names]
        if empty := [name for name, clips in zip(self.names, self._clips, strict=True) if not len(clips)]:
            raise UserError(f"dataset.weights.{empty[0]}: no clips of its training split; set its weight to 0")
        self.batch_size, self.seed = batch_size, seed
        edges = np.cumsum([shares[name] for name in self.names])
        # The first k draws do not depend on how many follow, so a longer run begins like a shorter one.
        draws = np.random.default_rng([seed, 0, _WHICH]).random(steps * batch_size)
        self._source = np.minimum(np.searchsorted(edges, draws, side="right"), len(edges) - 1).astype(np.uint16)
        each = self._source.reshape(steps, batch_size)
        counts = np.stack([(each == s).sum(1) for s in range(len(self.names))], axis=1)
        self._before = np.concatenate([np.zeros((1, len(self.names)), np.int64), counts.cumsum(0)])
        self._permutation = lru_cache(2 * len(self.names))(self._draw_permutation)

    def batch(self, number: int) -> list[tuple[int, int]]:
        """(epoch of its source, index) of each clip of a batch, counted among batches of clips."""
        drawn = self._before[number].copy()
        out = []
        for s in self._source[number * self.batch_size : (number + 1) * self.batch_size]:
            epoch, place = divmod(int(drawn[s]), len(self._clips[s]))
            out.append((epoch, int(self._permutation(int(s), epoch)[place])))
            drawn[s] += 1
        return out

    def epochs(self) -> dict[str, float]:
        """{source: how often the run goes through it}."""
        return {n: float(k) / len(c) for n, k, c in zip(self.names, self._before[-1], self._clips, strict=True)}

    def _draw_permutation(self, source: int, epoch: int) -> np.ndarray:
        # By its name, so that a source's own order is the same in another mixture.
        name = [int(byte) for byte in self.names[source].encode("utf-8", "surrogatepass")]
        return np.random.default_rng([self.seed, epoch, _CLIPS, *name]).permutation(self._clips[source])
