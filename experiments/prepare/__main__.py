"""What do the checks of ``hvlm prepare`` cost, beside decoding and writing alone?

    python -m experiments.prepare [--videos 200] [--rows 800] [--workers 2] [--repeats 3]

Both make the same shards of the same videos with equally many processes, in turns. ``prepare`` is the whole command:
table, columns, splits, decoding under a deadline in a process that can be killed, texts read as the reader reads them.
``floor`` is given the finished plan and decodes the same frames in its own processes, with no deadline, and writes the
shards. Writes results.json beside this file: rows a second, and CPU seconds, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
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
from pathlib import Path
from typing import Any

import av
import numpy as np

from hvlm.data.shard_index import write_shard
from hvlm.evaluation import results
from hvlm.prepare import plan as planning
from hvlm.prepare import source
from hvlm.prepare.command import prepare
from hvlm.prepare.plan import Shard
from hvlm.prepare.probe import probe
from hvlm.prepare.settings import Settings, read
from hvlm.prepare.texts import sample_json

HERE = Path(__file__).parent
DISTINCT = 3  # videos that are encoded; the others are these with another box that no reader looks at
SIZE, FPS, SECONDS = (540, 960), 25, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        table = make(folder / "in", options.videos, options.rows)
        words = [str(table), f"out={folder / 'out'}", f"workers={options.workers}"]
        settings = read(words)
        shards = planning.make(source.find(settings)).shards
        ways: dict[str, Callable[[], Any]] = {
            "floor": lambda: floor(shards, folder / "out", options.workers, settings),
            "prepare": lambda: quietly(words),
        }
        wall: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(options.repeats + 1):  # the first one fills the disk's cache
            for name, work in ways.items():
                shutil.rmtree(folder / "out", ignore_errors=True)
                before, started = processor_seconds(), time.perf_counter()
                work()
                if repeat:
                    wall[name].append(time.perf_counter() - started)
                    cpu[name].append(processor_seconds() - before)
        records = [record(name, wall, cpu, options) for name in ways]
        results.write(HERE / "results.json", records)


def record(
    name: str, wall: dict[str, list[float]], cpu: dict[str, list[float]], options: argparse.Namespace
) -> results.Record:
    """Medians of the repeats; the shares of the floor are medians over neighbours in time."""
    rate, used = options.rows / statistics.median(wall[name]), statistics.median(cpu[name])
    columns: dict[str, Any] = {"videos": options.videos, "workers": options.workers, "cpu_s": round(used, 2)}
    for clock, seconds in (("wall", wall), ("cpu", cpu)):
        shares = [floor / ours for floor, ours in zip(seconds["floor"], seconds[name], strict=True)]
        columns[f"{clock}_of_floor"] = round(statistics.median(shares), 3)
    print(f"{name:8s} {rate:8.1f} rows/s  {columns}")
    return results.make("prepare", name, "rows_per_s", rate, stderr=None, n=options.repeats, chance=None, seeds=[1],
                        seconds=sum(wall[name]), command="python -m experiments.prepare", columns=columns)  # fmt: skip


def make(folder: Path, videos: int, rows: int) -> Path:
    """A table and its videos: noise that moves, so that they are as large as filmed ones."""
    folder.mkdir()
    bases = [encoded(seed) for seed in range(DISTINCT)]
    for i in range(videos):
        (folder / f"v{i}.mp4").write_bytes(bases[i % DISTINCT] + struct.pack(">I4s", 8 + i, b"free") + bytes(i))
    table = folder / "table.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "question", "answer"])
        writer.writerows(
            [f"v{i % videos}.mp4", f"what happens in part {i}?", f"this and that, {i}"] for i in range(rows)
        )
    return table


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


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
