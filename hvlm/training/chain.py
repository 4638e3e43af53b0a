"""One command, several stages: each starts from the weights of the one before; its folder remembers what is done."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import lightning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from hvlm import assembly
from hvlm.config.compose import plan, stage_name
from hvlm.config.search_path import named_by
from hvlm.data.order import check_shares
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.report import write_report
from hvlm.interop.fvlm_weights import is_release, read_release
from hvlm.io.adapter_files import ADAPTERS
from hvlm.io.checkpoint import find_checkpoint, load_weights, stored_step, weights_hash
from hvlm.io.files import FINISHED, check_writable
from hvlm.io.lock import locked
from hvlm.model import Encoder
from hvlm.rebuild import AUTO, metadata_of
from hvlm.stage._base import Stage
from hvlm.tasks import check_benchmark, run_benchmark, run_preference
from hvlm.training.best import BEST, MONITOR, Found, KeepBest
from hvlm.training.callbacks import Norms, Throughput, progress
from hvlm.training.clip_table import ClipTable
from hvlm.training.file_logger import FileLogger
from hvlm.training.gate_picture import GatePicture
from hvlm.training.guard import Guard
from hvlm.training.identity import default_run
from hvlm.training.parts import Parts, asked, check_parts
from hvlm.training.preflight import check_room
from hvlm.training.profile import Profile, StepProfiler
from hvlm.training.ranks import (
    a_lost_process_is_one_line,
    end_with_the_first_process,
    refuse_left_over_rank,
    starts_others,
)
from hvlm.training.resume_callbacks import GracefulStop, OtherParts, RngState
from hvlm.training.run_dir import RunDir
from hvlm.training.start import chat_of, find_start, metadata_if_there, start_stage
from hvlm.training.trainer import (
    make_trainer,
    make_trainer_kwargs,
    max_seconds,
    no_group_of_one_is_left,
    refuse_pieces_of_nothing,
    refuse_processes_without_a_strategy,
    val_batches,
)

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What ``train.py`` returns: the run's folder, {stage label: its finished.json}, and the benchmark's records."""

    run: Path
    stages: dict[str, dict[str, Any]]
    records: list[results.Record]


def run(overrides: Sequence[str], command: str | None = None) -> Outcome:
    """Train every stage that is not finished yet, then evaluate the last one's weights on held-out clips.

    Args:
        overrides: the command line's.
        command: what was typed, for the records; None leaves it to ``hvlm.evaluation.results``.

    Raises:
        UserError: a mistake in the settings, found before any work; a start that is missing; a folder that belongs to
            another run; a stage that stopped at ``trainer.max_time``.
    """
    with named_by(overrides):
        return _run(overrides, command)


def _run(overrides: Sequence[str], command: str | None) -> Outcome:
    began = time.monotonic()
    end_with_the_first_process()
    # Every stage is composed, checked and rehearsed before the first one starts.
    stages = {label: assembly.settled(cfg) for label, cfg in plan(overrides).items()}
    for cfg in stages.values():
        if cfg["domain"]["adapter"] == AUTO:
            raise UserError(
                "domain=auto picks among specialists that are trained; train with domain=NAME or domain=all"
            )
        refuse_left_over_rank(cfg["trainer"])
        refuse_processes_without_a_strategy(cfg["trainer"])
        refuse_pieces_of_nothing(cfg["trainer"])
        _refuse_artifacts_of_nothing(cfg["logger"])
        max_seconds(cfg["trainer"])
        check_parts(cfg["trainer"])
        if cfg["trainer"]["devices"] != "auto":
            world = cfg["trainer"]["devices"] * cfg["trainer"]["num_nodes"]
            check_shares(cfg["stage"]["batch_size"], world, cfg["trainer"]["accumulate"])
        assembly.dry_build(cfg, metadata_if_there(cfg["init_from"]))
    first = next(iter(stages.values()))
    whole = _whole_chain(stages, overrides)
    name = first["run"] or default_run(whole, _without_stage(overrides) if whole is not stages else overrides)
    is_first = rank_zero_only.rank == 0
    folders = {label: RunDir(name, label, writes=is_first) for label in {**whole, **stages}}
    # Read before any data is made: a missing or damaged start is the cheapest mistake to find.
    if first["init_from"]:
        previous: Path | None = find_start(first["init_from"])
    else:
        previous = _stage_before(next(iter(stages)), whole, folders)
    root = next(iter(folders.values())).run_path
    if is_first:
        check_writable(root, "run", make=False)
    with locked(root, f"run={name}") if is_first else nullcontext(), no_group_of_one_is_left():
        return _train_and_evaluate(stages, folders, root, previous, began, command)


