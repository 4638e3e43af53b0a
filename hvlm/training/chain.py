"""One command, several stages: each starts from the weights of the one before; its folder remembers what is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from hvlm import build
from hvlm.chat import Chat
from hvlm.config.compose import plan, stage_name
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.interop.fvlm_weights import is_release, load_release, read_release
from hvlm.io.checkpoint import find_checkpoint, load_checkpoint, load_into, load_weights, weights_hash
from hvlm.model import VLM, Encoder
from hvlm.rebuild import metadata_of, with_own_merger
from hvlm.stage._base import Stage
from hvlm.tasks import run_benchmark, run_preference
from hvlm.training.callbacks import Norms, Throughput, progress
from hvlm.training.clip_table import ClipTable
from hvlm.training.file_logger import FileLogger
from hvlm.training.resume_callbacks import GracefulStop, RngState
from hvlm.training.run_dir import RunDir, default_run
from hvlm.training.trainer import make_trainer_kwargs

log = logging.getLogger(__name__)

ADDED = ("merger", "attention", "fusion", "adapter")  # what may be added to a trained model


class Outcome(NamedTuple):
    """What ``train.py`` returns: the run's folder, {stage label: its finished.json}, and the benchmark's records."""

    run: Path
    stages: dict[str, dict[str, Any]]
    records: list[results.Record]


def run(overrides: Sequence[str], command: str | None = None) -> Outcome:
    """Train every stage that is not finished yet, then evaluate the last one's weights on held-out clips."""
    # Every stage is composed, checked and rehearsed before the first one starts.
    stages = plan(overrides)
    for cfg in stages.values():
        build.dry_build(cfg)
    first = next(iter(stages.values()))
    name = first["run"] or default_run(stages, overrides)
    # Read before any data is made: a missing or damaged start is the cheapest mistake to find.
    previous: Path | None = find_start(first["init_from"]) if first["init_from"] else None
    start: Path | None = None  # what the last stage began with
    finished: dict[str, dict[str, Any]] = {}
    for label, cfg in stages.items():
        trained = cfg["vision"].get("source", "scratch") != "scratch"
        if stage_name(cfg) == "vision" and trained and cfg["stage"]["trainable"].get("vision", 0) > 0:
            log.info(f"{label}: skipped, vision.source={cfg['vision']['source']} brings trained weights")
            continue
        folder = RunDir(name, label)
        if folder.is_finished() and cfg["resume"] != "never":
            folder.prepare(cfg)  # refuses a folder of the same name that was made with other settings
            log.info(f"{label}: finished before, {folder.path}")
        else:
            train_stage(cfg, folder, previous)
        finished[label] = folder.finished()
        start, previous = previous, folder.path
    last = list(stages.values())[-1]
    root = RunDir(name, next(iter(stages))).run_path
    records: list[results.Record] = []
    if last["evaluate"] and finished and stage_name(last) != "vision" and rank_zero_only.rank == 0:
        records = run_benchmark(root, last, root, command)
        if stage_name(last) == "dpo" and start is not None and (is_release(start) or metadata_of(start)["chat"]):
            records = run_preference(root, start, last, root, command)
    return Outcome(root, finished, records)


