"""WebDataset shards with a manifest: written as plain tar, read back by byte offset.

A folder holds ``<split>-<nnnnnn>.tar`` shards (any ``*.tar`` for other people's data) and ``manifest.json``::

    {"format": 1, "spec": {...}, "quarantined": [{"source", "error"}, ...],
     "shards": {"train-000000.tar": {"split", "count", "bytes", "sha256",
                "samples": [{"key", "domain", "members": {"mp4": [offset, size], "json": [offset, size]}}]}}}

Reading by offset rather than as a stream is what makes a run's order a pure function of (seed, position), and it never
trusts tar headers at training time. Members are plain bytes: nothing here unpickles, decodes or writes them, and only
the file types in ``FIELDS`` are ever looked at.

All sizes and offsets are bytes; offsets are those of a member's payload. Errors are ``UserError`` and name the shard:
a damaged shard stops the run, because skipping it would silently change the data that a result was measured on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from hvlm.data.sources import Source, Span
from hvlm.data.tar import (
    BLOCK,
    FIELDS,
    TEXT_FIELDS,
    VIDEO_FIELDS,
    check_end,
    check_key,
    first_nonzero,
    is_field,
    members_of,
    open_tar,
)
from hvlm.errors import UserError
from hvlm.io.files import PART, file_sha256, remember_sha256, write_atomically

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
MAX_OPEN = 64  # open shards per process
LONG = 16 << 20  # bytes: longer videos stay in the shard, and the decoder reads them there


# ---------------------------------------------------------------------------------------------------------- writing


def write_shard(
    path: Path, samples: Iterable[tuple[str, Mapping[str, bytes | Path]]], split: str, domains: Sequence[str]
) -> dict[str, Any]:
    """Write (key, {field: bytes, or the file that holds them}) as one tar and return its entry for the manifest.

    ``domains`` holds one name per sample, in order; it is looked at when all samples are written. The bytes of the file
    depend on the samples alone (no clock, no user), and the file appears under its name only when it is complete.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        with open(part, "wb") as file:
            with TarWriter(file, encoder=False, mtime=0, user="", compress=False) as tar:
                for key, fields in samples:
                    for field in fields:
                        if not is_field(field):
                            raise UserError(f"{path}: field {field!r} of {key!r} is not one of {', '.join(FIELDS)}")
                    check_key(key, str(path))
                    for field, data in sorted(fields.items()):
                        if isinstance(data, Path):
                            _copy(tar.tarstream, f"{key}.{field}", data)
                        else:
                            tar.write({"__key__": key, field: data})
            file.flush()
            os.fsync(file.fileno())
        entry = index_shard(part, split, domains)
        os.replace(part, path)
        remember_sha256(path, entry["sha256"])
    finally:
        part.unlink(missing_ok=True)
    return entry


def _copy(tar: tarfile.TarFile, name: str, source: Path) -> None:
    """A file as a member, with the header that the writer gives to bytes. Raises OSError where it grew shorter."""
    info = tarfile.TarInfo(name)
    with open(source, "rb") as file:
        info.size, info.mode = os.fstat(file.fileno()).st_size, 0o444
        info.uname, info.gname = "", "bigdata"
        tar.addfile(info, file)


def write_manifest(
    folder: Path, spec: dict[str, Any], shards: dict[str, Any], quarantined: list[dict], path: Path | None = None
) -> None:
    """Write ``manifest.json`` atomically; the same arguments give the same bytes.

    path: where, if not into ``folder`` itself (which may be read-only).
    """
    value = {"format": FORMAT, "spec": spec, "shards": shards, "quarantined": quarantined}
    text = json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n"
    write_atomically(path or Path(folder) / MANIFEST, lambda file: file.write(text.encode()))


# --------------------------------------------------------------------------------------------------------- indexing


def index_shard(path: Path, split: str, domains: Sequence[str] | str = "general") -> dict[str, Any]:
    """Scan one tar and return its entry for the manifest: count, bytes, sha256 and every member's offset.

    ``domains``: one name for all samples, or one per sample in order. Raises UserError for a compressed tar, a tar that
    was cut (inside a member or between two), one that goes on after its end mark, a damaged header, a sparse file, or a
    member that stands there twice.
    """
    path = Path(path)
    size = path.stat().st_size
    members: dict[str, dict[str, list[int]]] = {}
    ignored: set[str] = set()
    with open(path, "rb") as file:
        try:
            with open_tar(file, "r:") as tar:
                for _, (key, field, offset, length) in members_of(tar, str(path), ignored):
                    if field in members.setdefault(key, {}):
                        raise UserError(f"{path}: {key}.{field} stands in the shard twice; write the shard again")
                    members[key][field] = [offset, length]
                end = tar.offset
        except (tarfile.TarError, EOFError) as error:
            raise UserError(
                f"{path}: not a readable, uncompressed tar ({error}); write or copy the shard again"
            ) from error
        check_end(end, size, first_nonzero(file, end), str(path), len(members))
    if ignored:
        log.warning("%s: members of other types are ignored: %s", path, ", ".join(sorted(ignored)))
    names = [domains] * len(members) if isinstance(domains, str) else list(domains)
    if len(names) != len(members):
        raise UserError(f"{path}: {len(members)} samples with distinct keys, but {len(names)} domains were given")
    samples = [{"key": k, "domain": d, "members": m} for (k, m), d in zip(members.items(), names, strict=True)]
    return {"split": split, "count": len(samples), "bytes": size, "sha256": file_sha256(path), "samples": samples}


