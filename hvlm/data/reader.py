"""Picks → batches: the map-style dataset that runs inside the loader's worker processes.

What a pick gives depends on the pick and on (seed, epoch, sample key) alone, never on the worker, on its history, or on
a global random state.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from hvlm.data import samples
from hvlm.data.cache import SHARED, Clip
from hvlm.data.collate import Item, collate
from hvlm.data.fitting import TooLong, cut_end, drop_turns
from hvlm.data.notes import Notes
from hvlm.data.optical_flow import motion_energy
from hvlm.data.order import SampleRef
from hvlm.data.quarantine import Quarantine, SampleError
from hvlm.data.sample_fields import FieldError
from hvlm.data.shard_index import ShardSplit
from hvlm.data.sources import Source
from hvlm.data.tar import TEXT_FIELDS
from hvlm.data.views import Row, View, chat_row
from hvlm.errors import UserError
from hvlm.prompts import context
from hvlm.text.chat import Encoded
from hvlm.types import Batch, InputSpec

log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """A UserError on its way out of a worker process (raised there, it would arrive wrapped in a traceback)."""

    message: str


@dataclass(frozen=True)
class SampleSpec:
    """What is made of a sample.

    chat: has ``encode``, ``unknown`` and ``pad_id`` (``hvlm.text.chat.Chat``); None for a view without text.
    view: what is asked of a clip.
    rows_per_clip: texts drawn per clip (without text: neighbouring frames); None: all, in order.
    loss: as ``chat.encode`` takes it. inputs: how the model wants its clips. grid: (rows, columns) of labelled patches.
    patch_labels(sample, times_T, grid): the dataset's, for a view that needs labels.
    max_tokens: of one text row. too_long: what becomes of a longer one: ``refuse`` makes its sample a bad one, ``cut``
    leaves out the oldest exchanges of its conversation, then the end of the answer. notes: counts what was cut, and
    words outside the vocabulary. decoder, decode_timeout: as ``decode`` takes them.
    text_only: samples are texts without a video, and none is looked for.
    """

    chat: Any
    view: View
    rows_per_clip: int | None
    loss: str
    inputs: InputSpec
    grid: tuple[int, int] | None
    seed: int
    patch_labels: Callable[[dict, np.ndarray, tuple[int, int]], dict[str, np.ndarray] | None] | None = None
    max_tokens: int = 2048
    too_long: Literal["refuse", "cut"] = "refuse"
    decoder: Literal["pyav", "decord"] = "pyav"
    decode_timeout: float | None = None
    text_only: bool = False
    notes: Notes = field(default_factory=Notes)

    def decode(self, members: Mapping[str, Source], key: str, domain: str, uid: str) -> Clip:
        """The sample's JSON and the frames that are sampled. Raises SampleError."""
        sample = samples.parse(members, key, domain, uid)
        if self.text_only:
            return Clip(sample, np.empty((0, 3, *self.inputs.size), np.uint8), np.empty(0, np.float32))
        how = (self.inputs.num_frames, self.inputs.size, self.decoder, self.decode_timeout)
        return Clip(sample, *samples.frames(members, sample, *how))

    def passes_over(self, clips: ShardSplit, index: int) -> bool:
        """Whether a sample's JSON alone says that there is nothing to show. Raises SampleError."""
        if type(self.view).passes_over is View.passes_over:
            return False
        members, uid = clips.read(index, TEXT_FIELDS), clips.uid(index)
        return self.view.passes_over(samples.parse(members, clips.keys[index], clips.domains[index], uid))

    def motion_of(self, clip: Clip) -> np.ndarray | None:
        """float32 [T, rows, columns] where motion is asked for, else None. Raises UserError without OpenCV."""
        return None if self.inputs.motion is None or self.text_only else motion_energy(clip.frames, self.inputs.motion)

    def clip(self, clip: Clip, motion: np.ndarray | None, epoch: int) -> Item | None:
        """What is shown of a clip and its motion, or None if the sampled frames answer none of its texts, or
        nothing is known of its patches. Raises
        SampleError."""
        sample, frames, times = clip
        key, uid, rng = sample["key"], sample["uid"], self._rng(epoch, sample["key"])
        if not self.view.has_text:
            window = self.view.window(len(times), rng, self.rows_per_clip)
            frames, times = frames[window], times[window]
            motion = None if motion is None else motion[window]
            labels = self._labels(sample, times)
            return None if labels is None and self.view.needs_labels else Item(frames, times, [], labels, uid, motion)
        rows = self._encode(self.view.rows(sample, times, rng, self.rows_per_clip), key)
        if self.text_only:
            return Item(None, None, rows, uid=uid) if rows else None
        return Item(frames, times, rows, self._labels(sample, times), uid, motion) if rows else None

    def text(self, members: dict[str, bytes], key: str, uid: str) -> Item:
        """One text-only chat. Raises SampleError."""
        sample = samples.parse(members, key, "text", uid)
        try:
            row = chat_row(sample)
        except FieldError as error:
            raise SampleError(key, "json", str(error)) from error
        return Item(None, None, self._encode([row], key))

    def collate(self, items: list[Item]) -> Batch:
        pad_id = 0 if self.chat is None else self.chat.pad_id
        batch = collate(items, pad_id=pad_id, size=self.inputs.size, motion=self.inputs.motion)
        targets = self.view.targets(batch.rows, self.chat) if self.view.has_text else {}
        return batch._replace(targets=targets or None)

    def _labels(self, sample: dict, times: np.ndarray) -> dict[str, np.ndarray] | None:
        if not self.view.needs_labels:
            return None
        try:
            return self.patch_labels(sample, times, self.grid)
        except FieldError as error:
            raise SampleError(sample["key"], "json", str(error)) from error

    def _encode(self, rows: Sequence[Row], key: str) -> list[tuple[list[int], list[bool], int, int, dict]]:
        out = []
        for group in _together(rows):
            fitting = self.view.fitted(group, self._fits, self.too_long == "cut")
            if fitting is None:
                self.notes.left_out.add([f"{key}: {group[0].prompt}"])
                continue
            if self.too_long == "cut" and not all(self._fits(row.prompt, row.answer) for row in fitting):
                fitting = drop_turns(fitting, lambda row: len(self._ids(row, key).ids), self.max_tokens)
            for row, before in zip(fitting, group, strict=True):
                out.append(self._encode_one(row, key, shortened=row.prompt != before.prompt))
        return out

    def _encode_one(self, row: Row, key: str, shortened: bool) -> tuple[list[int], list[bool], int, int, dict]:
        encoded, meta = self._ids(row, key), row.meta
        for text in self.view.alone(meta):
            self._check_alone(text, key)
        if self.chat.unk_id is not None and self.chat.unk_id in encoded.ids:
            self.notes.unknown.add(self.chat.unknown(row.prompt, row.answer or ""))
        long = len(encoded.ids) > self.max_tokens
        if long:
            try:
                if self.too_long == "refuse" or row.answer is None:
                    raise TooLong(len(encoded.ids))
                start = self._ids(row, key, "last").loss_mask.index(True)
                encoded = cut_end(encoded, start, self.max_tokens)
                meta = meta | {"answer_tokens": self.max_tokens - start}
            except TooLong as error:
                out = "shorten it, or" if self.too_long == "cut" else "set dataset.too_long=cut, or"
                raise SampleError(
                    key, "json", f"a text of {error} ({(row.answer or row.prompt)[:40]!r}…), more than "
                    f"dataset.max_tokens={self.max_tokens}; {out} raise dataset.max_tokens if memory allows"
                ) from error  # fmt: skip
        if (long or shortened) and self.notes.cut.add([key]):
            log.warning(
                "dataset.too_long=cut: %s is the first text that is cut to dataset.max_tokens=%d", key, self.max_tokens
            )
        return (*encoded, meta)

    def _check_alone(self, text: str, key: str) -> None:
        """Of a text that is read by itself: SampleError where it is too long."""
        ids, _ = self.chat.encode_prompt(text)
        if self.chat.unk_id is not None and self.chat.unk_id in ids:
            self.notes.unknown.add(self.chat.unknown(text))
        if len(ids) > self.max_tokens:
            raise SampleError(
                key, "json", f"a text of {TooLong(len(ids))} ({text[:40]!r}…), more than "
                f"dataset.max_tokens={self.max_tokens}; shorten it, or raise dataset.max_tokens if memory allows"
            )  # fmt: skip

    def tokens(self, row: Row) -> int:
        """Of a text row as it would be written, before anything is cut; 0 for one that the template cannot write."""
        try:
            return len(self._written(row.prompt, row.answer, "last").ids)
        except UserError:
            return 0

    @staticmethod
    def characters(row: Row) -> int:
        """Of a text row, with the conversation that it stands in."""
        before = context(row.prompt)
        turns = (text for exchange in before.get("before", ()) for text in exchange)
        return len(row.prompt) + len(row.answer or "") + len(before.get("system") or "") + sum(map(len, turns))

    def _fits(self, prompt: str, answer: str | None) -> bool:
        return len(self._written(prompt, answer, "last").ids) <= self.max_tokens

    def _ids(self, row: Row, key: str, loss: str | None = None) -> Any:
        if loss is None:  # of a pair only the last answers differ: what stands before them is known
            loss = "last" if "pair" in row.meta and self.loss == "answer" else self.loss
        try:
            return self._written(row.prompt, row.answer, loss)
        except UserError as error:  # a conversation that the template cannot write
            raise SampleError(key, "json", str(error)) from error

    def _written(self, prompt: str, answer: str | None, loss: str) -> Any:
        if answer is not None:
            return self.chat.encode(prompt, answer, loss, self.inputs.order, **context(prompt))
        ids, visual_at = self.chat.encode_prompt(prompt, self.inputs.order, **context(prompt))
        return Encoded(ids, [False] * len(ids), visual_at)

    def _rng(self, epoch: int, key: str) -> np.random.Generator:
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return np.random.default_rng([self.seed, epoch, int.from_bytes(digest, "big")])


