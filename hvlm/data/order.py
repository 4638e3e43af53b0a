"""Which samples make up batch number p: a pure function of (seed, p).

Workers, ranks and restarts therefore cannot change what is seen: a run resumes by starting at another position, and a
rank takes its block of rows out of each global batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from hvlm.data.budget import Planned, window_of
from hvlm.data.shares import Drawn
from hvlm.errors import UserError

log = logging.getLogger(__name__)

_TEXTS, _WHICH = 1, 2  # streams of random numbers beside that of the clips, which is (seed, epoch)


class SampleRef(NamedTuple):
    """One sample of a batch: row ``index`` of the clips (or of the text-only chats if ``text``), seen in ``epoch``."""

    epoch: int
    index: int
    text: bool = False


class Order:
    """A batch sampler over a whole run of ``steps`` batches.

    domains: the domain of each clip. batch_size: samples of one batch over all ranks.
    mixture: {domain: weight}. In every epoch a domain gives the share weight / (largest weight) of its clips, another
        random part each time; a domain that is not named gives none. None: all clips.
    texts: number of text-only chats; interleave: probability that a whole batch is made of them.
    accumulate: in how many parts, one after the other, each batch is handed out.
    shares: {domain: probability}, by which each clip's domain is drawn (``hvlm/data/shares.py``), in place of mixture.
    plan: makes batches of another size of the same draws (``hvlm/data/budget.py``), of clips and of texts; called with
        what it takes beside lengths and budget. None: all have ``batch_size``, and else none has more.
    repeat: the first so many batches come again and again, in the same frames and questions; None: every batch is new.
    start: the first batch to hand out; ``len`` is the length of the whole run, in parts, wherever it starts.
    """

    def __init__(
        self,
        domains: Sequence[str],
        *,
        batch_size: int,
        steps: int,
        seed: int,
        mixture: Mapping[str, float] | None = None,
        shares: Mapping[str, float] | None = None,
        texts: int = 0,
        interleave: float = 0.0,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        accumulate: int = 1,
        repeat: int | None = None,
        plan: Callable[..., Planned] | None = None,
    ) -> None:
        check_shares(batch_size, world, accumulate)
        if interleave > 0 and not texts:
            raise UserError(
                f"stage.interleave={interleave:g} asks for text-only batches, but the data has no text split; set "
                "stage.interleave=0"
            )
        self.batch_size, self.steps, self.seed, self.texts = batch_size, steps, seed, texts
        self.rank, self.world, self.start, self.accumulate = rank, world, start, accumulate
        self.repeat = repeat
        self.drawn = None
        if shares is None:
            self._pools = _pools(domains, mixture)
            self._per_epoch = sum(take for _, take in self._pools)
        else:
            # A plan sorts whole windows of batches, the last of which may go on behind the end of the run.
            self._per_epoch = len(domains)
            drawn = steps if plan is None else steps + window_of(self._per_epoch, batch_size)
            self.drawn = Drawn(domains, shares, batch_size=batch_size, steps=drawn, seed=seed)
        # The first k draws do not depend on how many follow, so a longer run begins like a shorter one.
        self._is_text = np.random.default_rng([seed, 0, _WHICH]).random(steps) < interleave
        self._texts_before = np.concatenate([[0], np.cumsum(self._is_text)])
        self._clip_epoch = lru_cache(2)(self._clip_permutation)
        self._text_epoch = lru_cache(2)(self._text_permutation)
        self._planned: dict[bool, Planned] = {}
        if plan is not None:
            for text, epoch in ((False, self._per_epoch), (True, texts if interleave > 0 else 0)):
                if epoch:
                    nominal = partial(self._nominal, text=text)
                    how = {"epoch": epoch, "most": batch_size, "least": world * accumulate, "seed": seed, "text": text}
                    self._planned[text] = plan(nominal, **how)

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[SampleRef]]:
        first = self.rank * self.accumulate
        for step in range(self.start, self.steps):
            yield from in_parts(self.at(step), self.world * self.accumulate)[first : first + self.accumulate]

    def at(self, step: int) -> list[SampleRef]:
        """All picks of batch ``step``, of every rank."""
        step = step if self.repeat is None else step % self.repeat
        text = bool(self._is_text[step])
        before = int(self._texts_before[step])
        number = before if text else step - before
        return self._planned[text].batch(number) if self._planned else self._nominal(number, text)

    def _nominal(self, number: int, text: bool) -> list[SampleRef]:
        """The draws of the batch ``number`` of clips, or of texts."""
        if self.drawn is not None and not text:
            return [SampleRef(epoch, index) for epoch, index in self.drawn.batch(number)]
        first = number * self.batch_size
        size, permutation = (self.texts, self._text_epoch) if text else (self._per_epoch, self._clip_epoch)
        places = (divmod(position, size) for position in range(first, first + self.batch_size))
        return [SampleRef(epoch, int(permutation(epoch)[place]), text) for epoch, place in places]

    def _clip_permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        return rng.permutation(np.concatenate([rng.permutation(pool)[:take] for pool, take in self._pools]))

    def _text_permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, _TEXTS]).permutation(self.texts)


def in_parts(picks: Sequence[SampleRef], parts: int) -> list[list[SampleRef]]:
    """A batch in so many parts of equal size, or nearly so where it cannot be cut evenly."""
    edges = [i * len(picks) // parts for i in range(parts + 1)]
    return [list(picks[begin:end]) for begin, end in pairwise(edges)]


def check_shares(batch_size: int, world: int, accumulate: int) -> None:
    """UserError where a batch cannot be cut into equal shares of the processes, and these into equal parts."""
    if batch_size % (world * accumulate):
        parts = f", {accumulate} parts each (trainer.accumulate)" if accumulate > 1 else ""
        raise UserError(
            f"stage.batch_size={batch_size} cannot be shared by {world} processes{parts}; make it a multiple of "
            f"{world * accumulate}"
        )


def _pools(domains: Sequence[str], mixture: Mapping[str, float] | None) -> list[tuple[np.ndarray, int]]:
    """(indices of a domain's clips, how many of them an epoch takes) for each domain with a positive weight."""
    names = np.asarray(domains)
    present = sorted(set(domains))
    if mixture is None:
        mixture = dict.fromkeys(present, 1.0)
    if any(weight < 0 for weight in mixture.values()):
        raise UserError(f"domain.mixture={dict(mixture)}: a weight must not be negative")
    chosen = {name: weight for name, weight in mixture.items() if weight > 0 and name in present}
    if not chosen:
        raise UserError(
            f"domain.mixture={dict(mixture)} selects nothing; the data has the domains {', '.join(present)}; "
            "domain.mixture=null takes all of them"
        )
    absent = sorted(name for name, weight in mixture.items() if weight > 0 and name not in present)
    if absent and (len(chosen) < len(present) or len(set(mixture.values())) > 1):  # else all the data are taken alike
        log.warning("domain.mixture names %s, which the data does not have", ", ".join(absent))
    largest = max(chosen.values())
    pools = [(np.flatnonzero(names == name), weight / largest) for name, weight in sorted(chosen.items())]
    return [(pool, max(1, round(share * len(pool)))) for pool, share in pools]


def takes_all_alike(domains: Sequence[str], mixture: Mapping[str, float] | None) -> bool:
    """Whether a mixture takes every clip of the data once in an epoch, as None does."""
    weights = {mixture.get(name, 0.0) for name in domains} if mixture is not None else {1.0}
    return len(weights) == 1 and min(weights) > 0


class InOrder:
    """A batch sampler for evaluation: the given clips once, in order; rank r takes its block of every batch. skip: some
    of them that are left out, which changes no other clip's batch."""

    def __init__(
        self, indices: Sequence[int], *, batch_size: int, rank: int = 0, world: int = 1, skip: Container[int] = ()
    ) -> None:
        if batch_size % world:
            raise UserError(
                f"batch_size={batch_size} cannot be shared by {world} processes; make it a multiple of {world}"
            )
        self.batch_size, self.rank, self.world = batch_size, rank, world
        batches = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
        kept = [[int(i) for i in batch if i not in skip] for batch in batches]
        self.batches = [batch for batch in kept if batch]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for batch in self.batches:
            share = -(-len(batch) // self.world)
            yield [SampleRef(0, i) for i in batch[self.rank * share : (self.rank + 1) * share]]