# ---------------------------------------------------------------------------------------------------------- reading


def load_manifest(folder: Path, path: Path | None = None) -> Manifest:
    """Read and check ``folder/manifest.json`` (its form only; see ``Manifest.verify`` for the shards).

    path: where it stands, if not in ``folder`` itself.
    """
    path = path or Path(folder) / MANIFEST
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; generate or index the data first") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and generate or index the data again") from error
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: format is {found!r}, this version reads {FORMAT}; generate or index the data again")
    try:
        manifest = Manifest(Path(folder), value["spec"], value["shards"], value["quarantined"])
        if type(manifest.spec) is not dict or not all(type(one) is dict for one in manifest.quarantined):
            raise UserError(f"{path}: spec or quarantined has another form; generate or index the data again")
        for name, shard in manifest.shards.items():
            if "/" in name or "\\" in name or name in ("", "..") or "\0" in name:
                raise UserError(f"{path}: shard name {name!r} is refused: it must be a plain file name")
            _check_entry(shard, f"{path}, shard {name}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: entry {error} is missing or malformed; generate or index the data again") from error
    return manifest


def _check_entry(shard: dict[str, Any], where: str) -> None:
    """Entries of the right kind, names that may be read, and members that lie inside the shard and share no byte.
    Raises UserError."""
    kinds = {"split": str, "sha256": str, "count": int, "bytes": int, "samples": list}
    for name, kind in kinds.items():
        if type(shard[name]) is not kind:
            raise UserError(f"{where}: {name} is {shard[name]!r:.40}, expected {kind.__name__}; index the shard again")
    spans = []
    for sample in shard["samples"]:
        if type(sample["key"]) is not str or type(sample["domain"]) is not str:
            raise UserError(f"{where}: key or domain of {sample!r:.80} is no text; index the shard again")
        check_key(sample["key"], where)
        for field, (offset, size) in sample["members"].items():
            if not is_field(field):
                raise UserError(f"{where}: field {field!r} is not one of {', '.join(FIELDS)}")
            if type(offset) is not int or type(size) is not int or offset < BLOCK or size < 0:
                raise UserError(
                    f"{where}: {sample['key']}.{field} stands at {offset!r} with {size!r} bytes; index again"
                )
            spans.append((offset, size, f"{sample['key']}.{field}"))
    end, last = 0, ""
    for offset, size, member in sorted(spans):
        if offset < end:
            raise UserError(f"{where}: {last} and {member} share bytes; index the shard again")
        end, last = offset + size, member
    if end > shard["bytes"]:
        raise UserError(f"{where}: {last} ends at byte {end} of {shard['bytes']}; index the shard again")


@dataclass
class Manifest:
    """What a data folder says it holds; ``shards`` and ``quarantined`` are as in the file (see above)."""

    folder: Path
    spec: dict[str, Any]
    shards: dict[str, dict[str, Any]]
    quarantined: list[dict[str, str]]

    def verify(self, full: bool) -> None:
        """Compare the shards with the manifest: counts and sizes always, headers and sha256 when ``full``."""
        for name, shard in self.shards.items():
            path = self.path_of(name)
            if not path.is_file():
                raise UserError(f"{path}: the shard is missing, the manifest lists {shard['count']} samples in it")
            if shard["count"] != len(shard["samples"]):
                raise UserError(f"{path}: count is {shard['count']}, but {len(shard['samples'])} samples are listed")
            size = path.stat().st_size
            if size != shard["bytes"]:
                raise UserError(f"{path}: {size} bytes on disk, {shard['bytes']} in the manifest; copy the shard again")
            if full and (digest := file_sha256(path)) != shard["sha256"]:
                raise UserError(
                    f"{path}: sha256 on disk is {digest[:12]}…, {shard['sha256'][:12]}… in the manifest; "
                    "the content changed: copy or generate the shard again"
                )

    @cached_property
    def identity(self) -> str:
        """Sixteen hexadecimal digits that stand for what the data are: shards, their content, splits and domains. Where
        they lie, and how they were made or copied, is no part of it."""
        shards = [
            [name, shard["split"], shard["sha256"], [sample["domain"] for sample in shard["samples"]]]
            for name, shard in sorted(self.shards.items())
        ]
        return hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16]

    @property
    def num_bytes(self) -> int:
        return sum(shard["bytes"] for shard in self.shards.values())

    @property
    def splits(self) -> list[str]:
        return sorted({shard["split"] for shard in self.shards.values()})

    def paths(self, split: str) -> list[Path]:
        """The shards of a split."""
        return [self.path_of(name) for name, shard in sorted(self.shards.items()) if shard["split"] == split]

    def path_of(self, shard: str) -> Path:
        """Where a shard lies."""
        return self.folder / shard

    def split(self, name: str) -> ShardSplit:
        """All samples of a split, shard after shard by name."""
        rows = [
            (shard_name, sample["key"], sample["domain"], sample["members"])
            for shard_name, shard in sorted(self.shards.items())
            if shard["split"] == name
            for sample in shard["samples"]
        ]
        if not rows:
            raise UserError(f"{self.folder}: no split {name!r}; the manifest has {', '.join(self.splits) or 'none'}")
        places = {row[0]: self.path_of(row[0]) for row in rows}
        return ShardSplit(self.folder, rows, name, self.identity, places)


