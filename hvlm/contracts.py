"""What a room of each group must have and what it may have.

A class of ``hvlm/<group>/`` derives from its group's base here. What is abstract or only annotated a room must have;
what has a value here it may leave as it is. ``hvlm/config/rooms.py`` lists the groups, ``CONTRACTS`` has the base of
each, and ``tests/test_contracts.py`` checks every variant against it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from hvlm.config.rooms import ROOMS
from hvlm.errors import UserError
from hvlm.types import KV, NOTHING_ELSE, Batch, Encoded, InputSpec, Patches, Prefix, Sequence, Term, Tokens, Wants

if TYPE_CHECKING:
    from pathlib import Path

    from torchmetrics import Metric

    from hvlm.caching import PastKV
    from hvlm.data.views import View
    from hvlm.evaluation.scores import Likelihood, Prediction, Question
    from hvlm.text.chat import Chat

_BASES: dict[str, type[Room]] = {}


class Room:
    """What all groups share: a base says its group with ``class Merger(Room, group="merger")``."""

    group: ClassVar[str]

    def __init_subclass__(cls, group: str | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        if group is not None:
            cls.group = group
            _BASES[group] = cls


class Module(Room, nn.Module):
    """A room with weights.

    part: the name under which ``stage.trainable`` finds the weights. Any module inside a room may say another one, and
        it holds for everything below that module.
    fixed: the setting because of which the weights cannot train; empty where they can.
    """

    part: ClassVar[str]
    fixed: str = ""


class Stage(Room, group="stage"):
    """Batch to loss. ``hvlm.stage._base.Stage`` adds what a LightningModule needs.

    view: what the reader shows (``hvlm.data.views``); None leaves it to the head (``Head.view``). Where it needs
    labels, the constructor is given ``labels``, the dataset's number of classes by name. cells: labels are those of
    each patch's ``cells`` x ``cells`` parts. shallow: its own queries read the encoder's last layer alone.
    rooms: {group: word} of what it needs in place of the usual rooms.
    """

    view: ClassVar[View | None] = None
    rooms: ClassVar[Mapping[str, str]] = {}
    cells: int = 1
    shallow: bool = False

    def prepare(self, every_pair: Callable[[], Iterable[Batch]]) -> None:
        """Work before ``fit`` with the starting weights in the model; by default there is none.

        Args:
            every_pair: makes an iterable of batches with all preference pairs of the training and validation splits.
        """


class FromSource(Module):
    """A room whose sizes may come from where its weights come from.

    source_config: what the source itself says of the model, its config.json as plain values; None where the room's
        settings say everything. A checkpoint keeps it beside the weights and hands it to the constructor again, so
        that the model is built without the source at hand.
    """

    source_config: dict[str, Any] | None = None

    @classmethod
    def read_source_config(cls, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Read what the configured source says of the model, without its weights. By default there is nothing to read.

        Args:
            settings: the room's own, checked.

        Raises:
            UserError: a source that is not there, or is none that the room can be built from.
        """
        return None


