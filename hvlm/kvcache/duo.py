"""DuoAttention (Xiao et al. 2024): some KV heads keep everything, the others the first tokens and the latest."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hvlm.config.ranges import Fraction, NonNegativeInt, PositiveInt
from hvlm.contracts import KVCache
from hvlm.io.head_patterns import Chosen, choose_heads, read_pattern
from hvlm.kvcache._heads import HeadsKV
from hvlm.kvcache._store import allocated, bytes_of_a_token

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"


class Duo(KVCache):
    """Retrieval heads keep every token, streaming heads the sink and the recent ones of their row.

    A gate for each KV head says how much it needs what lies far back (``stage=duo`` learns them). The heads with the
    highest gates retrieve: see ``hvlm.io.head_patterns.choose_heads`` for how ties are settled.

    Args:
        pattern: ``checkpoint``: the gates that were trained; or a pattern's folder, or its TSV file.
        retrieval: the share of all heads that retrieve.
        sink, recent: what a streaming head keeps, in tokens of a row. (A pattern's own say what it was learnt with.)
        bits: of a kept number: null as computed, 16 for bfloat16, 8 for int8 with a scale for each token and head.
        chunk: the prompt is read in pieces of so many places; null: at once.
        prefill: ``mask``: a streaming head sees sink and recent at every token, in whatever pieces the prompt is read;
            ``chunk``: within a piece it sees all before, as in DuoAttention's own code, so that a first piece is read
            as if every head kept everything.
    """

    apart = True
    own_attention = True
    gates: nn.Parameter

    def __init__(
        self,
        pattern: str = CHECKPOINT,
        retrieval: Fraction = 0.5,
        sink: NonNegativeInt = 64,
        recent: PositiveInt = 256,
        bits: Literal[8, 16] | None = None,
        chunk: PositiveInt | None = None,
        prefill: Literal["mask", "chunk"] = "mask",
        **sizes: int,
    ):
        super().__init__(**sizes)
        self.retrieval, self.sink, self.recent = retrieval, sink, recent
        self.bits, self.chunk, self.prefill = bits, chunk, prefill
        self.gates = nn.Parameter(torch.ones(self.num_layers, self.num_kv_heads, dtype=torch.float32))
        self.given = pattern != CHECKPOINT
        self._pattern = pattern
        self._said: tuple[float, ...] | None = None
        if self.given:
            found = read_pattern(pattern, self.num_layers, self.num_kv_heads)
            self._window = found.sink, found.recent
            self.register_buffer("_given", found.gates, persistent=False)
            if not self.gates.is_meta:
                self.gates.data.copy_(found.gates)

    def settled(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The gates are among the weights, whatever file they came from."""
        return {**settings, "pattern": CHECKPOINT}

    def chosen(self) -> Chosen:
        """Which heads retrieve, bool [layers, KV heads], and how many of equal gates do not."""
        return choose_heads(self.gates.detach().clamp(0, 1), self.retrieval)

    def new(self) -> HeadsKV:
        heads, ties = self.chosen()
        self._say(heads, ties)
        return HeadsKV(heads.tolist(), self.sink, self.recent, self.bits, by_piece=self.prefill == "chunk")

    def bytes(self, length: int, rows: int = 1, bytes_per_value: int = 4) -> int:
        """2 (keys, values) · rows · bytes of a head's token · (retrieval heads · length + streaming heads ·
        min(length, sink + recent)), lengths rounded up to blocks of memory. bits decide before ``bytes_per_value``."""
        retrieving = int(self.chosen().heads.sum())
        streaming = self.num_layers * self.num_kv_heads - retrieving
        places = retrieving * allocated(length) + streaming * allocated(length, self.sink + self.recent)
        return 2 * rows * places * bytes_of_a_token(self.head_dim, self.bits, bytes_per_value)

    def _say(self, heads: Tensor, ties: int) -> None:
        """Once for each choice, what is used."""
        now = (self.retrieval, self.sink, self.recent, float(self.gates.detach().sum()))
        if now == self._said:
            return
        self._said = now
        learnt = untrained = ""
        if self.given and None not in self._window and self._window != (self.sink, self.recent):
            learnt = f" (learnt with {self._window[0]} and {self._window[1]})"
        if not self.given and 0 < self.retrieval < 1 and bool((self.gates == 1).all()):
            untrained = "; the gates were never trained, so the first heads are taken"
        log.log(
            logging.WARNING if untrained else logging.INFO,
            f"kvcache.pattern={self._pattern}: {int(heads.sum())} of {heads.numel()} KV heads keep everything, the "
            f"others {self.sink} first and {self.recent} recent tokens{learnt}; {ties} heads stream with the gate of "
            f"one that keeps everything{untrained}",
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """A pattern that was given goes before the gates of a checkpoint."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if self.given:
            self.gates.data.copy_(self._given)
