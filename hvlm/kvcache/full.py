"""Keep every key and value: decoding equals masked attention over the whole sequence."""

from __future__ import annotations

from transformers import DynamicCache

from hvlm.contracts import KVCache


class FullCache(KVCache):
    """``new()`` makes an empty cache for the language room; ``bytes(length)`` is what it will have allocated."""

    def __init__(self, *, num_layers: int, num_kv_heads: int, head_dim: int):
        self.num_layers, self.num_kv_heads, self.head_dim = num_layers, num_kv_heads, head_dim

    def new(self) -> DynamicCache:
        return DynamicCache()

    def bytes(self, length: int, rows: int = 1, bytes_per_value: int = 4) -> int:
        """Bytes for ``rows`` sequences of ``length`` positions: 2 (keys, values) · layers · heads · width · length."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * length * rows * bytes_per_value
