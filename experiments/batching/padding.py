"""What do batches by frames and tokens save where clips differ in length?

    python -m experiments.batching.padding [--clips 600] [--steps 30]

A set of stills is made: clips of 2 to 16 frames of 64 pixels, with a caption of 4 to 160 words. Plain batches have 16
clips. The others hold at most as many padded frames and text tokens as the largest of the plain ones (``same``), or as
the plain ones on average (``mean``). Of one epoch's batches: the share of frames and of tokens that is padding, and
clips a step. Then a small model learns captions (``stage=align``) from the first ``--steps`` batches of each, reading
included, in turns in one process: clips a CPU second, one thread; ``_packed`` is with ``language.pack=true``.

Adds to results.json beside this file.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hvlm import assembly
from hvlm.config.compose import compose
from hvlm.data.shard_index import write_manifest, write_shard
from hvlm.evaluation import results
from hvlm.types import Batch

HERE = Path(__file__).parent
COMMAND = "python -m experiments.batching.padding"
CLIPS, FRAMES, SIDE = 16, 16, 64
WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "en", "in")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.clips)
        epoch = options.clips // CLIPS
        plain = list(batches(folder, None, epoch))
        mean = {"frames": sum(map(frames, plain)) // epoch, "tokens": sum(map(tokens, plain)) // epoch}
        same = {"frames": max(map(frames, plain)), "tokens": max(map(tokens, plain))}
        mean = {name: max(value, same[name] // CLIPS) for name, value in mean.items()}
        kinds: dict[str, dict[str, int] | None] = {"plain": None, "same": same, "mean": mean}
        records = []
        for name, budget in kinds.items():
            read = plain if budget is None else list(batches(folder, budget, epoch))
            shown = sum(batch.num_clips for batch in read)
            values = {
                "padded_frames": 1 - sum(int(batch.frame_mask_BT.sum()) for batch in read) / sum(map(frames, read)),
                "padded_tokens": 1 - sum(int(b.attention_mask_KS.sum()) for b in read) / sum(map(tokens, read)),
                "clips_a_step": shown / len(read),
                "most_frames": max(map(frames, read)),
                "most_tokens": max(map(tokens, read)),
            }
            records += [record(name, metric, value, shown, 0, options) for metric, value in values.items()]
            print(f"{name:6s} " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
        kinds |= {f"{name}_packed": budget for name, budget in kinds.items()}
        for name, (clips, seconds) in learned(folder, kinds, options.steps).items():
            records.append(record(name, "clips_a_cpu_s", clips / seconds, clips, seconds, options))
            print(f"{name:6s} clips a CPU second {clips / seconds:.4g}", flush=True)
    results.update(HERE / "results.json", records)


def make(folder: Path, clips: int) -> None:
    """One shard of clips, half of them short."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(clips):
        count = int(rng.integers(2, FRAMES + 1)) if i % 2 else int(rng.integers(2, 6))
        words = int(rng.integers(4, 160)) if i % 3 == 0 else int(rng.integers(4, 30))
        text = " ".join(rng.choice(WORDS, words))
        members: dict[str, bytes] = {
            "json": json.dumps({"captions": [{"prompt": "describe .", "text": text}]}).encode()
        }
        for k in range(count):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(file, "JPEG")
            members[f"{k:03d}.jpg"] = file.getvalue()
        rows.append((f"clip{i:05d}", members))
    entry = write_shard(folder / "train-000000.tar", rows, "train", ["general"] * clips)
    write_manifest(folder, {}, {"train-000000.tar": entry}, [])


def stage_of(folder: str, budget: dict[str, int] | None, steps: int, pack: bool = False) -> tuple:
    most = CLIPS if budget is None else 8 * CLIPS
    cfg = compose([
        "stage=align", "dataset=shards", f"dataset.path={folder}", f"dataset.num_frames={FRAMES}",
        f"vision.image_size={SIDE}", f"stage.batch_size={most}", f"stage.steps={steps}", "stage.rows_per_clip=1",
        "trainer.num_workers=0", f"language.pack={pack}",
    ])  # fmt: skip
    cfg["dataset"]["batch"] = budget
    data = assembly.dataset(cfg)
    data.prepare()
    chat = assembly.chat(cfg, data)
    torch.manual_seed(0)
    stage = assembly.stage(cfg, assembly.model(cfg, chat), data)
    stage.configure_model()
    reading = assembly.datamodule(cfg, stage, data, chat, None)
    reading.prepare_data()
    return stage, reading


def batches(folder: str, budget: dict[str, int] | None, steps: int) -> Iterator[Batch]:
    _, reading = stage_of(folder, budget, steps)
    yield from reading.train_dataloader()


def frames(batch: Batch) -> int:
    return batch.frame_mask_BT.numel()


def tokens(batch: Batch) -> int:
    return batch.attention_mask_KS.numel()


def learned(folder: str, kinds: dict[str, dict[str, int] | None], steps: int) -> dict[str, tuple[int, float]]:
    """{kind: (clips, CPU seconds)} of so many steps each, in turns."""
    runs = {}
    for name, budget in kinds.items():
        stage, reading = stage_of(folder, budget, steps + 1, name.endswith("_packed"))
        runs[name] = (stage, stage.configure_optimizers()["optimizer"], iter(reading.train_dataloader()))
    found = dict.fromkeys(kinds, (0, 0.0))
    for i in range(steps + 1):
        for name, (stage, optimizer, read) in runs.items():
            began = time.process_time()
            batch = next(read)
            loss = sum(term.total / term.count for term in stage.losses(batch).terms.values())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if i:  # the first one warms up
                clips, seconds = found[name]
                found[name] = (clips + batch.num_clips, seconds + time.process_time() - began)
    return found


def record(name: str, metric: str, value: float, n: int, seconds: float, options: argparse.Namespace) -> results.Record:
    columns = {"clips": options.clips}
    return results.make("padding", name, metric, value, stderr=None, n=n, chance=None, seeds=[0], seconds=seconds,
                        command=COMMAND, columns=columns)  # fmt: skip


if __name__ == "__main__":
    main()
