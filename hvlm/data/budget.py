"""Batches by frames and tokens in place of a number of clips: clips of like length together, as many as fit.

What would have been the batches of a window of the run is put together, sorted by length, cut where the padded frames
or tokens would be more than allowed, and shown in a random order. All of it is a function of the data, the settings and
the seed, so a run resumes at any step, and neither workers nor processes change a batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hvlm.data import samples
from hvlm.data.quarantine import SampleError
from hvlm.data.sample_fields import FieldError
from hvlm.data.tar import STILL_FIELDS, TEXT_FIELDS
from hvlm.data.views import chat_row
from hvlm.errors import UserError
from hvlm.image import IMAGE_FRAMES

if TYPE_CHECKING:
    from hvlm.data.order import SampleRef
    from hvlm.data.reader import SampleSpec
    from hvlm.data.shard_index import ShardSplit

_SHUFFLE = 5  # stream of random numbers beside those of hvlm/data/order.py and hvlm/data/shares.py; for texts one more
WINDOW = 2048  # clips that are sorted together, at most


class Budget(NamedTuple):
    """What the batch of an optimiser step may hold, over all its parts and processes, padding included: ``frames``, and
    ``tokens`` of text. None: any number."""

    frames: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, batch: Mapping[str, int] | None, access: str = "index") -> Budget | None:
        """Of the setting ``dataset.batch``. UserError for what it does not know, and for a stream."""
        if batch is None:
            return None
        if access == "stream":
            raise UserError("dataset.batch: dataset.access=stream knows no sample's length; use dataset.access=index")
        if not batch or set(batch) - set(cls._fields):
            raise UserError(
                f"dataset.batch={dict(batch)}: expected frames, tokens or both, as in "
                "'dataset.batch={frames:256,tokens:16384}'; null: stage.batch_size clips"
            )
        return cls(**batch)

    def __str__(self) -> str:
        said = ",".join(f"{name}:{value}" for name, value in self._asdict().items() if value is not None)
        return f"dataset.batch={{{said}}}"


class Lengths(NamedTuple):
    """Of each sample: how many frames are shown, tokens of its longest text row, and text rows; int64 [N] each, and
    none is ever more."""

    frames_N: np.ndarray
    tokens_N: np.ndarray
    rows_N: np.ndarray


def lengths_of(
    clips: ShardSplit, show: SampleSpec, budget: Budget, text: bool = False, domains: Container[str] | None = None
) -> Lengths:
    """Lengths of a split, without decoding anything: frames from the manifest (a video may have fewer than
    ``num_frames``, which it does not tell), texts, if tokens are limited, from every sample's JSON.

    Args:
        clips: the split.
        show: how its samples are shown.
        budget: which of the lengths count.
        text: they are text-only chats.
        domains: those that are drawn; the others' samples are no longer than anything. None: all.
    """
    n, most = len(clips), show.inputs.num_frames
    frames, tokens, rows = np.ones(n, np.int64), np.zeros(n, np.int64), np.ones(n, np.int64)
    rng = np.random.default_rng(0)
    for i in range(n):
        if domains is not None and clips.domains[i] not in domains:
            continue
        if not text and not show.text_only:
            stills = sum(field.rsplit(".", 1)[-1] in STILL_FIELDS for field in clips.fields(i))
            is_video = stills < len(clips.fields(i, media=True))
            frames[i] = min(most, most if is_video or not stills else IMAGE_FRAMES if stills == 1 else stills)
            if not show.view.has_text and show.rows_per_clip is not None:
                frames[i] = min(frames[i], show.rows_per_clip)  # of neighbouring ones
        if budget.tokens is None or not show.view.has_text:
            continue
        try:
            sample = samples.parse(clips.read(i, TEXT_FIELDS), clips.keys[i], clips.domains[i], clips.uid(i))
            every = [chat_row(sample)] if text else show.view.rows(sample, _times(sample), rng, None)
            drawn = 1 if text else len(show.view.rows(sample, _times(sample), rng, show.rows_per_clip))
        except (SampleError, FieldError):
            continue  # it is named and counted when it is drawn, and another shown in its place
        if every:
            longest = max(every, key=lambda row: show.characters(row))
            tokens[i], rows[i] = min(show.max_tokens, show.tokens(longest)), max(1, drawn)
    return Lengths(frames, tokens, rows)


def _times(sample: Mapping[str, Any]) -> np.ndarray:
    """Times at which everything is shown that any of the sample's texts asks for."""
    texts = [*sample["captions"], *sample["questions"]]
    return np.asarray(sorted({0.0, *(start for text in texts for start, _ in text["evidence"])}))


class _Held(NamedTuple):
    """What some samples need together: their number, frames and tokens of the longest, and text rows."""

    clips: int
    frames: int
    tokens: int
    rows: int

    def with_one(self, frames: int, tokens: int, rows: int) -> _Held:
        return _Held(self.clips + 1, max(self.frames, frames), max(self.tokens, tokens), self.rows + rows)


_NOTHING = _Held(0, 0, 0, 0)


