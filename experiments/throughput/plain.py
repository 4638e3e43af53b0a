"""The loop that one writes with transformers and PyTorch: a ``Dataset`` that decodes, models asked for their loss.

    python -m experiments.throughput.plain FOLDER START PRECISION SHARDS [checkpoints]

Begins with START's weights and reads its rows, from the same videos, with the same decoder, optimiser and rates; texts
are tokenised already. Each row has its own video, as a collator of a vision-language model gives it. Writes
``FOLDER/measured.json``.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

from experiments.memory import memory_mb, peak_since, start_peak
from experiments.throughput.cases import FRAMES, WARM
from experiments.throughput.hvlm_run import write
from hvlm.data.decode import decode, decode_images
from hvlm.data.shard_index import load_manifest
from hvlm.training.profile import Clock, CountStep


class Rows(Dataset[dict[str, Tensor]]):
    """A sample: the frames of one video and one tokenised text."""

    def __init__(self, files: Mapping[str, Mapping[str, bytes]], steps: list[dict[str, Any]], size: int) -> None:
        self.files, self.size = files, size
        self.samples = [
            {"key": key, "ids": ids[mask], "labels": ids.masked_fill(~learned, -100)[mask]}
            for step in steps
            for key, ids, mask, learned in zip(step["keys"], step["ids"], step["mask"], step["learned"], strict=True)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.samples[index]
        files, key, size = self.files[sample["key"]], sample["key"], (self.size, self.size)
        if "mp4" in files:
            frames, _ = decode(files["mp4"], FRAMES, name=key, size=size)
        else:
            stills = [files[name] for name in sorted(files) if name.endswith("jpg")]
            frames, _ = decode_images(stills, FRAMES, name=key, fps=1.0, size=size)
        return {"frames": torch.from_numpy(frames), "ids": sample["ids"], "labels": sample["labels"]}


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    pad = nn.utils.rnn.pad_sequence
    ids = [s["ids"] for s in samples]
    return {
        "frames": torch.stack([s["frames"] for s in samples]),
        "ids": pad(ids, batch_first=True),
        "mask": pad([torch.ones_like(x) for x in ids], batch_first=True),
        "labels": pad([s["labels"] for s in samples], batch_first=True, padding_value=-100),
    }


class Model(nn.Module):
    """A token a frame, the mean of its patches, before the text."""

    def __init__(self, start: Mapping[str, Any], checkpoints: bool) -> None:
        super().__init__()
        kept = {"vision_config": Dinov2Config, "language_config": LlamaConfig}
        configs = {
            name: cls(**{k: v for k, v in start[name].items() if not k.startswith("_")}) for name, cls in kept.items()
        }
        self.vision = Dinov2Model(configs["vision_config"])
        self.language = LlamaForCausalLM(configs["language_config"])
        (wide, dim), (text_dim, _) = start["connector"]["0.weight"].shape, start["connector"]["2.weight"].shape
        self.connector = nn.Sequential(nn.Linear(dim, wide), nn.GELU(), nn.Linear(wide, text_dim))
        for name in ("vision", "language", "connector"):
            getattr(self, name).load_state_dict(start[name])
        self.register_buffer("mean", start["mean"])
        self.register_buffer("std", start["std"])
        self.learns_vision = "vision" in start["rates"]
        if checkpoints:
            self.vision.gradient_checkpointing_enable()
            self.language.gradient_checkpointing_enable()

    def forward(self, frames: Tensor, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        pixels = (frames.flatten(0, 1).float() - self.mean) / self.std
        with torch.set_grad_enabled(self.learns_vision):
            patches = self.vision(pixels).last_hidden_state[:, 1:]
        visual = self.connector(patches.mean(1)).unflatten(0, frames.shape[:2])
        before = mask.new_ones(visual.shape[:2])
        return self.language(
            inputs_embeds=torch.cat([visual, self.language.get_input_embeddings()(ids)], 1),
            attention_mask=torch.cat([before, mask], 1),
            labels=torch.cat([before * -100, labels], 1),
            use_cache=False,
        ).loss


def main() -> None:
    folder, start_at, precision, shards = Path(sys.argv[1]), *sys.argv[2:5]
    torch.set_num_threads(1)
    base = memory_mb("VmRSS")
    start = torch.load(start_at, weights_only=True)
    steps = start.pop("rows")
    model = Model(start, "checkpoints" in sys.argv[5:]).train()
    size = model.vision.config.image_size
    groups = [{"params": getattr(model, part).parameters(), "lr": rate} for part, rate in start["rates"].items()]
    del start
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    half = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
    wanted = {key for step in steps for key in step["keys"]}
    clips = load_manifest(Path(shards)).split("train")
    files = {clips.keys[i]: clips.read(i) for i in range(len(clips)) if clips.keys[i] in wanted}
    loader = DataLoader(Rows(files, steps, size), batch_size=len(steps[0]["keys"]), collate_fn=collate)
    losses, samples = [], 0
    for i, batch in enumerate(loader):
        with half:
            loss = model(**batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if i + 1 == WARM:
            start_peak()
            began = time.process_time(), time.perf_counter()
        elif i >= WARM:
            samples += len(batch["ids"])
    cpu, wall = time.process_time() - began[0], time.perf_counter() - began[1]
    peak, counted = peak_since(base), CountStep(Clock())
    with counted:
        with half:
            loss = model(**batch)
        loss.backward()
    write(folder, cpu, wall, samples, peak, [float(x) for x in losses], float(counted.total))


if __name__ == "__main__":
    main()