def _together(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows one by one, but those of a pair in one list: what is left out of one must be left out of the other."""
    groups: list[list[Row]] = []
    for row in rows:
        pair = row.meta.get("pair")
        if pair is not None and groups and groups[-1][0].meta.get("pair") == pair:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


class Reader(Dataset):
    """Batches from shards by offset.

    texts: the text-only chats, or None. replace: whether a sample that gives nothing (bad, or none of its texts
    answerable) is replaced by the next one of its domain, as training wants; otherwise it is left out.
    cache_bytes: pixels of decoded clips, and their motion, that all workers together may keep.
    ``busy``: shared array in which each worker keeps the index that it is at, set by the loader.
    """

    def __init__(
        self,
        clips: ShardSplit,
        texts: ShardSplit | None,
        show: SampleSpec,
        quarantine: Quarantine,
        replace: bool,
        cache_bytes: int = 0,
    ) -> None:
        self.cache_bytes = cache_bytes
        self.clips, self.texts, self.show, self.quarantine, self.replace = clips, texts, show, quarantine, replace
        self.busy: Any = None
        self._next = _next_of_domain(clips.domains)

    def __getitems__(self, picks: list[SampleRef]) -> Batch | Failure | None:
        """The batch of these picks; None if nothing is left of it."""
        try:
            items = [item for pick in picks if (item := self._item(pick)) is not None]
        except UserError as error:
            return Failure(str(error))
        return self.show.collate(items) if items else None

    def _item(self, pick: SampleRef) -> Item | None:
        source = self.texts if pick.text else self.clips
        index = pick.index
        for _ in range(len(source)):
            item = self._try(source, index, pick)
            if item is not None or not self.replace:
                return item
            index = (index + 1) % len(source) if pick.text else self._next[index]
            if index == pick.index:
                break
        raise UserError(
            f"{source.folder}: no sample of domain {source.domains[index]!r} has {self.show.view.name} to show "
            f"with num_frames={self.show.inputs.num_frames}; {self._way_out(source, index)}"
        )

    def _way_out(self, source: ShardSplit, index: int) -> str:
        """What to do where no sample of this one's domain shows anything: does it hold texts of another kind?"""
        name = self.show.view.name
        kinds = {"captions": "stage=align", "questions": "stage=sft"}
        try:
            held = samples.parse(source.read(index, TEXT_FIELDS), source.keys[index], source.domains[index], "")
        except SampleError:
            held = {}
        others = [kind for kind in kinds if kind != name and held.get(kind)]
        if name in kinds and others and not held.get(name):
            return f"the samples hold {others[0]}, no {name}: give them {name}, or train {kinds[others[0]]} on them"
        return "sample more frames or look at the quarantine file"

    def _try(self, source: ShardSplit, index: int, pick: SampleRef) -> Item | None:
        key, worker = source.keys[index], get_worker_info()
        if worker is not None and self.busy is not None:
            self.busy[worker.id] = -1 if pick.text else index
        self.quarantine.count_read()
        try:
            if pick.text:
                return self.show.text(source.read(index, TEXT_FIELDS), key, source.uid(index))
            if self.show.passes_over(source, index):
                return None
            item = self.show.clip(*self.decoded(source, index), pick.epoch)
        except SampleError as error:
            self.quarantine.add(str(source.folder / source.shards[index]), key, error, source.uid(index))
            return None
        if item is None:
            self.quarantine.count_unanswerable()
        return item

    def metas(self, index: int, times: Sequence[float]) -> list[dict[str, Any]]:
        """What the view shows of a clip whose frames were sampled at ``times``, without decoding it again: the meta of
        each text row. Counted as read."""
        source, uid = self.clips, self.clips.uid(index)
        self.quarantine.count_read()
        sample = samples.parse(source.read(index, TEXT_FIELDS), source.keys[index], source.domains[index], uid)
        frames = np.empty((len(times), 3, 0, 0), np.uint8)
        item = self.show.clip(Clip(sample, frames, np.asarray(times, np.float32)), None, 0)
        return [] if item is None else [row[-1] for row in item.rows]

    def decoded(self, source: ShardSplit, index: int) -> tuple[Clip, np.ndarray | None]:
        """The clip with its motion, if that is asked for."""
        inputs, uid = self.show.inputs, source.uid(index)
        name = (source.identity, uid, inputs.num_frames, inputs.size)
        workers = get_worker_info()
        limit = self.cache_bytes // (workers.num_workers if workers else 1)
        key, domain = source.keys[index], source.domains[index]
        if self.show.text_only:  # nothing to decode, and nothing worth keeping
            return self.show.decode(source.sources(index), key, domain, uid), None

        def decode() -> Clip:
            self.quarantine.count_decoded()
            return self.show.decode(source.sources(index), key, domain, uid)

        clip = SHARED.get(name, decode, limit)
        if inputs.motion is None:
            return clip, None
        return clip, SHARED.get((*name, inputs.motion), lambda: self.show.motion_of(clip), limit)


def _next_of_domain(domains: Sequence[str]) -> list[int]:
    """For each index the next one of the same domain, round and round."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    following = [0] * len(domains)
    for index, domain in enumerate(domains):
        first.setdefault(domain, index)
        if domain in last:
            following[last[domain]] = index
        last[domain] = index
    for domain, index in last.items():
        following[index] = first[domain]
    return following