class Vision(FromSource, ABC, group="vision"):
    """Frames to patch features.

    dim: width of the features. query_dim: width of the queries of ``gaze``. image_size: side of the frames in pixels.
    frames_at_once: without gradients, longer batches are encoded in parts of so many frames. cache_gb: memory for a
    frozen encoder's features (``hvlm.feature_cache``), 0: none. gradient_checkpointing: layers are computed again in
    the backward pass. beside_weights: what of its settings, beside weights and image size, decides about its features.
    """

    part = "vision"
    dim: int
    query_dim: int
    image_size: int
    frames_at_once: int
    cache_gb: float
    gradient_checkpointing: bool = False
    beside_weights: str = ""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches for a frame of that many pixels."""

    @abstractmethod
    def encode(self, frames_BTCHW: Tensor, time_BT: Tensor, mask_BT: Tensor, wants: Wants = NOTHING_ELSE) -> Encoded:
        """Tokens [B, T * N, dim] and what else is wanted; frames are uint8, or floating point and then normalised."""

    @abstractmethod
    def gaze(self, query_FQD: Tensor, kv: KV, merged: Any = None, **how: bool) -> tuple[Tensor, Tensor | None]:
        """Queries [F, Q, query_dim] through all layers over cached keys and values.

        Returns:
            (z [F, Q, dim], mean attention entropy in nats or None).
        """


class Merger(Module, ABC, group="merger"):
    """Patches to fewer patches.

    changes_nothing: it hands on what it gets. drops: what is not kept is lost, so sizes do not add up. wants_saliency:
    kind of score that the encoder is asked for. wants_flow: needs the patches' motion from optical flow.
    """

    part = "merger"
    changes_nothing: bool = False
    drops: bool = False
    wants_saliency: str | None = None
    wants_flow: bool = False

    @abstractmethod
    def forward(self, patches: Patches) -> Patches:
        """Fewer tokens, in time order, and the gaze over them. Sets ``position_BS`` and ``log_size_BS`` of the tokens
        where the language model is to know of them."""


class Connector(Module, ABC, group="connector"):
    """Patch features to visual tokens in the language model's width.

    wants_gaze: asks the encoder with queries. wants_patches: reads patch features. wants_summaries: of so many of the
    encoder's last layers wants what they say of whole frames. shallow: its queries read the encoder's last layer alone.
    needs_frames: reads frame by frame, so mergers must not join patches of different frames.
    reads_forward, needs_grid: the setting (``connector.mode=autoregressive``) because of which it reads each frame
    knowing only what came before, or folds a frame's whole grid of patches; empty where it does not.
    steers: the language model's state says where the next frame is looked at, one frame after the other
    (``hvlm.evaluation.streaming`` reads so). alone: what it makes of a frame depends on no other frame and no text, so
    frames may come one by one.
    modes: the ways of reading between which ``using`` switches. monitor: while it is True, ``metrics`` fills with
    numbers to log.
    """

    part = "connector"
    wants_gaze: bool = False
    wants_patches: bool = True
    wants_summaries: int = 0
    shallow: bool = False
    needs_frames: bool = False
    reads_forward: str = ""
    needs_grid: str = ""
    steers: bool = False
    alone: bool = False
    modes: ClassVar[tuple[str, ...]] = ()
    mode: str = ""
    monitor: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, Tensor] = {}

    @abstractmethod
    def forward(self, patches: Patches, language: Language, prefix: Prefix | None) -> tuple[Tokens, bool]:
        """(Tokens, whether its rows are text rows [K, ...] rather than clips [B, ...]).

        Tokens that stand for one patch token each keep ``position_BS`` and ``log_size_BS``; others drop them (None).
        """

    @contextmanager
    def using(self, mode: str) -> Iterator[None]:
        """Another mode for a while. ValueError for one that the connector does not have."""
        if mode not in self.modes:
            raise ValueError(f"mode={mode!r}: expected one of {', '.join(self.modes) or 'none, there are no modes'}")
        before, self.mode = self.mode, mode
        try:
            yield
        finally:
            self.mode = before


class Attention(Module, ABC, group="attention"):
    """Exchange between the final visual tokens of a whole video.

    causal: no token sees later ones. mixes: there is any exchange. readout: every so manieth token is handed on.
    """

    part = "attention"
    causal: bool
    readout: int
    mixes: bool = True

    @abstractmethod
    def forward(self, tokens: Tokens) -> tuple[Tokens, Any]:
        """(Tokens, the room's state or None). Fewer tokens than came in carry no ``position_BS``."""


class Fusion(Module, ABC, group="fusion"):
    """What the visual tokens learn of the text before the language model.

    reads_text: whether it looks at the text at all. Only what may be known before the answer is handed to it.
    """

    part = "fusion"
    reads_text: bool = False

    @abstractmethod
    def forward(self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor) -> Tokens:
        """Visual tokens of every text row.

        Args:
            tokens: [K, V, dim].
            text_KPD: embedded text up to the last place that any row may know; zero where ``prompt_KP`` is False.
            prompt_KP: bool, the places that may be known before the answer (``Batch.prompt_KS``).
        """


class Language(FromSource, ABC, group="language"):
    """A causal language model over embeddings.

    chat: its tokenizer and template, or None where ids come from outside. gradient_checkpointing: layers are computed
    again in the backward pass.
    max_positions: the longest sequence of text and visual tokens. learned_positions: each has an embedding of its own,
    so that none beyond can be read at all.
    windows: of the layers that look back by so many positions only. asks_cache: what a layer sees of the tokens that
    were read, its attention asks the cache (``PastKV.attend``).
    """

    part = "language"
    dim: int
    max_positions: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    chat: Chat | None
    windows: tuple[int, ...] = ()
    learned_positions: bool = False
    asks_cache: bool = False
    gradient_checkpointing: bool = False

    @staticmethod
    @abstractmethod
    def chat_for(settings: Mapping[str, Any], texts: Callable[[], Iterable[str]]) -> Chat:
        """The tokenizer and template of a configured model; ``texts`` are there to train a vocabulary on."""

    @abstractmethod
    def embed(self, ids_KS: Tensor) -> Tensor:
        """Token ids -> embeddings [K, S, dim]."""

    @abstractmethod
    def hidden(
        self,
        x_KSD: Tensor,
        mask_KS: Tensor | None = None,
        position_KS: Tensor | None = None,
        cache: PastKV | None = None,
        log_size_KS: Tensor | None = None,
    ) -> Tensor:
        """Embeddings -> states after the last norm, [K, S, dim]. A place sees the valid places up to itself.

        All arguments speak of the S new places alone; what was read before, the cache knows.
        """

    @property
    def cache_sizes(self) -> dict[str, int]:
        """What a KV cache has to know."""
        return {"num_layers": self.num_layers, "num_kv_heads": self.num_kv_heads, "head_dim": self.head_dim}

    @abstractmethod
    def logits(self, h: Tensor) -> Tensor:
        """States [..., dim] -> [..., vocabulary]."""


class Adapter(FromSource, ABC, group="adapter"):
    """What trains inside other rooms while their own weights stay: one set of weights for each name.

    The weights are named ``adapter.<name>.<target>...``, so every base weight keeps its name. adapts: the parts whose
    computation it changes. names: of the sets, in the order that ``Batch.adapter_K`` counts; -1 there is none of them,
    the base. rate: peak learning rate where ``stage.trainable`` gives none; None: it has no say. alone: the rooms' own
    weights stay as they are, whatever ``stage.trainable`` gives them. reads: the sets that ``fill`` reads from files,
    and that go before a checkpoint's.
    """

    part = "adapter"
    adapts: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    rate: float | None = None
    alone: bool = False
    reads: tuple[str, ...] = ()

    @abstractmethod
    def attach(self, model: nn.Module) -> None:
        """Make the weights for the rooms of the whole model, and have these rooms use them. Called once, when all
        rooms stand."""

    @contextmanager
    def using(
        self,
        *,
        language: int | Tensor | None = None,
        vision: int | Tensor | None = None,
        between: int | None = None,
    ) -> Iterator[None]:
        """Inside the block, which set each row of a forward pass uses: an int for all rows, int64 [K] for the rows that
        go through the language model, int64 [F] for the frames that go through the encoder, an int for the rooms
        between these two; -1: none; None: as before."""
        yield

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside the block the model is its base."""
        with self.using(language=-1, vision=-1, between=-1):
            yield

    def use(self, name: str | None) -> None:
        """From now on the set that is used where nothing else is said; None: none. ValueError for an unknown one."""
        if name is not None:
            raise ValueError(f"adapter {name!r}: the model has none")

    @property
    def used(self) -> str | None:
        """The set that is used where nothing else is said; None: none."""
        return None

    def fill(self) -> None:
        """Called when the rooms' own weights stand: read the sets that come from files (``reads``)."""

    def merge(self, name: str | None = None) -> None:
        """Put a set, by default the one that is used, into the rooms' own weights: the model gives the same and costs
        what its base costs. UserError where that cannot be."""
        raise UserError("adapter=none: there is nothing to merge")

    def unmerge(self) -> None:
        """Put the rooms' own weights back, bit for bit. ValueError where nothing is merged."""
        raise ValueError("adapter: none is merged")

    @property
    def merged(self) -> str | None:
        """The set that is in the rooms' own weights; None: none."""
        return None

    def save(self, folder: str | Path, name: str | None = None, base: str | None = None) -> Path:
        """Write a set, by default the one that is used, as a folder of its own (``hvlm.io.adapter_files``).

        base: name of the model that it is for. UserError where there is none, or the folder cannot be written.
        """
        raise UserError("adapter=none: there is nothing to save")

    def settled(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Its settings for files that hold its weights and are read elsewhere: without files it was made from."""
        return dict(settings)


class KVCache(Module, ABC, group="kvcache"):
    """What decoding keeps of what was read. A module, since what to keep may be learnt.

    chunk: the context is read by so many places; None: at once. apart: what stands after the video is read after it, as
    steps of its own, and likelihoods are asked through the cache: it matters what was forgotten. own_attention: heads
    keep different lengths, which only an attention that asks the cache can read (``language.attention=auto``). given:
    its weights came with its settings, and go before a checkpoint's.
    gates: float32 [layers, KV heads], how much of what was read each head is given, where that is learnt
    (``stage=duo``); None where it is not. sink, recent: of a cache with gates, what a head keeps that is given little.

    Args:
        num_layers, num_kv_heads, head_dim: the language model's.
    """

    part = "kvcache"
    chunk: int | None = None
    apart: bool = False
    own_attention: bool = False
    given: bool = False
    gates: nn.Parameter | None
    sink: int = 0
    recent: int = 0

    def __init__(self, *, num_layers: int, num_kv_heads: int, head_dim: int):
        super().__init__()
        self.num_layers, self.num_kv_heads, self.head_dim = num_layers, num_kv_heads, head_dim
        self.register_parameter("gates", None)

    def settled(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Its settings for files that hold its weights and are read elsewhere: without files that it was made from."""
        return dict(settings)

    @abstractmethod
    def new(self) -> PastKV:
        """An empty cache for one batch."""

    @abstractmethod
    def bytes(self, length: int, rows: int = 1, bytes_per_value: int = 4) -> int:
        """Memory in bytes after ``length`` places were read in each of ``rows`` rows: what is allocated
        (``PastKV.nbytes``)."""


class Head(Module, ABC, group="head"):
    """What comes out, with all that is its own: what the reader shows, targets, loss, answers, metrics.

    view: what the reader shows to train it (``hvlm.data.views``), with the targets that it makes of it
    (``View.targets``), where the stage leaves that to the head; None: the stage must say it. writes: it scores the next
    token, so that text can be generated with it and is scored by benchmarks that ask questions; others are scored by
    ``benchmark=head``. names: which of the dataset's lists of names its ``labels`` are by default (``Dataset.names``):
    ``events``, ``answers``, or "" where it has no labels.
    """

    part = "head"
    view: View | None = None
    writes: bool = False
    names: ClassVar[str] = ""

    @abstractmethod
    def forward(self, hidden_KLD: Tensor, sequence: Sequence) -> Any:
        """The head's output.

        Args:
            hidden_KLD: the language model's states of the whole laid-out rows.
            sequence: what was laid out, with the places of text and video, and the visual tokens themselves; in
                ``alone`` the states of what ``texts`` asked for.
        """

    def texts(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """(ids, whether a token stands there), int64 and bool [M, S]: texts that the language model is to read by
        themselves, which no video can change; None: of none."""
        return None

    def logits(self, h: Tensor) -> Tensor:
        """States [..., dim] -> float32 logits of the next token [..., vocabulary], where the head ``writes``."""
        raise ValueError(f"{type(self).__name__} gives no logits of tokens; use head=text")

    # -- learning ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(sum of the loss over its units, number of units, further sums to be divided by the same number)."""

    def units(self, batch: Batch) -> int:
        """The number of units as ``loss`` counts them, without a pass through the model; what is learned in parts
        (``trainer.accumulate``) needs it. UserError where it cannot be told from the batch."""
        raise UserError(
            f"trainer.accumulate: head={self.task} does not count its units without the model; use trainer.accumulate=1"
        )

    @property
    def task(self) -> str:
        """The word for what it does: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of its ``terms``, as ``stage.weights`` has them."""
        return (self.task,)

    def terms(self, output: Any, batch: Batch) -> dict[str, Term]:
        """The terms of ``stage=task``'s loss by name: one, by its own name, unless there are several heads in it."""
        return {self.task: Term(*self.loss(output, batch))}

    def units_of_terms(self, batch: Batch) -> dict[str, float]:
        """{term: number of its units}, as ``units`` counts them."""
        return {self.task: float(self.units(batch))}

    def divisor(self, term: str, units: Tensor) -> Tensor:
        """What a term's sum is divided by, of the units of a whole optimiser step (per process); called once a step.
        By default these units themselves: the mean."""
        return units

    # -- answering -----------------------------------------------------------------------------------------------------

    def predict(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        """What it answers, a line of plain values for each text row: what it found, and what is right where that is
        known, so that lines can be scored without the model or the data. UserError where it has no answers of its
        own."""
        raise UserError(f"head={self.task}: has no answers of its own; use a benchmark that asks (benchmark=needles)")

    def metrics(self) -> dict[str, Metric]:
        """Fresh ones, by name (torchmetrics). One that computes a mapping gives several figures, ``name/key``."""
        return {}

    def update(self, metrics: Mapping[str, Metric], lines: SequenceOf[Mapping[str, Any]]) -> None:
        """Feed lines of ``predict`` to its metrics."""

    def score(self, lines: SequenceOf[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of scores, {metric, value, stderr, n, chance}: by default what its metrics compute of all lines."""
        metrics = self.metrics()
        self.update(metrics, lines)
        found = {name: metric.compute() for name, metric in metrics.items()}
        flat = {
            name if key is None else f"{name}/{key}": value
            for name, values in found.items()
            for key, value in (values.items() if isinstance(values, Mapping) else [(None, values)])
        }
        return [
            {"metric": name, "value": float(value), "stderr": None, "n": len(lines), "chance": None}
            for name, value in flat.items()
        ]

    def read(self, path: Path, setting: str) -> list[tuple[str, dict[str, Any]]]:
        """Somebody's own file of what is right: [(name of a video, a sample's JSON)], as ``benchmark=head`` reads it.

        Args:
            path: of the file.
            setting: whose value the path is, for messages.

        Raises:
            UserError: one line, with the place in the file, what was found and what was expected.
        """
        raise UserError(f"{setting}={path}: head={self.task} reads no file of its own; use the dataset's split")

    @classmethod
    def settle(cls, settings: Mapping[str, Any], names: Callable[[str], list[str]]) -> dict[str, Any]:
        """Its settings with what they leave to the dataset: labels that are None become those that ``names`` knows."""
        left = bool(cls.names) and settings.get("labels") is None
        return {**settings, **({"labels": names(cls.names)} if left else {})}

    def check_lines(self, lines: SequenceOf[Mapping[str, Any]], path: Path) -> None:
        """Look at lines of a file that are to be scored. UserError for one that ``predict`` cannot have written."""


class Dataset(Room, ABC, group="dataset"):
    """Samples. access: ``index`` (by offset; resume is exact) or ``stream``. num_frames: sampled of a clip.
    domain: of samples that name none. max_tokens: of one text with its prompt. too_long: whether a sample with a longer
    one is a bad sample, or is cut. decoder: of videos (``hvlm.data.decode``). decode_timeout: seconds, after which a
    clip whose decoder hangs is a bad sample. text_only: its samples have no video."""

    access: str
    num_frames: int
    domain: str
    max_tokens: int
    too_long: Literal["refuse", "cut"] = "refuse"
    decoder: Literal["pyav", "decord"] = "pyav"
    decode_timeout: float = 60.0
    text_only: bool = False

    @abstractmethod
    def prepare(self) -> None:
        """Make or index what is not there yet."""

    @abstractmethod
    def manifest(self) -> Any:
        """The index of all shards (``hvlm.data.shard_index.Manifest``)."""

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """Texts to train a vocabulary on."""

    def urls(self) -> list[str]:
        """The shards of a stream."""
        raise UserError(f"dataset: {type(self).__name__} cannot be streamed; use dataset.access=index")

    def patch_labels(self, sample: dict, times: Any, grid: tuple[int, int]) -> dict[str, Any]:
        """{name: int64 [T, rows, columns]}: what a sample's JSON says of each patch of the frames at ``times``."""
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
    its clips; None: its questions. num_beams, temperature, top_p: how the model's words are chosen
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


CONTRACTS: dict[str, type[Room]] = {group: _BASES[group] for group in ROOMS}
# The parts of a model: each is an attribute of ``hvlm.model.VLM`` under its group's name.
PARTS = tuple(group for group, base in CONTRACTS.items() if issubclass(base, Module))
