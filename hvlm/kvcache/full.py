"""Keep every key and value: decoding equals masked attention over the whole sequence."""

from __future__ import annotations

from hvlm.caching import PastKV
from hvlm.contracts import KVCache


class FullCache(KVCache):
    """Memory and time of a step grow with the length of what was read."""

    def new(self) -> PastKV:
        return PastKV()

    def bytes(self, length: int, rows: int = 1, bytes_per_value: int = 4) -> int:
        """2 (keys, values) · layers · heads · width · length · rows · bytes of a value."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * length * rows * bytes_per_value
