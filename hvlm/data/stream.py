"""WebDataset shards as an endless stream, for data that is not on a disk of ours.

webdataset draws the shards and shuffles the samples; the tars are opened here, because its own opener runs ``pipe:``
URLs in a shell and unpacks compressed archives of any size. There is no position to return to: a resumed run continues
with another random part of the data.
"""

from __future__ import annotations

import random
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info
from webdataset import DataPipeline, ResampledShards
from webdataset import shuffle as shuffled
from webdataset.gopen import gopen

from hvlm.data.quarantine import Quarantine, SampleError
from hvlm.data.reader import Failure, SampleSpec
from hvlm.data.shard_index import uid_of
from hvlm.data.tar import Watched, check_end, members_of, open_tar
from hvlm.errors import UserError
from hvlm.types import Batch

MAX_MEMBER = 4 << 30  # bytes; a larger member is refused before it is read
SHUFFLE = 256  # samples held back for shuffling, per worker


class Streamed(NamedTuple):
    """One sample of a stream: its shard, its key there, the epoch in which it is seen, and field -> bytes."""

    url: str
    key: str
    epoch: int
    members: dict[str, bytes]


class Stream(IterableDataset):
    """Batches of ``batch_size`` clips (of this rank) drawn from ``urls`` without end.

    seed: of the shard order and the shuffle; together with ``start`` (the batch at which this run begins), the rank and
    the worker it decides what comes. domain: of samples that carry none. world: processes that train together.

    What a sample shows is the function of (seed, epoch, key) that it is in indexed reading. Its epoch counts how often
    this worker has opened its shard, so that coming back varies it; no two workers or ranks share an epoch.
    """

    def __init__(
        self,
        urls: list[str],
        show: SampleSpec,
        quarantine: Quarantine,
        *,
        batch_size: int,
        domain: str,
        seed: int,
        start: int,
        rank: int,
        world: int = 1,
    ) -> None:
        self.urls, self.show, self.quarantine = urls, show, quarantine
        self.batch_size, self.domain = batch_size, domain
        self.start, self.rank, self.world = start, rank, world
        self.seed = (seed, start, rank)

    def __iter__(self) -> Iterator[Batch | Failure]:
        worker = get_worker_info()
        seed = f"{self.seed} {worker.id if worker else 0}"
        shards = ResampledShards(self.urls, seed=seed, worker_seed=lambda: 0, deterministic=True)
        pipeline = DataPipeline(shards, self._samples, shuffled(SHUFFLE, initial=SHUFFLE, rng=random.Random(seed)))
        items = []
        try:
            for sample in pipeline:
                item = self._try(sample)
                if item is not None:
                    items.append(item)
                if len(items) == self.batch_size:
                    yield self.show.collate(items)
                    items = []
        except UserError as error:
            yield Failure(str(error))

    def _samples(self, shards: Iterable[dict[str, Any]]) -> Iterator[Streamed]:
        worker = get_worker_info()
        readers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        opened: Counter[str] = Counter()
        for shard in shards:
            url = shard["url"]
            epoch = ((self.start + opened[url]) * self.world + self.rank) * readers + number
            opened[url] += 1
            for key, members in samples_of(url):
                yield Streamed(url, key, epoch, members)

    def _try(self, sample: Streamed) -> Any:
        url, key, epoch, members = sample
        uid = uid_of("train", url, key)
        self.quarantine.count_read()
        try:
            clip = self.show.decode(members, key, self.domain, uid)
            item = self.show.clip(clip, self.show.motion_of(clip), epoch)
        except SampleError as error:
            self.quarantine.add(url, key, error, uid)
            return None
        if item is None:
            self.quarantine.count_unanswerable()
        return item


def check_url(url: str) -> str:
    """Return ``url`` if it is a local path or http(s), and not compressed; else raise UserError."""
    scheme, colon, _ = url.partition(":")
    if colon and "/" not in scheme and scheme not in ("http", "https"):
        raise UserError(f"dataset.path: {url!r} is refused: only local paths, http: and https: are read (never pipe:)")
    if not url.partition("?")[0].endswith(".tar"):
        raise UserError(f"dataset.path: {url!r} is refused: a shard is an uncompressed .tar")
    return url


def samples_of(url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, field -> bytes) of each run of members with one key. A shard that cannot be read to its end mark, or that
    goes on after it, stops the run."""
    key, members, count = None, {}, 0
    try:
        with gopen(url) if "://" in url else open(Path(url), "rb") as raw:
            file = Watched(raw)
            with open_tar(file, "r|") as tar:
                for info, (name, field, _, size) in members_of(tar, url, set()):
                    if size > MAX_MEMBER:
                        raise UserError(f"{url}: {info.name} says it has {size} bytes, more than {MAX_MEMBER}")
                    if name != key:
                        if members:
                            yield key, members
                        key, members, count = name, {}, count + 1
                    if field in members:
                        raise UserError(f"{url}: {name}.{field} stands in the shard twice; write the shard again")
                    members[field] = tar.extractfile(info).read()
                file.drain()
                check_end(tar.offset, file.size, file.content - 1 if file.content > tar.offset else None, url, count)
        if members:
            yield key, members
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise UserError(f"{url}: the shard cannot be read ({error}); copy it again or leave it out") from error
