"""``train.py`` with a meter beside it.

    python -m experiments.throughput.hvlm_run FOLDER OVERRIDES

Writes ``FOLDER/measured.json``, and, where ``FOLDER/start.pt`` is asked for (the environment's THROUGHPUT_START=1), the
weights before the first step and every step's text rows, for the plain loop to begin and go on with the same.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from experiments.memory import memory_mb, peak_since, start_peak
from experiments.throughput.cases import WARM
from hvlm.training import chain
from hvlm.types import Batch

START = "THROUGHPUT_START"


class Meter(Callback):
    """Processor time and memory of the steps after the first ``WARM``.

    base_mb: resident memory before anything was built.
    """

    def __init__(self, folder: Path, base_mb: float) -> None:
        self.folder, self.base_mb = folder, base_mb
        self.losses: list[Any] = []
        self.rows: list[dict[str, Any]] = []
        self.samples = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if START in os.environ:
            model = pl_module.model
            self.start = {
                "vision": {k: v.clone() for k, v in model.vision.model.state_dict().items()},
                "vision_config": model.vision.model.config.to_dict(),
                "language": {k: v.clone() for k, v in model.language.model.state_dict().items()},
                "language_config": model.language.model.config.to_dict(),
                "connector": {k: v.clone() for k, v in model.connector.project.layers.state_dict().items()},
                "mean": model.vision.mean,
                "std": model.vision.std,
                "rates": {g["name"]: g["lr"] for g in trainer.optimizers[0].param_groups},
            }

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if START in os.environ:
            assert batch.uids is not None
            keys = [uid.rsplit("/", 1)[1] for uid in batch.uids]
            self.rows.append({
                "keys": [keys[clip] for clip in batch.clip_K.tolist()], "ids": batch.input_ids_KS,
                "mask": batch.attention_mask_KS, "learned": batch.loss_mask_KS,
            })  # fmt: skip

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].detach())
        if batch_idx + 1 == WARM:
            start_peak()
            self._began = time.process_time(), time.perf_counter()
        elif batch_idx >= WARM:
            self.samples += len(batch.clip_K)
        self._ended = time.process_time(), time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        cpu, wall = (b - a for a, b in zip(self._began, self._ended, strict=True))
        write(self.folder, cpu, wall, self.samples, peak_since(self.base_mb), [float(x) for x in self.losses])
        if START in os.environ:
            torch.save(self.start | {"rows": self.rows}, self.folder / "start.pt")


def write(
    folder: Path, cpu: float, wall: float, samples: int, peak_mb: float, losses: list[float], flops: float | None = None
) -> None:
    """What every way measures. peak_mb: of the timed steps, above what stood before anything was built. flops: of a
    step."""
    measured = {
        "cpu_s": cpu, "wall_s": wall, "samples": samples, "losses": losses, "peak_mb": peak_mb, "flops": flops,
    }  # fmt: skip
    (folder / "measured.json").write_text(json.dumps(measured), encoding="utf-8")


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    given, base = chain.callbacks, memory_mb("VmRSS")
    chain.callbacks = lambda *args, **kwargs: [*given(*args, **kwargs), Meter(folder, base)]
    os.chdir(folder)
    chain.run([*sys.argv[2:], "run=measured"])


if __name__ == "__main__":
    main()
