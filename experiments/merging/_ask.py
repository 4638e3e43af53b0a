"""One model, every merger and every budget: the clips are read once and encoded once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from experiments.merging.__main__ import COMMAND, QUESTION, ROOT, free_folder, free_variants, settings
from hvlm import build, results
from hvlm.config import plan
from hvlm.evaluate import RESULTS, evaluate
from hvlm.frozen import FrozenFeatures
from hvlm.model import VLM
from hvlm.rebuild import overlay, rebuild, stored_config
from hvlm.tasks import costs
from hvlm.trainer import choose_precision
from hvlm.types import Wants

log = logging.getLogger(__name__)


def ask_all(seed: int, label: str) -> None:
    torch.set_num_threads(1)
    checkpoint = ROOT / f"seed{seed}" / "base" / label
    for outline in (True, False):
        todo = [v for v in free_variants() if not (free_folder(seed, label, outline, *v) / RESULTS).exists()]
        if not todo:
            continue
        cfg = configuration(checkpoint, [] if outline else ["dataset.outline=false", "dataset.train_clips=8"])
        model, chat = rebuild(checkpoint, cfg)
        model.features = FrozenFeatures(model.vision, Wants(saliency="attention"), wants_patches=True)
        data = build.dataset(cfg)
        data.prepare()
        precision, _ = choose_precision(cfg["trainer"]["precision"], cfg["trainer"]["accelerator"])
        memory: dict[int, Any] = {}
        grid = model.vision.grid(model.vision.image_size, model.vision.image_size)
        for merger, keep in todo:
            given = configuration(checkpoint, settings(merger, keep))
            model.merger = build.room(given["merger"], needs_frames=model.connector.needs_frames)
            folder = free_folder(seed, label, outline, merger, keep)
            benchmark = build.room({**cfg["benchmark"], "blind": merger == "none"})
            records = evaluate(
                model, chat, data, benchmark, order=cfg["order"], num_frames=cfg["dataset"]["num_frames"],
                image_size=model.vision.image_size, precision=precision, out_dir=folder, question=QUESTION,
                variant=merger, seed=seed, sheets=0, command=COMMAND, motion=grid, memory=memory,
            )  # fmt: skip
            if outline:
                records += [r | {"variant": merger} for r in cost(model, chat, data, given, precision)]
            results.write(folder / RESULTS, records)
            log.warning("%s %g", merger, keep)


def cost(model: VLM, chat: Any, data: Any, cfg: dict[str, Any], precision: str) -> list[results.Record]:
    """With the encoder in it: without what is remembered of the clips."""
    features, model.features = model.features, None
    try:
        return costs(model, chat, data, cfg, precision, question=QUESTION, command=COMMAND)
    finally:
        model.features = features


def configuration(checkpoint: Path, overrides: list[str]) -> dict[str, Any]:
    (given,) = plan(["stage=sft", "connector=patches", *overrides]).values()
    return overlay(stored_config(checkpoint), given, overrides)
