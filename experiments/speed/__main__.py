"""How much faster is bfloat16 than float32 on this CPU, how fast does the reader read, and do language rooms differ?

    python -m experiments.speed [--repeats 10] [--threads 2] [--only precision batches reader causal]

Both precisions of a case are timed in turns in one process, median of the repeats. Cases: a training step of the
demo's SFT stage, of its vision stage, and a forward pass of a DINOv2-small-sized encoder over 8 frames of 224 pixels.
Batches: clips a second from shards to ``Batch``, beside decoding alone. The reader: frames a CPU second beside decord
(``reader.py``). Causal: SmolLM2-135M in both language rooms (``causal.py``). Writes results.json beside this file; with
``--only``, the records of the other parts stay.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from experiments.speed import causal, reader
from hvlm import assembly
from hvlm.config.compose import compose
from hvlm.data.decode import decode
from hvlm.data.views import Questions
from hvlm.evaluation import results
from hvlm.vision.dinov2 import Dinov2

HERE = Path(__file__).parent
PRECISIONS = ("32-true", "bf16-mixed")
PARTS = ("precision", "batches", "reader", "causal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    records = []
    if "precision" in options.only:
        records += precision(options.repeats, options.threads)
    if "batches" in options.only:
        records += batches()
    if "reader" in options.only:
        records += reader.records(options.repeats)
    if "causal" in options.only:
        records += causal.records(options.repeats)
    if set(options.only) == set(PARTS):
        results.write(HERE / "results.json", records)
    else:
        results.update(HERE / "results.json", records)


def precision(repeats: int, threads: int) -> list[results.Record]:
    """Both precisions of every case."""
    records = []
    cases = {"sft_step": stage_step("sft"), "vision_step": stage_step("vision"), "dinov2_small_forward": dinov2()}
    for name, (step, samples) in cases.items():
        seconds = in_turns(step, repeats)
        for dtype in PRECISIONS:
            median = statistics.median(seconds[dtype])
            ratio = statistics.median(seconds["32-true"]) / median
            columns = {"case": name, "dtype": dtype, "threads": threads, "ratio_to_fp32": round(ratio, 3)}
            records.append(record(dtype, samples / median, repeats, sum(seconds[dtype]), columns))
            print(f"{name:24s} {dtype:12s} {median * 1e3:8.1f} ms  {ratio:5.2f} x float32")
    return records


def record(variant: str, value: float, n: int, seconds: float, columns: dict) -> results.Record:
    return results.make("speed", variant, "samples_per_s", value, stderr=None, n=n, chance=None, seeds=[1],
                        seconds=seconds, command="python -m experiments.speed", columns=columns)  # fmt: skip


def in_turns(step: Callable[[], None], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat: fp32, bf16, fp32, bf16, ... after two rounds to warm up."""
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for i in range(repeats + 2):
        for precision in PRECISIONS:
            half = (
                torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16-mixed" else contextlib.nullcontext()
            )
            started = time.perf_counter()
            with half:
                step()
            if i >= 2:
                seconds[precision].append(time.perf_counter() - started)
    return seconds


def stage_step(label: str) -> tuple[Callable[[], None], int]:
    """One training step of a stage of the demo on one batch, and its clips."""
    cfg = compose(["experiment=demo", f"stage={label}"])
    data = assembly.dataset(cfg)
    data.prepare()
    if label == "vision":
        chat, model = None, assembly.encoder(cfg)
    else:
        chat = assembly.chat(cfg, data)
        model = assembly.model(cfg, chat)
    stage = assembly.stage(cfg, model, data)
    stage.configure_model()
    reading = assembly.datamodule(cfg, stage, data, chat, None)
    batch = next(iter(reading.loader("train", stage.view, stage.rows_per_clip, stage.batch_size, stage.batch_size)))
    optimizer = stage.configure_optimizers()["optimizer"]

    def step() -> None:
        loss = sum(term.total / term.count for term in stage.losses(batch).terms.values())
        with torch.autocast("cpu", enabled=False):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return step, batch.num_clips


def dinov2() -> tuple[Callable[[], None], int]:
    vision = Dinov2().eval()
    frames = torch.randint(0, 256, (1, 8, 3, 224, 224), dtype=torch.uint8)

    @torch.inference_mode()
    def forward() -> None:
        vision.encode(frames, torch.zeros(1, 8), torch.ones(1, 8, dtype=torch.bool))

    return forward, 8


def batches() -> list[results.Record]:
    """Clips per second of the whole reader (no cache, this process) and of decoding alone, on the same clips."""
    cfg = compose(["experiment=demo", "stage=sft", "trainer.cache_mb=0"])
    data = assembly.dataset(cfg)
    data.prepare()
    chat = assembly.chat(cfg, data)
    whole_reader = assembly.reader(cfg, assembly.input_spec(cfg, assembly.model(cfg, chat)), data, chat)
    clips = data.manifest().split("val")
    videos = [clips.read(i)["mp4"] for i in range(len(clips))]
    started = time.perf_counter()
    for i, video in enumerate(videos):
        decode(video, cfg["dataset"]["num_frames"], name=clips.keys[i], size=(64, 64))
    decoding = time.perf_counter() - started
    started = time.perf_counter()
    for _ in whole_reader.loader("val", Questions(), 5, 8):
        pass
    whole = time.perf_counter() - started
    print(f"reader {len(videos) / whole:.0f} clips/s, decoding alone {len(videos) / decoding:.0f} clips/s")
    columns = {"case": "reading", "threads": 1}
    return [
        record(name, len(videos) / s, len(videos), s, columns) for name, s in (("reader", whole), ("decode", decoding))
    ]


if __name__ == "__main__":
    main()
