"""Rows → samples, splits and shards: everything that can be decided without decoding a video.

Rows that show the same file, or files of the same content, make one sample. A plan is a function of (table, files,
settings), so that a second start finds the work of the first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hvlm.data.sample_fields import FieldError, as_rate
from hvlm.data.shard_folder import SPLITS as WORDS
from hvlm.data.shard_folder import TEXT
from hvlm.errors import UserError
from hvlm.prepare.columns import Taken, take
from hvlm.prepare.corpora import packed_in
from hvlm.prepare.formats import Malformed
from hvlm.prepare.media import Finder, Medium
from hvlm.prepare.options import Answers, fitting, options_of, way
from hvlm.prepare.problems import Problem
from hvlm.prepare.seconds import section
from hvlm.prepare.settings import SPLITS, Settings
from hvlm.prepare.source import Source
from hvlm.prepare.splits import Groups, drawn
from hvlm.prepare.texts import Said, said

SHARDS = 16  # at least so many of a split where videos are many and small: work for several processes
SMALLEST = 8_000_000  # bytes of a shard that is not filled up further
MOST = 2_000  # samples of a shard
BLOCK = 512
LONGEST_KEY = 150


@dataclass(frozen=True)
class Bad:
    """A row that is left out. table, row: where it stands, from 1. file: what it shows. kind, reason: why."""

    table: str
    row: int
    file: str
    kind: str
    reason: str

    def __post_init__(self) -> None:
        for name in ("table", "file", "reason"):  # names of files need not be text
            object.__setattr__(self, name, getattr(self, name).encode("utf-8", "backslashreplace").decode())


@dataclass
class Sample:
    """One clip with the texts of all rows that show it; without a medium a text-only chat.

    parts: (table, row, what it says) of each row. group: what it must share its split with. section: [start, stop] in
    seconds, of which alone frames are shown. cluster: what errors are clustered by, where that is more than the clip.
    """

    medium: Medium | None
    key: str = ""
    split: str = TEXT
    domain: str = "general"
    fps: float | None = None
    group: str = ""
    section: tuple[float, float] | None = None
    cluster: str = ""
    parts: list[tuple[str, int, Said]] = field(default_factory=list)

    @cached_property
    def size(self) -> int:
        """About how many bytes it takes in a shard, once its rows are together."""
        texts = sum(
            len(str(part.captions) + str(part.questions) + str(part.conversations)) for _, _, part in self.parts
        )
        members = 1 + (len(self.medium.parts) if self.medium else 0)
        return texts + members * (BLOCK + BLOCK // 2) + (self.medium.size if self.medium else 0)


@dataclass
class Shard:
    """name: of its file. samples: that are planned; those that cannot be read are left out of it."""

    name: str
    split: str
    samples: list[Sample]


@dataclass
class Plan:
    """rows: of the table. bad: those that are left out already. how: in which way answers name options."""

    source: Source
    taken: Taken
    example: dict[str, Any]
    how: Answers | None
    rows: int
    samples: list[Sample]
    bad: list[Bad]
    shards: list[Shard]

    @property
    def size(self) -> int:
        return sum(sample.size for sample in self.samples)

    def digest(self) -> str:
        """Stands for the rows and for the names, sizes and times of the files."""
        found = hashlib.sha256()
        for sample in self.samples:
            parts = sample.medium.parts if sample.medium else ()
            state = [(p, os.stat(p).st_size, os.stat(p).st_mtime_ns) if isinstance(p, str) else p.sha256 for p in parts]
            texts = [(t, r, s.captions, s.questions, s.conversations) for t, r, s in sample.parts]
            line: list[Any] = [sample.key, sample.split, sample.domain, sample.fps, state, texts]
            line += [sample.section, sample.cluster] if sample.section or sample.cluster else []
            found.update(json.dumps(line, default=str).encode())
        found.update(json.dumps([vars(bad) for bad in self.bad]).encode())
        return found.hexdigest()


def make(source: Source) -> Plan:
    """Raises UserError where columns are missing or ambiguous, or the table has no rows."""
    settings = source.settings
    finder = Finder(source.root, by_name=source.corpus is not None)
    rows: list[tuple[str, int, dict[str, Any]]] = []
    bad: list[Bad] = []
    for table, number, row in source.rows():
        if isinstance(row, Malformed):
            bad.append(Bad(table, number, "", "not a row", row.reason))
        else:
            rows.append((table, number, row))
    total = len(rows) + len(bad)
    if not rows:
        why = f"; {len(bad):,} cannot be read, the first: {bad[0].reason}" if bad else ""
        raise UserError(f"{settings.src}: no rows in it{why}")
    only = [row for _, _, row in rows]
    taken = source.taken(only) or take(source.columns, only, finder, settings)
    how = _answers([row for _, _, row in rows], taken, settings)
    same = _same_content(_media(rows, taken, finder))
    samples: dict[tuple[str, tuple[float, float] | None], Sample] = {}
    texts: list[Sample] = []
    groups = Groups()
    ids: dict[str, tuple[str, int]] = {}
    for table, number, row in rows:
        shown = _named(taken.one("video", row))
        try:
            part = said(row, taken, how, settings)
            medium = _medium(row, taken, part, finder)
            shown = medium.name if medium else shown
            name = taken.one("id", row)
            if name is not None and ids.setdefault(str(name), (table, number)) != (table, number):
                other, line = ids[str(name)]
                raise Problem(
                    "the id again", f"id {name} stands in row {line}{'' if other == table else f' of {other}'}, too"
                )
            if medium is None:
                key = f"chat{len(texts):06d}"
                texts.append(Sample(None, key, domain=TEXT, parts=[(table, number, part)]))
                continue
            medium = same.get(medium.name, medium)
            part_of = section(taken.one("start", row), taken.one("end", row))
            clip = (medium.name, part_of)
            sample = samples.get(clip) or Sample(medium, group=medium.name, section=part_of)
            _join(sample, row, taken, groups)
            sample.parts.append((table, number, part))
            samples[clip] = sample
        except Problem as problem:
            bad.append(Bad(table, number, problem.file or shown, problem.kind, problem.reason))
    found = list(samples.values())
    for sample in found:
        sample.group = str(groups.of(("file", sample.group)))
    _split(found, taken, settings, bad, {(t, n): row for t, n, row in rows} if "split" in taken.columns else {})
    found = [sample for sample in found if sample.parts]
    _keys(found)
    example = next((row for _, _, row in rows), {})
    taken.notes += finder.notes
    if any(b.kind == "missing file" for b in bad) and source.corpus is not None and (packed := packed_in(source.root)):
        taken.notes.append(f"not looked into: {', '.join(packed[:4])}{', …' if len(packed) > 4 else ''}; extract them")
    return Plan(source, taken, example, how, total, [*found, *texts], bad, _shards([*found, *texts], settings))


def _answers(rows: Sequence[dict[str, Any]], taken: Taken, settings: Settings) -> Answers | None:
    if "options" not in taken.columns or "answer" not in taken.columns:
        return None
    if settings.answers != "auto":
        return settings.answers
    counts: Counter[Answers] = Counter()
    for row in rows:
        try:
            options = options_of([row.get(name) for name in taken.columns["options"]])
        except Problem:
            continue
        counts.update(fitting(taken.one("answer", row), options))
    return way(counts)


def _medium(row: dict[str, Any], taken: Taken, part: Said, finder: Finder) -> Medium | None:
    value = taken.one("video", row)
    if value is None and part.media:
        value = part.media
    if value is None and part.marked:
        raise Problem("no file named", "the text says <video> or <image>, and no file is named")
    if value is None and "conversations" in taken.columns and not part.captions:
        return None
    return finder.find(value)


def _named(value: Any) -> str:
    """What a row calls its video, for the record of those that are left out."""
    return value.strip()[:LONGEST_KEY] if isinstance(value, str) else ""


def _media(rows: Sequence[tuple[str, int, dict[str, Any]]], taken: Taken, finder: Finder) -> Iterator[Medium]:
    for _, _, row in rows:
        try:
            if (value := taken.one("video", row)) is not None:
                yield finder.find(value)
        except Problem:
            continue


def _same_content(media: Iterator[Medium]) -> dict[str, Medium]:
    """{name: the first medium with the same content}; files are read only where another one has their size."""
    by_size: dict[tuple[int, ...], dict[str, Medium]] = {}
    for medium in media:
        by_size.setdefault((medium.size, len(medium.parts)), {}).setdefault(medium.name, medium)
    doubtful = [medium for alike in by_size.values() if len(alike) > 1 for medium in alike.values()]
    same: dict[str, Medium] = {}
    first: dict[str, Medium] = {}
    with ThreadPoolExecutor(4) as pool:
        for medium, digest in zip(doubtful, pool.map(_sum, doubtful), strict=True):
            same[medium.name] = first.setdefault(digest, medium)
    return same


def _sum(medium: Medium) -> str:
    found = hashlib.sha256()
    for part in medium.parts:
        if isinstance(part, str):
            try:
                with open(part, "rb") as file:
                    found.update(hashlib.file_digest(file, "sha256").digest())
            except OSError:  # it is named as unreadable when its turn comes
                found.update(part.encode("utf-8", "surrogateescape"))
        else:
            found.update(bytes.fromhex(part.sha256))
    return found.hexdigest()


def _join(sample: Sample, row: dict[str, Any], taken: Taken, groups: Groups) -> None:
    """What a row says of its clip, and what the clip belongs to. Raises Problem."""
    if (fps := taken.one("fps", row)) is not None:
        try:
            sample.fps = as_rate(
                float(fps) if isinstance(fps, str) and fps.replace(".", "", 1).isdigit() else fps, "fps"
            )
        except FieldError as error:
            raise Problem("bad text", str(error)) from error
    if (domain := taken.one("domain", row)) is not None and not sample.parts:
        sample.domain = str(domain).strip()
    names: list[tuple[str, str]] = [("file", sample.group)]
    # A column that was only guessed does not overrule the splits that a table states.
    source = taken.one("source", row)
    if source is not None and ("source" in taken.said or "split" not in taken.columns):
        names.append(("source", str(source)))
    groups.join(names)
    sample.cluster = sample.cluster or (
        str(source).strip() if source is not None else sample.group if sample.section else ""
    )


def _split(samples: list[Sample], taken: Taken, settings: Settings, bad: list[Bad], rows: dict) -> None:
    if "split" not in taken.columns:
        smallest: dict[str, str] = {}
        for sample in samples:
            name = sample.medium.name if sample.medium else ""
            smallest[sample.group] = min(smallest.get(sample.group, name), name)
        split_of = drawn(sorted(smallest.values()), settings.shares, settings.seed)
        for sample in samples:
            sample.split = split_of[smallest[sample.group]]
        return
    first: dict[str, str] = {}
    for sample in samples:
        kept = []
        for table, number, part in sample.parts:
            value = taken.one("split", rows[table, number])
            split = WORDS.get(str(value).strip().lower())
            name = sample.medium.name if sample.medium else ""
            if split is None:
                bad.append(Bad(table, number, name, "unknown split", f"{value!r} is none of {', '.join(WORDS)}"))
            elif first.setdefault(sample.group, split) != split:
                reason = f"this row says {split}, another of the same source says {first[sample.group]}"
                bad.append(Bad(table, number, name, "in two splits", reason))
            else:
                kept.append((table, number, part))
        sample.parts, sample.split = kept, first.get(sample.group, "train")


def _keys(samples: list[Sample]) -> None:
    """Names of samples: those of their files, where they can be names of a tar's members and differ."""
    parts = ["" if sample.section is None else "@{:g}-{:g}".format(*sample.section) for sample in samples]
    names = [sample.medium.name if sample.medium else "" for sample in samples]
    plain = [_key(name) + _as_name(part) for name, part in zip(names, parts, strict=True)]
    often = Counter(plain)
    for sample, key, name in zip(samples, plain, map("".join, zip(names, parts, strict=True)), strict=True):
        if often[key] > 1 or len(key) > LONGEST_KEY or not key.strip("/"):
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
            key = f"{key[-LONGEST_KEY:].strip('/')}-{digest}".lstrip("-")
        sample.key = key


def _key(name: str) -> str:
    stem = os.path.splitext(name)[0].replace("\\", "/")
    return "/".join(_as_name(part) for part in stem.split("/") if part)


def _as_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "_-" else "_" for c in text)


def _shards(samples: list[Sample], settings: Settings) -> list[Shard]:
    out = []
    for split in (*SPLITS, TEXT):
        mine = [(sample, sample.size) for sample in samples if sample.split == split]
        limit = min(settings.shard_mb * 1e6, max(SMALLEST, sum(size for _, size in mine) / SHARDS))
        parts: list[list[Sample]] = []
        held = limit
        for sample, size in mine:
            if held + size > limit or len(parts[-1]) >= MOST:
                parts.append([])
                held = 0
            parts[-1].append(sample)
            held += size
        out += [Shard(f"{split}-{i:06d}.tar", split, part) for i, part in enumerate(parts)]
    return out