def _train_and_evaluate(
    stages: Mapping[str, Mapping[str, Any]],
    folders: Mapping[str, RunDir],
    root: Path,
    previous: Path | None,
    began: float,
    command: str | None,
) -> Outcome:
    last = list(stages.values())[-1]
    asked = last["evaluate"] and stage_name(last) != "vision"
    labels = [label for label, cfg in stages.items() if not _is_skipped(label, cfg)]
    if asked and labels and not folders[labels[-1]].finished_file.exists():  # before hours of training
        with_text = next(stages[label] for label in labels if stage_name(stages[label]) != "vision")
        check_benchmark(last, chat_of(with_text, previous))
    start: Path | None = None  # what the last stage began with
    finished: dict[str, dict[str, Any]] = {}
    for label, following in zip_longest(labels, labels[1:]):
        cfg, folder = stages[label], folders[label]
        # Whole on the disk must be what the next stage starts from, and what is evaluated in the end.
        needed = following is None or not folders[following].is_finished(num_steps(stages[following]), verified=False)
        if cfg["resume"] != "never" and folder.is_finished(num_steps(cfg), verified=needed):
            # Refuses a folder of the same name that was made with other settings, from other weights or data.
            folder.prepare(cfg, start_hash(previous), data_hash(assembly.dataset(cfg)))
            log.info(f"{label}: finished before, {folder.path}")
        else:
            train_stage(cfg, folder, previous, began)
        finished[label] = folder.finished()
        start, previous = previous, folder.path
    records: list[results.Record] = []
    if asked and finished and rank_zero_only.rank == 0:
        made = find_checkpoint(previous)
        records = run_benchmark(made, last, root, command)
        if stage_name(last) == "dpo" and start is not None and (is_release(start) or metadata_of(start)["chat"]):
            records = run_preference(made, start, last, root, command)
        if last["logger"]["name"] == "wandb":
            from hvlm.training.wandb_logger import write_summary

            write_summary(last, previous, records)
    elif finished and rank_zero_only.rank == 0:
        write_report(root)
    return Outcome(root, finished, records)


def _is_skipped(label: str, cfg: Mapping[str, Any]) -> bool:
    """Stage 0 has nothing to do where the encoder comes trained."""
    trained = cfg["vision"].get("source", "scratch") != "scratch"
    if stage_name(cfg) == "vision" and trained and cfg["stage"]["trainable"].get("vision", 0) > 0:
        log.info(f"{label}: skipped, vision.source={cfg['vision']['source']} brings trained weights")
        return True
    return False


def num_steps(cfg: Mapping[str, Any]) -> int:
    """How many optimiser steps this call wants of the stage."""
    limit = cfg["trainer"]["max_steps"]
    return cfg["stage"]["steps"] if limit is None else min(cfg["stage"]["steps"], limit)


def _without_stage(overrides: Sequence[str]) -> list[str]:
    return [o for o in overrides if o.lstrip("+~").split("=", 1)[0].split(".")[0] != "stage"]