def train_stage(cfg: Mapping[str, Any], folder: RunDir, init_from: Path | None) -> None:
    """One stage, from ``init_from``'s weights (or from nothing), continuing where an earlier call was stopped."""
    folder.prepare(cfg)
    lightning.seed_everything(cfg["seed"], verbose=False)
    resume = folder.resume_from(cfg["resume"])
    trainer_kwargs = make_trainer_kwargs(cfg["trainer"], cfg["stage"]["steps"])
    data = build.dataset(cfg)
    data.prepare()
    stage, chat = start_stage(cfg, data, init_from)
    stage.model.features = build.frozen_features(cfg, stage, data)
    reading = build.datamodule(cfg, stage, data, chat, folder.path / "quarantine.jsonl")
    company = callbacks(cfg, folder)
    written = loggers(cfg, folder, fresh=resume is None)
    trainer = lightning.Trainer(
        **trainer_kwargs,
        default_root_dir=folder.path,
        logger=written,
        callbacks=company,
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in company),
    )
    log.info(f"{folder.path.name}: {cfg['stage']['steps']} steps, {describe(stage)}")
    stage.prepare(lambda: every_pair(reading, stage))
    with closing(written):
        before = 0 if resume is None else load_checkpoint(resume)["global_step"]
        started, worked = time.monotonic(), time.process_time()
        trainer.fit(stage, datamodule=reading, ckpt_path=resume, weights_only=True)
        took = {
            "steps_here": trainer.global_step - before,
            "seconds": round(time.monotonic() - started, 2),
            "cpu_seconds": round(time.process_time() - worked, 2),
        }
        if trainer.global_step < trainer.max_steps:
            raise UserError(
                f"{folder.path} stopped at step {trainer.global_step} of {trainer.max_steps} (trainer.max_time or a "
                "signal); the same command continues"
            )
        trainer.limit_val_batches = 1.0  # 0 while fitting unless trainer.val_every asks for it
        validated = trainer.validate(stage, datamodule=reading, verbose=False, weights_only=True)
    trainer.save_checkpoint(folder.last)
    if trainer.is_global_zero:
        state = {k.removeprefix("model."): v for k, v in stage.state_dict().items() if k.startswith("model.")}
        metrics = {k: float(v) for v in validated for k, v in v.items()}
        folder.finish(weights_hash(state), trainer.global_step, took)
        shown = [f"done in {took['seconds']:.0f} s", *(f"{k} {v:.4g}" for k, v in metrics.items())]
        log.info(f"{folder.path.name}: {', '.join(shown)}")
    stage.model.features = None  # many gigabytes, and what comes next may need them
    trainer.strategy.barrier()


def find_start(path: str) -> Path:
    """What ``init_from`` names, having looked inside: a checkpoint, a run folder, or weights in fVLM's layout."""
    if is_release(path):
        read_release(path)
        return Path(path)
    found = find_checkpoint(path)
    metadata_of(found)
    return found


def start_stage(cfg: Mapping[str, Any], data: Any, init_from: Path | None) -> tuple[Stage, Chat | None]:
    """The stage around a backbone with its starting weights, and the tokenizer that belongs to them (None: no text).

    A checkpoint of stage 0 holds the encoder alone: everything else then starts as it would without ``init_from``.
    A release brings all weights but no tokenizer: that is the configured language model's own.
    """
    name = stage_name(cfg)
    if init_from is not None and is_release(init_from):
        return _start_from_release(cfg, data, init_from)
    metadata = None if init_from is None else metadata_of(init_from)
    if name == "vision":
        chat, model = None, build.encoder(cfg)
    elif metadata is None or metadata["stage"] == "vision":
        chat = build.chat(cfg, data)
        model = build.model(cfg, chat)
    else:
        chat = Chat.from_json(metadata["chat"])
        model = build.model(cfg, chat, weights=False)
    if init_from is not None:
        weights = load_weights(init_from)
        if metadata["stage"] == "vision" or name == "vision":
            encoder = {k.removeprefix("vision."): v for k, v in weights.items() if k.startswith("vision.")}
            load_into(model.vision, encoder, init_from)
        else:
            weights = with_own_merger(weights, model)
            load_into(model, weights | _new_rooms(model, weights), init_from)
    return _stage_around(model, chat, cfg, data), chat


