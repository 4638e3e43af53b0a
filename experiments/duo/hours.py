"""Two hours of video, watched frame by frame: do memory and the time of a frame stay flat? One variant after the other:

    python -m experiments.duo.hours [--frames 7200] [--every 120] [--checkpoint RUN] [--draw] [--out FILE]

A video of 7,200 frames (64 x 64 pixels, one a second, of the haystack's clips) is written; then ``eval.py task=ask``
watches it in a process of its own for each variant, with a question every ``--every`` frames: ``kvcache=duo`` with no
retrieval heads (streaming heads only), with 25 %, and with all of them, and ``kvcache=full``. The model has one token a
frame and RANDOM weights (what it answers is noise; memory and time do not depend on it), or is ``--checkpoint``'s.

Of each stretch between two questions: keys and values kept, the resident set of the process that watches, and, for each
frame, wall time and processor time of that process. (Decoding runs in another process: it is in the wall time alone.)
Times share the machine with whatever else runs; processor time is the steadier. Questions do not count. Adds to
hours.json beside this file, whose records are of every tenth of the video, and draws docs/figures/hours.png from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hvlm
from experiments.started import as_started
from hvlm.config.compose import compose
from hvlm.data.decode import decode
from hvlm.dataset._haystack import find_videos
from hvlm.evaluation import results
from hvlm.training.checkpoint_io import AtomicCheckpointIO
from hvlm.viz.line_plot import Panel, line_plot
from hvlm.viz.media import write_mp4

HERE = Path(__file__).parent
COMMAND = "python -m experiments.duo.hours"
WORK = Path("runs/duo_hours")
PICTURE = Path("docs/figures/hours.png")
SIDE = 64
QUESTION = "what is it ?"
SINK, RECENT = 64, 256
VARIANTS: dict[str, list[str]] = {
    "duo_0": ["kvcache=duo", "kvcache.retrieval=0"],
    "duo_25": ["kvcache=duo", "kvcache.retrieval=0.25"],
    "duo_100": ["kvcache=duo", "kvcache.retrieval=1"],
    "full": ["kvcache=full"],
}
MODEL = [
    "order=video_first", "connector=mean", "kvcache=duo", "vision.dim=32", "vision.num_layers=1", "vision.num_heads=2",
    f"vision.image_size={SIDE}", "language.hidden_size=256", "language.intermediate_size=512", "language.num_layers=4",
    "language.num_heads=4", "language.num_kv_heads=4", "trainer.precision=32-true", "trainer.threads=1",
]  # fmt: skip
PARTS = 10  # of the video, each a record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=7200)
    parser.add_argument("--every", type=int, default=120, help="frames between questions")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--checkpoint", help="of a model with one token a frame; without it a random one is made")
    parser.add_argument("--work", type=Path, default=WORK, help="where video and model are made")
    parser.add_argument("--draw", action="store_true", help="draw and show what is there, and measure nothing")
    parser.add_argument("--out", type=Path, default=HERE / "hours.json")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    if not options.draw:
        video = make_video(options.work / f"{options.frames}.mp4", options.frames)
        checkpoint = options.checkpoint or make_model(options.work / "random.ckpt")
        for name in options.variants:
            lines, seconds = watch(checkpoint, video, name, options)
            results.update(options.out, as_records(name, lines, seconds, options))
            print(f"{name}: {options.frames} frames in {seconds:.0f} s", flush=True)
    records = results.read(options.out)
    show(records)
    print(draw(records, options.picture))


def make_video(path: Path, frames: int) -> Path:
    """Stretches of 240 frames of the haystack's clips in turn, one frame a second; each time round mirrored anew."""
    if path.exists():
        return path
    clips, parts, count = find_videos(None), [], 0
    while count < frames:
        turn, which = divmod(len(parts), len(clips))
        source = clips[which].path
        found, _ = decode(source, 240, name=source.name, size=(SIDE, SIDE))
        parts.append(found[:, :, :: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1][: frames - count])
        count += len(parts[-1])
    return write_mp4(np.concatenate(parts), path, fps=1.0, scale=1)


