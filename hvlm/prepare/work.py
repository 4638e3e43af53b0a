"""A plan → shards and their manifest, by several processes. Killed at any moment, the same command goes on.

A job makes one whole shard: it decodes every video as the reader will, reads every text as the reader will, and writes
what is good. Beside the shards, ``.prepare/`` keeps a record of each finished one until the manifest is written.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvlm.data.quarantine import SampleError
from hvlm.data.sample_json import MAX_BYTES, parse
from hvlm.data.shard_index import write_manifest, write_shard
from hvlm.dataset._pool import end_with_parent
from hvlm.errors import UserError
from hvlm.io.files import clean_parts, write_atomically
from hvlm.io.json_lines import write_lines
from hvlm.io.processors import usable_processors
from hvlm.prepare.media import LATE, check
from hvlm.prepare.plan import Bad, Plan, Sample, Shard
from hvlm.prepare.problems import Problem
from hvlm.prepare.settings import Settings
from hvlm.prepare.texts import Said, chat_json, sample_json

STATE, PARTS = "prepare.json", ".prepare"
QUARANTINE = "quarantine.jsonl"
ALLOWED = 20  # bad rows that pass whatever the share
FULL = 0.02  # share of the disk that stays free


@dataclass(frozen=True)
class Job:
    """One shard, where it goes, and how its videos are tried."""

    shard: Shard
    folder: Path
    frames: int
    timeout: float | None


_done: Any = None  # shared: rows and bytes that are through
_say: Callable[[], None] | None = None  # where the work is done by one process


def make_shard(job: Job) -> dict[str, Any]:
    """Write the shard and its record {entry (None: nothing of it is good), bad}; the record is returned."""
    bad: list[Bad] = []
    domains: list[str] = []
    path = job.folder / job.shard.name
    entry: dict[str, Any] | None = write_shard(path, _good(job, bad, domains), job.shard.split, domains)
    if entry is not None and not entry["count"]:
        path.unlink()
        entry = None
    record = {"entry": entry, "bad": [vars(b) for b in bad]}
    text = json.dumps(record, sort_keys=True)
    write_atomically(_record(job.folder, job.shard), lambda file: file.write(text.encode("utf-8", "surrogatepass")))
    return record


def _good(job: Job, bad: list[Bad], domains: list[str]) -> Iterator[tuple[str, dict[str, bytes | Path]]]:
    for sample in job.shard.samples:
        name = sample.medium.name if sample.medium else ""
        whole = _is_readable(sample)
        texts = [part for _, _, part in sample.parts] if whole else _readable(sample, bad)
        try:
            if texts:
                members, more = _shown(sample, job)
                fields = members | {"json": _whole(sample, texts, more, whole)}
                domains.append(sample.domain)
                yield sample.key, fields
        except Problem as problem:
            bad += [
                Bad(t, r, problem.file or name, problem.kind, problem.reason)
                for t, r, part in sample.parts
                if any(part is text for text in texts)
            ]
        if _done is not None:
            with _done:
                _done[0] += len(sample.parts)
                _done[1] += sample.size
        if _say is not None:
            _say()


def _shown(sample: Sample, job: Job) -> tuple[dict[str, bytes | Path], dict[str, Any]]:
    """The members of what is shown, and what the JSON says of it. Raises Problem."""
    if sample.medium is None:
        return {}, {}
    fps = sample.fps or 1.0
    try:
        members = sample.medium.members()
    except OSError as error:
        raise Problem("cannot be read", error.strerror or str(error), sample.medium.name) from error
    seconds = check(sample.medium, members, job.frames, fps, job.timeout)
    more = _about(sample, round(seconds, 3))
    if sample.section is not None and sample.section[0] >= seconds:
        reason = f"it starts at {sample.section[0]:g} s, the video lasts {seconds:.2f} s"
        raise Problem("wrong part", reason, more["file"])
    return members, more


def _about(sample: Sample, seconds: float) -> dict[str, Any]:
    """What the JSON says of a medium that lasts so long."""
    assert sample.medium is not None
    name = sample.medium.name.encode("utf-8", "backslashreplace").decode()
    more: dict[str, Any] = {"file": name, "duration": seconds, "domain": sample.domain}
    if sample.section is not None:
        more["section"] = list(sample.section)
    if sample.cluster:
        more["cluster"] = sample.cluster
    return more if sample.medium.is_video or sample.fps is None else more | {"fps": sample.fps}


def _is_readable(sample: Sample) -> bool:
    """Whether the reader takes the texts of all rows together, as it then takes those of each: one reading for both."""
    try:
        data = sample_json([part for _, _, part in sample.parts], _about(sample, 0.0) if sample.medium else {})
        parse({"json": data}, sample.key, "general")
    except SampleError:
        return False
    return True


def _readable(sample: Sample, bad: list[Bad]) -> list[Said]:
    """The texts of those rows that the reader takes."""
    out: list[Said] = []
    ids: set[str] = set()
    for table, row, part in sample.parts:
        try:
            parse({"json": sample_json([part], {})}, sample.key, "general")
            asked = [q for q in (*part.questions, *part.conversations) if isinstance(q, dict)]
            given = [str(q["id"]) for q in asked if q.get("id") is not None]
            if again := next((name for name in given if name in ids), None):
                raise SampleError(sample.key, "json", f"the question's id {again} stands in another row of this video")
            ids.update(given)
            out.append(part)
        except SampleError as error:
            bad.append(Bad(table, row, sample.medium.name if sample.medium else "", "bad text", error.reason))
    return out


def _whole(sample: Sample, texts: list[Said], more: dict[str, Any], readable: bool) -> bytes:
    """The sample's JSON. Raises Problem where its texts are only together more than the reader takes.

    readable: they were read together already, with another number of seconds.
    """
    if sample.medium is None:
        return chat_json(texts[0])
    data = sample_json(texts, more)
    if readable and len(data) <= MAX_BYTES:
        return data
    try:
        parse({"json": data}, sample.key, "general")
    except SampleError as error:
        raise Problem("bad text", error.reason) from error
    return data


# ------------------------------------------------------------------------------------------------------ all of them


def made(plan: Plan, settings: Settings, out: Path, told: Callable[[int, int, int], None]) -> tuple[dict, list[Bad]]:
    """All shards, the quarantine and the manifest.

    Args:
        told: is told, now and then, rows and bytes that are through and how many rows are bad.

    Returns:
        {name: entry of the manifest} and the rows that were left out, in the order of the table.

    Raises:
        UserError: more rows are bad than may be; what was made so far stays.
    """
    (out / PARTS).mkdir(exist_ok=True)
    clean_parts(out, alone=True)  # the caller holds the folder's lock, and a killed caller's workers held it, too
    clean_parts(out / PARTS, alone=True)
    records: dict[str, dict[str, Any]] = {}
    jobs = []
    through = [len(plan.bad), 0]
    for shard in plan.shards:
        record = _finished(out, shard)
        if record is None:
            jobs.append(Job(shard, out, settings.frames, settings.decode_timeout))
        else:
            records[shard.name] = record
            through[0] += sum(len(sample.parts) for sample in shard.samples)
            through[1] += sum(sample.size for sample in shard.samples)
    order = {name: i for i, name in enumerate(dict.fromkeys(t for s in plan.samples for t, _, _ in s.parts))}

    def bad() -> list[Bad]:
        found = [*plan.bad, *(Bad(**b) for record in records.values() for b in record["bad"])]
        return sorted(found, key=lambda b: (order.get(b.table, len(order)), b.table, b.row, b.file))

    def enough() -> None:
        found = len(plan.bad) + sum(len(record["bad"]) for record in records.values())
        if found > max(ALLOWED, settings.max_bad * plan.rows):
            listed = bad()
            write_lines(out / QUARANTINE, (vars(b) for b in listed))
            raise too_many(listed, plan.rows, settings, out / QUARANTINE)

    enough()

    def say() -> None:
        found = len(plan.bad) + sum(len(record["bad"]) for record in records.values())
        told(through[0] + done[0], through[1] + done[1], found)

    done = multiprocessing.get_context(_method()).Array("q", 2)
    with closing(_records(jobs, min(settings.workers or usable_processors(), len(jobs)), done, say)) as found:
        for name, record in found:
            records[name] = record
            enough()
    shards = {shard.name: entry for shard in plan.shards if (entry := records[shard.name]["entry"]) is not None}
    listed = bad()
    if not shards:
        raise too_many(listed, plan.rows, settings, out / QUARANTINE)
    write_lines(out / QUARANTINE, (vars(b) for b in listed))
    spec = {"prepared": settings.said() | {"columns": plan.taken.columns}}
    # Read from JSON, as a second start reads them: the manifest is the same, to the byte.
    write_manifest(out, spec, json.loads(json.dumps(shards)), [_in_manifest(b) for b in listed])
    shutil.rmtree(out / PARTS)
    return shards, listed


def _records(
    jobs: list[Job], workers: int, done: Any, say: Callable[[], None]
) -> Generator[tuple[str, dict[str, Any]]]:
    """(name of the shard, its record) as they are finished. One worker is this process itself."""
    global _done, _say
    if workers <= 1:
        _done, _say = done, say
        try:
            for job in jobs:
                yield job.shard.name, make_shard(job)
        finally:
            _done = _say = None
        return
    with _pool(workers, done) as pool:
        waiting: dict[Future, Job] = {pool.submit(make_shard, job): job for job in jobs}
        while waiting:
            finished, _ = wait(waiting, timeout=0.25, return_when=FIRST_COMPLETED)
            for future in finished:
                yield waiting.pop(future).shard.name, future.result()
            say()


def _in_manifest(bad: Bad) -> dict[str, str]:
    """Without the reason, which may name folders of this machine."""
    where = f"{bad.table}:{bad.row}"
    return {"source": f"{where} {bad.file}" if bad.file else where, "error": bad.kind}


def too_many(bad: list[Bad], rows: int, settings: Settings, path: Path) -> UserError:
    """The error about too many bad rows, with what is most often wrong."""
    kinds: dict[str, list[Bad]] = {}
    for b in bad:
        kinds.setdefault(b.kind, []).append(b)
    kind, most = max(kinds.items(), key=lambda item: len(item[1]))
    share = -(-len(bad) * 100 // max(rows, 1)) / 100
    way = f"Repair them, or leave them out with max_bad={share:g}" if share < 1 else "Repair them"
    over = f"more than max_bad={settings.max_bad:g} allows, " if len(bad) < rows else ""
    where = f"; {path} lists them" if path.exists() else ""
    one = most[0]
    return UserError(
        f"{len(bad):,} of {rows:,} rows are bad, {over}most often "
        f"{kind!r} ({len(most):,}), e.g. row {one.row} of {one.table}: {one.file or 'no file'}: {one.reason}{where}. "
        f"{way}"
    )


def _record(out: Path, shard: Shard) -> Path:
    return out / PARTS / f"{shard.name}.json"


def _finished(out: Path, shard: Shard) -> dict[str, Any] | None:
    """The record of a shard that an earlier start finished, if both are whole."""
    try:
        record: dict[str, Any] = json.loads(_record(out, shard).read_text(encoding="utf-8", errors="surrogatepass"))
        if any(b["kind"] == LATE for b in record["bad"]):
            return None
        if record["entry"] is None or (out / shard.name).stat().st_size == record["entry"]["bytes"]:
            return record
    except (OSError, ValueError, KeyError, RecursionError):
        pass
    return None


def _method() -> str:
    # A forked child costs nothing, whereas a spawned one imports everything again.
    return "fork" if sys.platform == "linux" else "spawn"


@contextmanager
def _pool(workers: int, done: Any) -> Iterator[ProcessPoolExecutor]:
    context: Any = multiprocessing.get_context(_method())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(done,))
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(done: Any) -> None:
    """In a worker: it ends with its parent, however that ends, and leaves Ctrl-C to it."""
    global _done
    _done = done
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
