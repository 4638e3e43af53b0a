"""WebDataset shards as an endless stream, for data that is not on a disk of ours.

webdataset draws the shards, groups members into samples and shuffles them; the tars are opened here, because its own
opener runs ``pipe:`` URLs in a shell and unpacks compressed archives of any size. There is no position to return to: a
resumed run continues with another random part of the data.
"""

from __future__ import annotations

import random
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info
from webdataset import DataPipeline, ResampledShards
from webdataset import shuffle as shuffled
from webdataset.gopen import gopen
from webdataset.tariterators import group_by_keys

from hvlm.data.quarantine import Quarantine, SampleError
from hvlm.data.reader import Failure, SampleSpec
from hvlm.data.shard_index import FIELDS, check_key
from hvlm.errors import UserError
from hvlm.types import Batch

MAX_MEMBER = 4 << 30  # bytes; a larger member is refused before it is read
SHUFFLE = 256  # samples held back for shuffling, per worker


class Stream(IterableDataset):
    """Batches of ``batch_size`` clips (of this rank) drawn from ``urls`` without end.

    seed: of the shard order and the shuffle; together with ``start`` (the batch at which this run begins), the rank and
    the worker it decides what comes. domain: of samples that carry none.
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
    ) -> None:
        self.urls, self.show, self.quarantine = urls, show, quarantine
        self.batch_size, self.domain = batch_size, domain
        self.seed = (seed, start, rank)

    def __iter__(self) -> Iterator[Batch | Failure]:
        worker = get_worker_info()
        seed = f"{self.seed} {worker.id if worker else 0}"
        shards = ResampledShards(self.urls, seed=seed, worker_seed=lambda: 0, deterministic=True)
        pipeline = DataPipeline(
            shards, _members, group_by_keys, shuffled(SHUFFLE, initial=SHUFFLE, rng=random.Random(seed))
        )
        items = []
        try:
            for members in pipeline:
                item = self._try(members)
                if item is not None:
                    items.append(item)
                if len(items) == self.batch_size:
                    yield self.show.collate(items)
                    items = []
        except UserError as error:
            yield Failure(str(error))

    def _try(self, members: dict[str, Any]) -> Any:
        key, url = members["__key__"], members["__url__"]
        fields = {name: data for name, data in members.items() if not name.startswith("__")}
        self.quarantine.count_read()
        try:
            clip = self.show.decode(fields, key, self.domain)
            item = self.show.clip(clip, self.show.motion_of(clip), key, epoch=0)
        except SampleError as error:
            self.quarantine.add(url, key, error)
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


def _members(shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Regular members of an allowed type, in order; a shard that cannot be read stops the run."""
    for shard in shards:
        url = shard["url"]
        try:
            opened = gopen(url) if "://" in url else open(Path(url), "rb")
            with opened as file, tarfile.open(fileobj=file, mode="r|") as tar:  # "r|" = uncompressed only
                for info in tar:
                    if not info.isreg() or info.name.rsplit(".", 1)[-1].lower() not in FIELDS:
                        continue
                    if info.size > MAX_MEMBER:
                        raise UserError(f"{url}: {info.name} says it has {info.size} bytes, more than {MAX_MEMBER}")
                    check_key(info.name, url)
                    yield {"fname": info.name, "data": tar.extractfile(info).read(), "__url__": url}
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            raise UserError(f"{url}: the shard cannot be read ({error}); copy it again or leave it out") from error
        yield {}  # ends the last sample of the shard