class Planned:
    """Batches of a sequence of draws.

    Args:
        nominal: the draws that would be batch number i.
        epoch: samples of one; a window is no longer.
        most: clips of a batch, and of every nominal one.
        lengths: of the samples.
        budget: of a batch.
        least: parts that each batch must be cut into.
        name: of a sample, for messages.
        seed: of the order of a window's batches.
        text: whether they are text-only chats.
    """

    def __init__(
        self,
        nominal: Callable[[int], list[SampleRef]],
        *,
        epoch: int,
        most: int,
        lengths: Lengths,
        budget: Budget,
        least: int,
        name: Callable[[int], str],
        seed: int,
        text: bool = False,
    ) -> None:
        self._nominal, self._most, self._lengths, self._budget = nominal, most, lengths, budget
        self._seed, self._stream = seed, _SHUFFLE + text
        self.window = window_of(epoch, most)
        self._ends: list[int] = []  # batches up to the end of each window
        self._plan = lru_cache(2)(self._make)
        self._check(least, name)

    def batch(self, number: int) -> list[SampleRef]:
        """The draws of batch ``number``, in order of length."""
        while not self._ends or number >= self._ends[-1]:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + len(self._plan(len(self._ends))))
        window = bisect_right(self._ends, number)
        return self._plan(window)[number - (self._ends[window - 1] if window else 0)]

    def _make(self, window: int) -> list[list[SampleRef]]:
        frames, tokens, _ = self._lengths
        picks = [pick for i in range(window * self.window, (window + 1) * self.window) for pick in self._nominal(i)]
        # What a window holds twice (a small source, the next epoch) has one length, and would stand side by side: first
        # come all clips from the longest on, then back from the shortest those that come again, and so forth.
        times: Counter[int] = Counter()
        keyed = []
        for pick in picks:
            again, way = times[pick.index], -1 if times[pick.index] % 2 == 0 else 1
            keyed.append(((again, way * int(frames[pick.index]), way * int(tokens[pick.index])), pick))
            times[pick.index] += 1
        picks = [pick for _, pick in sorted(keyed, key=lambda one: one[0])]  # draws of one length stay in order
        batches: list[list[SampleRef]] = []
        held = _NOTHING
        for pick in picks:
            more = held.with_one(*(int(lengths[pick.index]) for lengths in self._lengths))
            if batches and self._allows(more):
                batches[-1].append(pick)
                held = more
            else:
                batches.append([pick])
                held = _NOTHING.with_one(*(int(lengths[pick.index]) for lengths in self._lengths))
        self._even_out(batches)
        order = np.random.default_rng([self._seed, window, self._stream]).permutation(len(batches))
        return [batches[i] for i in order]

    def _even_out(self, batches: list[list[SampleRef]]) -> None:
        """What is left over is no batch of its own if the one before it can give half of the difference."""
        if len(batches) < 2:
            return
        before, last = batches[-2:]
        for more in range((len(before) - len(last)) // 2, 0, -1):
            if self._fits([*before[-more:], *last]):
                batches[-2:] = [before[:-more], [*before[-more:], *last]]
                return

    def _fits(self, picks: Sequence[SampleRef]) -> bool:
        frames, tokens, rows = (lengths[[pick.index for pick in picks]] for lengths in self._lengths)
        return self._allows(_Held(len(picks), int(frames.max()), int(tokens.max()), int(rows.sum())))

    def _allows(self, held: _Held) -> bool:
        frames, tokens = self._budget
        return (
            held.clips <= self._most
            and (frames is None or held.clips * held.frames <= frames)
            and (tokens is None or held.rows * held.tokens <= tokens)
        )

    def _check(self, least: int, name: Callable[[int], str]) -> None:
        """UserError for a sample that does not fit by itself, or of which too few fit to be shared."""
        frames, tokens, rows = self._lengths
        needs = [
            ("frames", "frames", frames, int(frames.max()), self._budget.frames),
            ("tokens", "tokens of text", rows * tokens, int(rows.max() * tokens.max()), self._budget.tokens),
        ]
        for setting, what, each, worst, allowed in needs:
            if allowed is None:
                continue
            largest = int(each.argmax())
            if each[largest] > allowed:
                raise UserError(
                    f"{self._budget}: {name(largest)} alone has {each[largest]} {what}; make {setting} "
                    f"{each[largest]} or more, or shorten it (dataset.num_frames, dataset.max_tokens, "
                    "stage.rows_per_clip)"
                )
            if least > 1 and worst and allowed // worst < min(self._most, 2 * least - 1):
                raise UserError(
                    f"{self._budget}: {allowed // worst} clips of up to {worst} {what} (such as {name(largest)}) fit, "
                    f"and to be shared by {least} processes or parts (trainer.accumulate) a batch must have room for "
                    f"{min(self._most, 2 * least - 1)}; make {setting} {worst * min(self._most, 2 * least - 1)} or more"
                )


def window_of(epoch: int, most: int) -> int:
    """Nominal batches of ``most`` clips that are sorted together."""
    return max(1, min(epoch, WINDOW) // most)