def _whole_chain(stages: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """All stages of the chain of which ``stages`` is one that runs alone; else ``stages``."""
    first = next(iter(stages.values()))
    if len(stages) > 1 or not first["chain"]:
        return stages
    return {label: assembly.settled(cfg) for label, cfg in plan(_without_stage(overrides)).items()}


def _stage_before(label: str, chain: Mapping[str, Mapping[str, Any]], folders: Mapping[str, RunDir]) -> Path | None:
    """Where a stage of a chain that runs alone starts: at the end of the one before it. None: nothing comes before."""
    if label not in chain:
        raise UserError(
            f"stage={label}: this chain's stages are called {', '.join(chain)}, so none of them comes before it; say "
            "what it starts from with init_from=, or leave the chain out with chain=null"
        )
    before = [other for other in list(chain)[: list(chain).index(label)] if not _is_skipped(other, chain[other])]
    if not before:
        return None
    folder = folders[before[-1]]
    if not folder.is_finished():  # of however many steps: what the command says of stage= is about this one
        raise UserError(
            f"stage={label} starts from the end of stage {before[-1]}, and {folder.path} is not finished; run the "
            "whole chain (without stage=), name that run with run=, or say what it starts from with init_from="
        )
    return folder.path


def start_hash(path: Path | None) -> str | None:
    """``weights_hash`` of what a stage starts from; None for nothing. A finished stage's folder says it itself."""
    if path is None:
        return None
    if (path / FINISHED).is_file():
        return json.loads((path / FINISHED).read_text(encoding="utf-8"))["weights_sha256"]
    return weights_hash(read_release(path) if is_release(path) else load_weights(path))


def data_hash(data: Any) -> str | None:
    """Stands for what is learned from: the training data's shards, by name and sum. None where nobody can say."""
    if data.access != "index":
        return None
    try:
        shards = data.manifest().shards
    except UserError:
        return None
    sums = [(name, shard["sha256"]) for name, shard in sorted(shards.items()) if shard["split"] in ("train", "text")]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def train_stage(cfg: Mapping[str, Any], folder: RunDir, init_from: Path | None, began: float | None = None) -> None:
    """One stage, from ``init_from``'s weights (or from nothing), continuing where an earlier call was stopped.

    Args:
        cfg: the stage's resolved configuration.
        folder: where it is kept.
        init_from: a checkpoint, a stage's or run's folder, or a release.
        began: ``time.monotonic()`` when the call began, from which ``trainer.max_time`` counts; None: now.
    """
    start = start_hash(init_from)
    folder.prepare(cfg, start)
    lightning.seed_everything(cfg["seed"], verbose=False)
    limit = max_seconds(cfg["trainer"])
    deadline = None if limit is None else (time.monotonic() if began is None else began) + limit
    company = callbacks(cfg, folder, deadline)
    profiler = StepProfiler() if cfg["trainer"]["profile"] else None
    if profiler is not None:  # last: it times what the others have put in place
        company.append(Profile(profiler, folder.path))
    trainer = make_trainer(
        {
            **make_trainer_kwargs(cfg["trainer"], cfg["stage"]["steps"]),
            "default_root_dir": folder.path,
            "logger": False,
            "callbacks": company,
            "profiler": profiler,
            "enable_progress_bar": any(isinstance(c, ProgressBar) for c in company),
        }
    )
    data = assembly.dataset(cfg)
    data.prepare()
    folder.prepare(cfg, start, data_hash(data))
    resume = folder.resume_from(cfg["resume"])
    stage, chat = start_stage(cfg, data, init_from)
    stage.metadata["start"] = {"path": None if init_from is None else str(init_from), "weights_sha256": start}
    stage.model.features = assembly.frozen_features(cfg, stage, data)
    reading = assembly.datamodule(cfg, stage, data, chat, folder.path / "quarantine.jsonl")
    trainer.loggers = written = loggers(cfg, folder, fresh=resume is None)
    log.info(f"{folder.path.name}: {cfg['stage']['steps']} steps, {describe(stage)}")
    if trainer.is_global_zero:
        inputs, budget = reading.inputs, reading.dataset.batch
        keep, most = cfg["callback"]["keep"], None if budget is None else budget.frames
        room = (cfg["trainer"], keep, inputs.num_frames, inputs.image_size, most, beside(cfg, folder))
        check_room(stage, folder.checkpoints, *room)
    stage.prepare(lambda: every_pair(reading, stage))
    with closing(written), a_lost_process_is_one_line(), starts_others():
        before = 0 if resume is None else stored_step(resume)
        started, worked = time.monotonic(), time.process_time()
        trainer.fit(stage, datamodule=reading, ckpt_path=resume, weights_only=True)
        reading.say_notes()
        took = {
            "steps_here": trainer.global_step - before,
            "seconds": round(time.monotonic() - started, 2),
            "cpu_seconds": round(time.process_time() - worked, 2),
        }
        if trainer.global_step < trainer.max_steps:
            raise UserError(
                f"{folder.path} stopped at step {trainer.global_step} of {trainer.max_steps}; "
                "the same command continues"
            )
        trainer.limit_val_batches = val_batches(cfg["trainer"])  # 0 while fitting unless trainer.val_every asks for it
        trainer.save_checkpoint(folder.last)  # before the validation, so that stopping there loses nothing
        validated = validate(trainer, stage, reading)
        _upload(cfg, folder, trainer, validated, written)
    if trainer.is_global_zero or stage.device_mesh is not None:  # divided weights are put together by all processes
        state = trainer.strategy.lightning_module_state_dict()
        digest = weights_hash({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    if trainer.is_global_zero:
        metrics = {k: float(v) for v in validated for k, v in v.items()}
        save_adapters(stage, folder.path / ADAPTERS)  # first: a stage that is finished has everything
        folder.finish(digest, trainer.global_step, took, metrics)
        shown = [f"done in {took['seconds']:.0f} s", *(f"{k} {v:.4g}" for k, v in metrics.items())]
        log.info(f"{folder.path.name}: {', '.join(shown)}")
    stage.model.features = None  # many gigabytes, and what comes next may need them
    trainer.strategy.barrier()


def _refuse_artifacts_of_nothing(logger: Mapping[str, Any]) -> None:
    """``UserError`` for checkpoints as artifacts where no W&B run takes them."""
    if logger["artifacts"] != "none" and logger["name"] != "wandb":
        raise UserError(
            f"logger.artifacts={logger['artifacts']} with logger={logger['name']}: artifacts are W&B's; add "
            "logger=wandb, or leave it out (checkpoints stay in the stage's folder)"
        )


def _upload(
    cfg: Mapping[str, Any],
    folder: RunDir,
    trainer: lightning.Trainer,
    validated: Sequence[Mapping[str, float]],
    written: Sequence[Logger],
) -> None:
    """The stage's best or last checkpoint as an artifact of its W&B run, where ``logger.artifacts`` wants one."""
    kind = cfg["logger"]["artifacts"]
    runs = [logger.experiment for logger in written if isinstance(logger, WandbLogger)]
    if kind == "none" or not runs or not trainer.is_global_zero:
        return
    from hvlm.training.wandb_media import log_checkpoint

    loss = next((float(metrics[MONITOR]) for metrics in validated if MONITOR in metrics), None)
    found = Found(folder.last, trainer.global_step, loss)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, KeepBest):
            found = callback.of(*found)
    known = {"run": folder.run_path.name, "stage": folder.path.name, "step": found.step, MONITOR: found.value}
    known["file"] = str(found.path)
    for run in runs:
        log_checkpoint(run, found.path, f"{folder.run_path.name}-{folder.path.name}", kind, known)


def save_adapters(stage: Stage, folder: Path) -> None:
    """Each set of adapter weights as a folder of its own, which ``adapter.load`` reads."""
    model = stage.model
    if isinstance(model, Encoder) or stage.device_mesh is not None:  # divided weights stand in the checkpoint alone
        return
    source = stage.metadata["config"]["language"].get("source")
    for name in model.adapter.names:
        model.adapter.save(folder / name, name, None if source == "scratch" else source)


def validate(trainer: lightning.Trainer, stage: Stage, reading: Any) -> Sequence[Mapping[str, float]]:
    """The metrics of a validation. Lightning answers Ctrl-C with a bare exit status; here it is an interrupt."""
    try:
        return trainer.validate(stage, datamodule=reading, verbose=False, weights_only=True)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


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


def callbacks(cfg: Mapping[str, Any], folder: RunDir, deadline: float | None = None) -> list[Callback]:
    settings = cfg["callback"]
    made: list[Callback] = [
        Throughput(),
        Norms(),
        RngState(),
        OtherParts(),
        GracefulStop(deadline),
        Guard(cfg["trainer"]["spike"], cfg["trainer"]["max_skipped"], folder.path),
        GatePicture(folder.path),
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
    compiled, checkpointed = asked(cfg["trainer"], "compile"), asked(cfg["trainer"], "checkpoint_activations")
    if compiled or checkpointed:
        made.append(Parts(compiled, checkpointed))
    if settings["progress"]:
        made.append(progress(folder.path.name))
    if settings["media"] and cfg["trainer"]["strategy"] == "fsdp":
        log.info("callback.media: no clips are shown with trainer=fsdp, for no process has the whole model")
    elif settings["media"]:
        made.append(ClipTable(folder.path / "clips", settings["media"], media_mb=cfg["logger"]["media_mb"]))
    if cfg["logger"]["name"] == "wandb" and cfg["logger"]["artifacts"] == "best":
        made.append(KeepBest(folder.path / BEST))
    return made


def beside(cfg: Mapping[str, Any], folder: RunDir) -> list[Path]:
    """What a stage writes of a checkpoint's size more: the best one, and W&B's copy of an artifact."""
    kind = cfg["logger"]["artifacts"]
    if cfg["logger"]["name"] != "wandb" or kind == "none":
        return []
    kept = [folder.path / BEST] if kind == "best" and cfg["trainer"]["val_every"] else []
    return [*kept, folder.path / "wandb-data"]  # a folder, where W&B gives the copy a name of its own


def every_pair(reading: Any, stage: Stage) -> Any:
    """Batches with every pair of the training and validation clips."""
    for split in ("train", "val"):
        yield from reading.loader(split, stage.view, None, reading.clips_at_once)


def describe(stage: Stage) -> str:
    """Every part with its size and its learning rate, in words."""
    said = []
    for name, members in stage.parts().items():
        rate = f"at {stage.trainable[name]:g}" if name in stage.trainable else "frozen"
        said.append(f"{name} {sum(p.numel() for _, p in members) / 1e6:.2f} M {rate}")
    return ", ".join(said)
