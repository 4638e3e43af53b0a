"""What reads the visual tokens: the language model, what adapts it and the other rooms, and what decoding keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hvlm.contracts.room import FromSource, Module
from hvlm.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from hvlm.caching import PastKV
    from hvlm.text.chat import Chat


class Language(FromSource, ABC, group="language"):
    """A causal language model over embeddings.

    chat: its tokenizer and template, or None where ids come from outside. gradient_checkpointing: layers are computed
    again in the backward pass. pack: rows are read several in one while learning, without padding.
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
    pack: bool = False

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
