"""StreamingLLM's window (Xiao et al. 2023): every head keeps the first tokens and the latest, and no other."""

from __future__ import annotations

from typing import Literal

from hvlm.config.ranges import NonNegativeInt, PositiveInt
from hvlm.contracts import KVCache
from hvlm.kvcache._heads import HeadsKV
from hvlm.kvcache._store import allocated, bytes_of_a_token


class Streaming(KVCache):
    """Memory and time of a step are bounded, whatever was read. Positions are those at which tokens were read, and are
    not counted anew within the window.

    Args:
        sink, recent: what is kept, in tokens of a row.
        bits, chunk, prefill: as in ``kvcache=duo``.
    """

    apart = True
    own_attention = True

    def __init__(
        self,
        sink: NonNegativeInt = 64,
        recent: PositiveInt = 256,
        bits: Literal[8, 16] | None = None,
        chunk: PositiveInt | None = None,
        prefill: Literal["mask", "chunk"] = "mask",
        **sizes: int,
    ):
        super().__init__(**sizes)
        self.sink, self.recent, self.bits, self.chunk, self.prefill = sink, recent, bits, chunk, prefill

    def new(self) -> HeadsKV:
        whole = [[False] * self.num_kv_heads] * self.num_layers
        return HeadsKV(whole, self.sink, self.recent, self.bits, by_piece=self.prefill == "chunk")

    def bytes(self, length: int, rows: int = 1, bytes_per_value: int = 4) -> int:
        """2 (keys, values) · rows · heads · bytes of a head's token · min(length, sink + recent), the length rounded up
        to blocks of memory."""
        places = self.num_layers * self.num_kv_heads * allocated(length, self.sink + self.recent)
        return 2 * rows * places * bytes_of_a_token(self.head_dim, self.bits, bytes_per_value)
