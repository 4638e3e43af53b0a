"""What is shown and what is asked: data sets and benchmarks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from hvlm.contracts.room import Room
from hvlm.errors import UserError
from hvlm.types import InputSpec

if TYPE_CHECKING:
    from pathlib import Path

    from hvlm.contracts.head import Head
    from hvlm.data.views import View
    from hvlm.evaluation.scores import Likelihood, Prediction, Question


class Dataset(Room, ABC, group="dataset"):
    """Samples. access: ``index`` (by offset; resume is exact) or ``stream``. num_frames: sampled of a clip.
    domain: of samples that name none. max_tokens: of one text with its prompt. too_long: whether a sample with a longer
    one is a bad sample, or is cut. allow_inexact_resume: whether a stream may go on in the middle of a run.
    decoder: of videos (``hvlm.data.decode``). decode_timeout: seconds, after which a clip whose decoder hangs is a bad
    sample. text_only: its samples have no video. text_ratio: share of the training batches that are text-only chats;
    None: as the stage says. batch: what a training batch may hold (``hvlm.data.budget.Budget``), in place of
    ``stage.batch_size`` clips; None: these."""

    access: str
    num_frames: int
    domain: str
    max_tokens: int
    too_long: Literal["refuse", "cut"] = "refuse"
    allow_inexact_resume: bool = False
    decoder: Literal["pyav", "decord"] = "pyav"
    decode_timeout: float = 60.0
    text_only: bool = False
    text_ratio: float | None = None
    batch: Any = None

    @abstractmethod
    def prepare(self) -> None:
        """Make or index what is not there yet."""

    @abstractmethod
    def manifest(self) -> Any:
        """The index of all shards (``hvlm.data.shard_index.Manifest``)."""

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """Texts to train a vocabulary on."""

    def shares(self) -> Mapping[str, float] | None:
        """{domain: probability of a clip of the training split}; None: all clips alike, or as ``domain.mixture`` says.

        Raises:
            UserError: a domain has none.
        """
        return None

    def urls(self) -> list[str]:
        """The shards of a stream."""
        raise UserError(f"dataset: {type(self).__name__} cannot be streamed; use dataset.access=index")

    def patch_labels(self, sample: dict, times: Any, grid: tuple[int, int]) -> dict[str, Any] | None:
        """{name: int64 [T, rows, columns]}: what a sample's JSON says of each patch of the frames at ``times``; None:
        it says nothing of them, and the sample is passed over."""
        raise UserError(f"dataset: {type(self).__name__} has no per-patch labels")

    def names(self, of: str) -> list[str]:
        """The names of all ``events`` or ``answers`` that its samples hold: the labels of a head that says none."""
        raise UserError(
            f"head.labels: {type(self).__name__} does not know the {of} of its samples: name them, head.labels=[a,b]"
        )

    def label_counts(self) -> dict[str, int]:
        """{name: number of classes} of the per-patch labels."""
        raise UserError(
            f"dataset: {type(self).__name__} has no per-patch labels; stage=vision needs dataset=needles, or take "
            "pretrained vision"
        )


class Benchmark(Room, ABC, group="benchmark"):
    """Questions about clips of its own, and how answers to them become a score. ``hvlm.benchmark._base`` has what most
    of them share.

    split: of the dataset, where the clips are the dataset's. tasks: names of those that are asked, None: all.
    batch_size: clips of a forward pass. blind: everything is also asked without frames. writes: the model answers in
    its own words, of at most ``max_new_tokens``; else by the likelihood of what is offered. asks: in text; else the
    head's own answers are scored (``Head.predict``), and ``questions`` and what follows has no use. view: the rows of
    its clips; None: its questions. rerank: so many candidates that a head finds are ranked anew by another
    (``hvlm.evaluation.rerank``). num_beams, temperature, top_p: how the model's words are chosen
    (``hvlm.evaluation.sampling.Sampling``).
    """

    split: str
    tasks: list[str] | None
    batch_size: int
    blind: bool
    writes: bool = False
    asks: bool = True
    view: View | None = None
    max_new_tokens: int = 32
    rerank: int = 0
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0

    def of(self, head: Head) -> Benchmark:
        """The benchmark for a model with that head. UserError where it has no use for it."""
        if not head.writes:
            raise UserError(
                f"benchmark={type(self).__module__.rpartition('.')[2]} asks questions, and head={head.task} writes no "
                "text; use benchmark=head"
            )
        return self

    @abstractmethod
    def source(self, dataset: Any) -> Any:
        """The clips that are asked about, as the reader takes them (``hvlm.data.shard_index.ShardSplit``).

        Args:
            dataset: the configured one, perhaps not prepared yet.
        """

    def missing(self, source: Any) -> Mapping[str, int]:
        """{clip that questions name and that is not there: how many questions are about it}; not part of ``source``."""
        return {}

    def refused(self) -> Mapping[str, str]:
        """{row of its own table that cannot be asked: what is wrong with it}."""
        return {}

    @abstractmethod
    def select(self, num_clips: int, limit: int | None = None) -> list[int]:
        """Indices of the clips to ask about; at most ``limit`` where the benchmark has no limit of its own."""

    @abstractmethod
    def inputs(self, inputs: InputSpec) -> InputSpec:
        """How its clips are read for a model that wants ``inputs``."""

    @abstractmethod
    def questions(self, sample: Mapping[str, Any], open_questions: bool = False) -> list[Question]:
        """The questions of one sample (its JSON); open_questions: those without options, too."""

    @abstractmethod
    def check(self, dataset: Any) -> list[Question]:
        """Some of the questions, before any work. UserError for what will turn out to be impossible."""

    def protocol(self) -> dict[str, Any]:
        """What its scores depend on beside the model, as plain values; {}: nothing is published to compare with."""
        return {}

    @abstractmethod
    def predict(
        self, question: Question, likelihoods: Mapping[tuple[str, str], Likelihood], variant: str
    ) -> list[Prediction]:
        """Predictions from {(prompt, answer): likelihood}."""

    @abstractmethod
    def read(self, question: Question, written: Mapping[str, str], variant: str) -> list[Prediction]:
        """Predictions from {prompt: what the model wrote}."""

    def predictions(self, path: Path, variant: str) -> list[Prediction] | None:
        """A predictions file in a form of the benchmark's own; None: it is in ours (``hvlm.evaluation.predictions``).

        Args:
            path: of the file.
            variant: whose answers they are, where the file does not say.
        """
        return None

    @abstractmethod
    def score(self, predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
        """Rows of scores: {variant, metric, value, stderr, n, videos, chance}."""
