"""The keys of a configuration that are not rooms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from hvlm.config.ranges import (
    FramesPerSecond,
    Ge,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
    Written,
)


@dataclass(frozen=True)
class DomainConfig:
    """Which visual domains are trained on, with which weight, the adapter that learns them, and what its conversations
    begin with."""

    name: str
    adapter: str
    mixture: dict[str, NonNegativeFloat] | None  # null: all domains of the data alike
    prompt: str | None = None  # the system message, or in front of the first question


@dataclass(frozen=True)
class TrainerConfig:
    """How a stage runs; ``hvlm.training.trainer`` turns it into arguments of ``lightning.Trainer``."""

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: PositiveInt | Literal["auto"]
    num_nodes: PositiveInt
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"]
    checkpoint: Literal["whole", "sharded"]
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    accumulate: PositiveInt
    gradient_clip_val: NonNegativeFloat | None  # null or 0: as it is
    gradient_clip_algorithm: Literal["norm", "value"]
    checkpoint_every: PositiveInt
    log_every: PositiveInt
    val_every: NonNegativeInt
    limit_val_batches: PositiveInt | None
    overfit_batches: PositiveInt | None
    spike: PositiveFloat | None  # null: never
    max_skipped: NonNegativeInt
    detect_anomaly: bool
    threads: PositiveInt | None
    num_workers: NonNegativeInt
    cache_mb: NonNegativeInt
    deterministic: bool
    max_time: Annotated[str, Written(r"\d+:\d+:\d+:\d+", "dd:hh:mm:ss")] | None
    max_steps: PositiveInt | None
    compile: dict[str, bool] | None
    checkpoint_activations: dict[str, bool] | None
    profile: bool


@dataclass(frozen=True)
class LoggerConfig:
    """CSV and JSONL are always written; ``wandb`` adds Weights & Biases: megabytes of videos and pictures in a table,
    which checkpoint of a stage goes there."""

    name: Literal["csv", "wandb"]
    project: str | None
    entity: str | None
    group: str | None
    tags: list[str]
    offline: bool
    media_mb: NonNegativeFloat
    artifacts: Literal["none", "best", "last"]


@dataclass(frozen=True)
class CallbackConfig:
    """What accompanies a run: the bar, the table of clips, how many checkpoints are kept."""

    progress: bool
    media: NonNegativeInt
    keep: Annotated[int, Ge(-1)]  # -1: all


@dataclass(frozen=True)
class AskConfig:
    """``eval.py task=ask``: a video file, what is asked about it, when (seconds; null: at its end), frames a second,
    whether it is read frame by frame (null: where the model steers, or its cache forgets); how words are chosen, there
    and with ``task=generate``; an answer's length."""

    video: str | None
    question: str | None
    at: list[NonNegativeFloat] | None
    fps: FramesPerSecond
    stream: bool | None
    temperature: NonNegativeFloat
    top_p: Share
    num_beams: PositiveInt
    max_new_tokens: PositiveInt


@dataclass(frozen=True)
class RootConfig:
    """The keys of conf/train.yaml that are not rooms."""

    domain: dict
    trainer: dict
    logger: dict
    callback: dict
    ask: dict
    seed: Seed
    order: Literal["question_first", "video_first"]
    run: str | None
    init_from: str | None
    checkpoint: str | None
    chain: dict[str, list[str]] | None
    resume: Literal["auto", "must", "never"]
    evaluate: bool
    processes: PositiveInt
    task: Literal[
        "benchmark", "score", "cost", "speed", "generate", "ask", "look", "export", "gguf", "release", "gather"
    ]
    predictions: str | None
    adapters: list[str] | None
    out: str | None
    packages: list[str]
    config_dir: str | None


SECTIONS = {
    "domain": DomainConfig,
    "trainer": TrainerConfig,
    "logger": LoggerConfig,
    "callback": CallbackConfig,
    "ask": AskConfig,
}

# Settings that hold text, of which the command line takes every character as it is: see ``hvlm.config.words``. Those of
# the keys and sections above say so by their type; those of the rooms are listed, because a room's class is imported
# after the command line is read.
ROOM_TEXTS: dict[str, frozenset[str]] = {
    "one": frozenset(
        {
            "vision.source", "vision.revision", "language.source", "language.revision",
            "language.system",
            "dataset.root", "dataset.haystack", "dataset.domain", "dataset.source", "benchmark.split",
            "benchmark.path", "benchmark.questions", "benchmark.annotations", "benchmark.name", "benchmark.folder",
            "benchmark.videos", "benchmark.hub", "benchmark.revision",
            "benchmark.instruction", "benchmark.subtitles", "benchmark.prompt", "benchmark.option",
            "benchmark.context", "benchmark.subtitled", "benchmark.system", "kvcache.pattern", "head.prompt",
            "head.only",
        }
    ),
    "list": frozenset(
        {
            "dataset.domains", "dataset.texts", "benchmark.tasks", "benchmark.apart", "benchmark.tables",
            "benchmark.by", "head.labels", "adapter.where",
            "adapter.targets", "adapter.names",
        }
    ),
    "either": frozenset({"dataset.path"}),
}  # fmt: skip
# Sentences: a comma or ${...} is no syntax.
FREE_TEXT = frozenset(
    {
        "ask.question",
        "language.system",
        "benchmark.instruction",
        "benchmark.prompt",
        "benchmark.option",
        "benchmark.context",
        "benchmark.subtitled",
        "benchmark.system",
        "head.prompt",
    }
)
