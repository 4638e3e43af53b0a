"""From frames to visual tokens: vision, merger, connector, attention and fusion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from hvlm.contracts.room import FromSource, Module
from hvlm.types import KV, NOTHING_ELSE, Encoded, Fused, Patches, Prefix, Tokens, Wants

if TYPE_CHECKING:
    from hvlm.contracts.language import Language


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
    """What the visual tokens and the text learn of each other before the language model.

    reads_text: whether it looks at the text at all. Only what may be known before the answer is handed to it.
    writes_text: its states of that text take the place of the embeddings in the row, where nothing in front of them is
    to be predicted; heads may read them in any case (``Sequence.fused``).
    wants_layers: of so many of the encoder's layers, evenly spread over its depth, it reads the patches, too.
    monitor: while it is True, ``metrics`` fills with numbers to log, in the forward pass and in the backward pass.
    """

    part = "fusion"
    reads_text: bool = False
    writes_text: bool = False
    wants_layers: int = 0
    monitor: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, Tensor] = {}

    @abstractmethod
    def forward(self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...] = ()) -> Fused:
        """Both sides of every text row, and one state of both. Padding on either side reaches nobody.

        Args:
            tokens: [K, V, dim].
            text_KPD: embedded text up to the last place that any row may know; zero where ``prompt_KP`` is False.
            prompt_KP: bool, the places that may be known before the answer (``Batch.prompt_KS``).
            layers: [K, T * N, width of the encoder] each, the first layer's first; () unless ``wants_layers``.
        """
