"""What do the checks of ``hvlm prepare`` cost, beside decoding alone, and beside decoding and writing alone?

    python -m experiments.prepare [--videos 1000] [--rows 10000] [--workers 2] [--repeats 6]
    python -m experiments.prepare.kills                             # the same rows, killed at random moments

The table has ``--rows`` rows about ``--videos`` videos, one in a hundred broken: a missing file, no bytes, no UTF-8, an
id that stands there already, a path that leads out, as often each. All ways go through the same videos with as many
processes, at the same time, so that whatever else the machine does slows all of them alike (``--turns``: one after the
other). ``prepare`` is the whole command: table, columns, splits, decoding under a deadline in a process
that can be killed, texts read as the reader reads them, shards and their sums. ``decode`` is given the finished plan
and decodes the same frames in its own processes, with no deadline; ``floor`` does so and writes the shards. Writes
results.json beside this file after every repeat: rows a second, and CPU seconds, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import multiprocessing
import os
import shutil
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import util
from pathlib import Path
from typing import Any

import av
import numpy as np

from experiments.started import as_started
from hvlm.data.shard_index import load_manifest, write_shard
from hvlm.evaluation import results
from hvlm.prepare import plan as planning
from hvlm.prepare import source
from hvlm.prepare.command import prepare
from hvlm.prepare.plan import Shard
from hvlm.prepare.probe import probe
from hvlm.prepare.settings import Settings, read
from hvlm.prepare.texts import sample_json
from hvlm.prepare.work import QUARANTINE

HERE = Path(__file__).parent
COMMAND = "python -m experiments.prepare"
DISTINCT = 3  # videos that are encoded; the others are these with another box that no reader looks at
SIZE, FPS, SECONDS = (540, 960), 25, 8
EVERY = 100  # one row in so many is broken
BROKEN: tuple[tuple[str, Callable[[list[str]], list[str]]], ...] = (
    ("missing file", lambda row: [row[0], "gone.mp4", *row[2:]]),
    ("empty file", lambda row: [row[0], "empty.mp4", *row[2:]]),
    ("not a row", lambda row: [*row[:3], "caf\udce9"]),  # Latin-1 in a table that is UTF-8
    ("the id again", lambda row: ["row0", *row[1:]]),
    ("path leads out", lambda row: [row[0], "../../etc/passwd", *row[2:]]),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--ways", default="decode,prepare", help="also: floor")
    parser.add_argument("--turns", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        table = make(folder / "in", options.videos, options.rows)
        words = [str(table), f"out={folder / 'prepare'}", f"workers={options.workers}"]
        settings = read(words)
        shards = planning.make(source.find(settings)).shards
        ways: dict[str, Callable[[], Any]] = {
            "decode": lambda: decode(shards, options.workers, settings),
            "floor": lambda: floor(shards, folder / "floor", options.workers, settings),
            "prepare": lambda: quietly(words),
        }
        ways = {name: ways[name] for name in options.ways.split(",")}
        loads: list[float] = []
        wall: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        decode(shards[:1], options.workers, settings)  # imports
        for repeat in range(options.repeats):
            for name in ways:
                shutil.rmtree(folder / name, ignore_errors=True)
            order = list(ways.items())[:: -1 if repeat % 2 else 1]  # the machine's other work is no trend
            for group in [[one] for one in order] if options.turns else [order]:
                for name, (seconds, used) in at_once(dict(group)).items():
                    wall[name].append(seconds)
                    cpu[name].append(used)
                    print(f"{name:8s} {seconds:.1f} s, {used:.1f} CPU s", flush=True)
                loads.append(os.getloadavg()[0])
            if "prepare" in ways:
                check(folder / "prepare", options.rows)
            load = statistics.median(loads)
            results.write(HERE / "results.json", [record(name, wall, cpu, options, load) for name in ways])


def record(
    name: str, wall: dict[str, list[float]], cpu: dict[str, list[float]], options: argparse.Namespace, load: float
) -> results.Record:
    """Means of the repeats and their standard errors; the shares of decoding alone are of each repeat, whose ways are
    neighbours in time. load: of the machine while they ran."""
    rate, error = mean([options.rows / seconds for seconds in wall[name]])
    used, used_error = mean(cpu[name])
    columns: dict[str, Any] = {"videos": options.videos, "rows": options.rows, "workers": options.workers}
    columns |= {"cpu_s": round(used, 2), "cpu_s_stderr": rounded(used_error), "load": round(load, 1)}
    for clock, seconds in (("wall", wall), ("cpu", cpu)):
        share, doubt = mean([alone / ours for alone, ours in zip(seconds["decode"], seconds[name], strict=True)])
        columns |= {f"{clock}_of_decode": round(share, 3), f"{clock}_of_decode_stderr": rounded(doubt)}
    print(f"{name:8s} {rate:8.1f} rows/s  {columns}", flush=True)
    return results.make("prepare", name, "rows_per_s", rate, stderr=error, n=len(wall[name]), chance=None, seeds=[1],
                        seconds=sum(wall[name]), command=as_started(COMMAND), columns=columns)  # fmt: skip


def mean(values: list[float]) -> tuple[float, float | None]:
    """With its standard error, None of one value."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return statistics.fmean(values), error


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def make(folder: Path, videos: int, rows: int) -> Path:
    """A table and its videos: noise that moves, so that they are as large as filmed ones."""
    folder.mkdir()
    bases = [encoded(seed) for seed in range(DISTINCT)]
    for i in range(videos):
        (folder / f"v{i}.mp4").write_bytes(bases[i % DISTINCT] + struct.pack(">I4s", 8 + i, b"free") + bytes(i))
    table = folder / "table.csv"
    with open(table, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "video", "question", "answer"])
        for i in range(rows):
            good = [f"row{i}", f"v{i % videos}.mp4", f"what happens in part {i}?", f"this and that, {i}"]
            writer.writerow(BROKEN[i // EVERY % len(BROKEN)][1](good) if i % EVERY == EVERY - 1 else good)
    (folder / "empty.mp4").touch()
    return table


def check(out: Path, rows: int) -> None:
    """Exactly the good rows came out, and the rest is named."""
    listed = [json.loads(line) for line in (out / QUARANTINE).read_text(encoding="utf-8").splitlines()]
    named = {row["row"]: row["kind"] for row in listed}
    assert named == {i + 1: BROKEN[i // EVERY % len(BROKEN)][0] for i in range(EVERY - 1, rows, EVERY)}
    manifest = load_manifest(out)
    asked = 0
    for split in map(manifest.split, manifest.splits):
        asked += sum(len(json.loads(split.read(i, ["json"])["json"])["questions"]) for i in range(len(split)))
    assert asked == rows - len(listed), f"{asked} questions"


def encoded(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    ground = rng.integers(0, 255, (SIZE[0] // 6, SIZE[1] // 6 + 2 * FPS * SECONDS // 6 + 8, 3), np.uint8)
    ground = ground.repeat(6, 0).repeat(6, 1)
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"crf": "26"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for i in range(FPS * SECONDS):
            picture = np.ascontiguousarray(ground[: SIZE[0], 2 * i : 2 * i + SIZE[1]])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def quietly(words: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(words)


def decode(shards: list[Shard], workers: int, settings: Settings) -> None:
    """Decode, and nothing else."""
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        for future in [pool.submit(decode_alone, shard, settings.frames) for shard in shards]:
            future.result()


def decode_alone(shard: Shard, frames: int) -> None:
    for sample in shard.samples:
        assert sample.medium is not None
        probe(next(iter(sample.medium.members().values())), frames)


def floor(shards: list[Shard], out: Path, workers: int, settings: Settings) -> None:
    """Decode and write, and nothing else."""
    out.mkdir()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        for future in [pool.submit(write_alone, shard, out, settings.frames) for shard in shards]:
            future.result()


def write_alone(shard: Shard, out: Path, frames: int) -> None:
    domains = [sample.domain for sample in shard.samples]
    write_shard(out / shard.name, decoded(shard, frames), shard.split, domains)


def decoded(shard: Shard, frames: int) -> Iterator[tuple[str, dict[str, bytes | Path]]]:
    for sample in shard.samples:
        assert sample.medium is not None
        members = sample.medium.members()
        seconds = probe(next(iter(members.values())), frames)
        more = {"file": sample.medium.name, "duration": round(seconds, 3), "domain": sample.domain}
        yield sample.key, members | {"json": sample_json([part for _, _, part in sample.parts], more)}


def at_once(ways: dict[str, Callable[[], Any]]) -> dict[str, tuple[float, float]]:
    """{way: (seconds, CPU seconds)}, each in a process of its own; its workers and theirs are counted, too."""
    started, names = time.perf_counter(), {}
    for name, work in ways.items():
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work()
                status = 0
            finally:
                end_of_children()
                os._exit(status)
        names[child] = name
    found = {}
    while names:
        child, status, used = os.wait4(-1, 0)
        assert status == 0, f"{names[child]} failed"
        found[names.pop(child)] = time.perf_counter() - started, used.ru_utime + used.ru_stime
    return found


def end_of_children() -> None:
    """The process that decodes for this one ends, so that it is counted."""
    util._exit_function()


if __name__ == "__main__":
    main()