def uid_of(split: str, shard: str, key: str) -> str:
    """The one name of a sample within its data, see ``ShardSplit.uid``."""
    return f"{split}/{shard.removesuffix('.tar')}/{key}"


class ShardSplit:
    """Random access to the samples of one split; cheap to pickle, safe to fork (reads carry their own offset).

    folder: of the data, for messages. name: of the split. identity: of the manifest. places: {shard: its file}.
    """

    def __init__(
        self,
        folder: Path,
        rows: list[tuple[str, str, str, dict[str, list[int]]]],
        name: str,
        identity: str,
        places: Mapping[str, Path],
    ) -> None:
        self.folder, self.name, self.identity, self._places = folder, name, identity, places
        self.shards = [row[0] for row in rows]
        self.keys = [row[1] for row in rows]
        self.domains = [row[2] for row in rows]
        self._members = [row[3] for row in rows]
        self._files: OrderedDict[str, int] = OrderedDict()

    def reordered(self, order: Sequence[int]) -> ShardSplit:
        """The same samples in another order."""
        rows = [self._row(i) for i in order]
        return ShardSplit(self.folder, rows, self.name, self.identity, self._places)

    def _row(self, index: int) -> tuple[str, str, str, dict[str, list[int]]]:
        return self.shards[index], self.keys[index], self.domains[index], self._members[index]

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}  # file descriptors mean nothing in another process

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_files", {}).values():
            os.close(descriptor)

    def uid(self, index: int) -> str:
        """``split/shard/key``: the one name of a sample within its data. Keys alone may begin again in every shard;
        what outlives one set of data adds the manifest's ``identity``."""
        return uid_of(self.name, self.shards[index], self.keys[index])

    def fields(self, index: int, media: bool = False) -> list[str]:
        """The names of a sample's members in lower case; ``media``: of videos and stills alone."""
        found = [field for field, _ in self._where(index, FIELDS)]
        return [field for field in found if field.rsplit(".", 1)[-1] not in TEXT_FIELDS] if media else found

    def read(self, index: int, endings: Sequence[str] = FIELDS) -> dict[str, bytes]:
        """The members of sample ``index``: {"mp4": …, "json": …} or {"json": …, "000.jpg": …}. UserError if cut.

        endings: of the fields to read, for those who want a sample's text and not its video.
        """
        return {field: self._bytes(index, field, *where) for field, where in self._where(index, endings)}

    def sources(self, index: int) -> dict[str, Source]:
        """The same, but videos of ``LONG`` bytes and more are not read: where they lie is said. UserError if cut."""
        out: dict[str, Source] = {}
        for field, (offset, size) in self._where(index, FIELDS):
            if field in VIDEO_FIELDS and size >= LONG:
                self._bytes(index, field, offset + size - 1, 1)  # the last one is there
                out[field] = Span(self._places[self.shards[index]].absolute(), offset, size)
            else:
                out[field] = self._bytes(index, field, offset, size)
        return out

    def _where(self, index: int, endings: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
        for written, where in self._members[index].items():
            field = written.lower()
            if field.rsplit(".", 1)[-1] in endings:
                yield field, where

    def _bytes(self, index: int, field: str, offset: int, size: int) -> bytes:
        data = os.pread(self._open(self.shards[index]), size, offset)
        if len(data) != size:
            name = f"{self._places[self.shards[index]]}: {self.keys[index]}.{field}"
            raise UserError(
                f"{name} should be {size} bytes at {offset}, the file gave {len(data)}; the shard was cut: copy or "
                "generate it again"
            )
        return data

    def _open(self, name: str) -> int:
        if name not in self._files:
            if len(self._files) >= MAX_OPEN:
                os.close(self._files.popitem(last=False)[1])
            try:
                self._files[name] = os.open(self._places[name], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                raise UserError(f"{self._places[name]}: the shard cannot be opened ({error.strerror})") from error
        self._files.move_to_end(name)
        return self._files[name]