def _new_rooms(model: VLM, weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of optional rooms that the start did not have, and of adapters under a name that it did not have:
    these begin as they were built."""
    held = {_room_of(name) for name in weights}
    own = {name: value for name, value in model.state_dict().items() if _room_of(name) not in held}
    own = {name: value for name, value in own.items() if name.split(".", 1)[0] in ADDED}
    if own:
        rooms = ", ".join(dict.fromkeys(map(_room_of, own)))
        log.info(f"{rooms}: not in the weights that this stage starts from, begins untrained")
    return own


def _room_of(name: str) -> str:
    """The room that a weight belongs to; each of an adapter's names counts as one."""
    first, second, *_ = name.split(".")
    return f"adapter.{second}" if first == "adapter" else first


def _start_from_release(cfg: Mapping[str, Any], data: Any, path: Path) -> tuple[Stage, Chat]:
    if stage_name(cfg) == "vision":
        raise UserError(
            f"init_from={path}: stage=vision trains an encoder from nothing; start with stage=align or later"
        )
    chat = build.chat(cfg, data)
    model = build.model(cfg, chat, weights=False)
    report = load_release(model, path)
    if report.missing:
        more = f" and {len(report.missing) - 3} more" if len(report.missing) > 3 else ""
        raise UserError(
            f"init_from={path}: has no {', '.join(report.missing[:3])}{more}; fVLM's layout belongs to "
            "vision=dinov2_* connector=foveated connector.projector=linear connector.standardise=false"
        )
    log.info(f"{path}: {len(report.matched)} tensors taken, {len(report.unexpected)} left: {report.unexpected[:3]}")
    return _stage_around(model, chat, cfg, data), chat


def _stage_around(model: VLM | Encoder, chat: Chat | None, cfg: Mapping[str, Any], data: Any) -> Stage:
    stage = build.stage(cfg, model, data)
    text = None if chat is None else chat.to_json()
    stage.metadata = {"config": dict(cfg), "chat": text, "stage": stage_name(cfg)}
    return stage


# -- parts -------------------------------------------------------------------------------------------------------------


def loggers(cfg: Mapping[str, Any], folder: RunDir, fresh: bool) -> list[Logger]:
    """CSV and JSONL always, Weights & Biases beside them with ``logger=wandb``. ``fresh``: nothing is continued."""
    made: list[Logger] = [FileLogger(folder.path, fresh)]
    if cfg["logger"]["name"] == "wandb":
        from hvlm.training.wandb_logger import wandb_logger

        made.append(wandb_logger(cfg, folder.path, fresh))
    return made


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Ends the W&B runs among ``loggers`` with the block: as failed when an exception (a signal, too) leaves it.

    Lightning leaves a run open, and the next stage of a chain would write into it.
    """
    code = 1
    try:
        yield
        code = 0
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=code)


def callbacks(cfg: Mapping[str, Any], folder: RunDir) -> list[Callback]:
    settings = cfg["callback"]
    made: list[Callback] = [
        Throughput(),
        Norms(),
        RngState(),
        GracefulStop(),
        ModelCheckpoint(
            folder.checkpoints,
            filename="step-{step}",
            auto_insert_metric_name=False,
            monitor="step",
            mode="max",
            save_top_k=settings["keep"],
            every_n_train_steps=cfg["trainer"]["checkpoint_every"],
            save_on_train_epoch_end=False,
        ),
    ]
    if settings["progress"]:
        made.append(progress(folder.path.name))
    if settings["media"]:
        made.append(ClipTable(folder.path / "clips", settings["media"]))
    return made


def every_pair(reading: Any, stage: Stage) -> Any:
    """Batches with every pair of the training and validation clips."""
    for split in ("train", "val"):
        yield from reading.loader(split, stage.view, None, stage.batch_size)


def describe(stage: Stage) -> str:
    """Every part with its size and its learning rate, in words."""
    said = []
    for name, members in stage.parts().items():
        rate = f"at {stage.trainable[name]:g}" if name in stage.trainable else "frozen"
        said.append(f"{name} {sum(p.numel() for _, p in members) / 1e6:.2f} M {rate}")
    return ", ".join(said)