def make_model(path: Path) -> Path:
    """A checkpoint of random weights."""
    if path.exists():
        return path
    model = hvlm.build(*MODEL, texts=[QUESTION, "red blue"])
    state = {f"model.{name}": value for name, value in model.vlm.state_dict().items()}
    about = {"config": compose(MODEL), "chat": model.chat.to_json(), "stage": "align", "source_configs": {}}
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, "hvlm": about, "global_step": 0}, path)
    return path


def watch(
    checkpoint: Path | str, video: Path, name: str, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], float]:
    """(the lines that ``task=ask`` wrote, seconds)."""
    out = options.work / name
    moments = ",".join(str(n) for n in range(options.every, options.frames + 1, options.every))
    window = [f"kvcache.sink={SINK}", f"kvcache.recent={RECENT}"] if name != "full" else []
    command = [sys.executable, "eval.py", "task=ask", f"checkpoint={checkpoint}", f"out={out}", f"ask.video={video}",
               f"ask.question={QUESTION}", "ask.fps=1", "ask.stream=true", "ask.max_new_tokens=4",
               f"ask.at=[{moments}]",
               "trainer.threads=1", *VARIANTS[name], *window]  # fmt: skip
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (out / "asked.jsonl").read_text(encoding="utf-8").splitlines()]
    return lines, time.monotonic() - started


def as_records(
    name: str, lines: list[dict[str, Any]], seconds: float, options: argparse.Namespace
) -> list[results.Record]:
    """Of each part of the video: bytes and memory at its end, and medians of the times of its stretches."""
    records = []
    edges = [round(i * len(lines) / PARTS) for i in range(PARTS + 1)]
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        part = lines[first:last]
        if not part:
            continue
        columns = {"frames": part[-1]["frames"], "retrieval": {"duo_0": 0.0, "duo_25": 0.25}.get(name, 1.0),
                   "sink": None if name == "full" else SINK, "recent": None if name == "full" else RECENT,
                   "weights": "random" if options.checkpoint is None else str(options.checkpoint)}  # fmt: skip
        for metric in ("kv_bytes", "resident_mb", "frame_ms", "cpu_ms"):
            values = [line[metric] for line in part if line[metric] is not None]
            if values:
                value = statistics.median(values) if metric.endswith("_ms") else values[-1]
                records.append(results.make("duo_hours", name, metric, value, stderr=None, n=len(values), chance=None,
                                            seeds=[1], seconds=seconds, command=as_started(COMMAND),
                                            columns=columns))  # fmt: skip
    return records


def series(records: list[results.Record], metric: str, scale: float = 1.0) -> dict[str, list[tuple[float, float]]]:
    """{variant: (frames, value)}."""
    found: dict[str, list[tuple[float, float]]] = {}
    for r in records:
        if r["metric"] == metric:
            found.setdefault(r["variant"], []).append((r["frames"], r["value"] * scale))
    return {name: sorted(points) for name, points in found.items()}


def draw(records: list[results.Record], path: Path) -> Path:
    panels = [
        Panel("keys and values, MB", "frames, one a second", series(records, "kv_bytes", 2**-20)),
        Panel("resident set, MB", "frames, one a second", series(records, "resident_mb")),
        Panel("a frame, ms of processor time", "frames, one a second", series(records, "cpu_ms")),
    ]
    return line_plot(panels, path, "two hours of video through task=ask, one token a frame, random weights")


def show(records: list[results.Record]) -> None:
    """A table in Markdown: at the end of the first part, in the middle, and at the end."""
    print("| variant | frames | KV MB | resident MB | ms a frame | of processor time |\n|---|---:|---:|---:|---:|---:|")
    for name in dict.fromkeys(r["variant"] for r in records):
        by = {
            metric: dict(series(records, metric)[name]) for metric in ("kv_bytes", "resident_mb", "frame_ms", "cpu_ms")
        }
        frames = sorted(by["kv_bytes"])
        for n in dict.fromkeys((frames[0], frames[len(frames) // 2 - 1], frames[-1])):
            print(f"| `{name}` | {n:,} | {by['kv_bytes'][n] / 2**20:.2f} | {by['resident_mb'].get(n, 0):.0f} | "
                  f"{by['frame_ms'][n]:.2f} | {by['cpu_ms'][n]:.2f} |")  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
