"""experiments.duo.speed: what a filled cache is, and what the records say, on a model of two small layers."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.duo import speed
from experiments.duo._reader import Through, made

LENGTH = 12


class Operations(TorchDispatchMode):
    """Counts what is computed, with the shapes that it is computed on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [
            tuple(x.shape) for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        ]
        self.seen[str(func), str(shapes)] += 1
        return func(*args, **(kwargs or {}))


def lengths(through: Through) -> list[Any]:
    """Of all that is stored, and how much was read."""
    cache = through.cache
    if hasattr(cache, "_kinds"):
        stores = [kind.store for kinds in cache._kinds for kind in kinds]
        return [cache.length, cache._ring.most, [[tuple(t.shape) for t in (*s.keys, *s.values)] for s in stores]]
    return [cache.get_seq_length(), [tuple(t.shape) for layer in cache.layers for t in (layer.keys, layer.values)]]


@pytest.mark.parametrize("name", ["dynamic", "dynamic_pieces", "full", "duo_50", "duo_50_8bit", "streaming"])
@torch.inference_mode()
def test_a_filled_cache_is_one_that_has_read(name: str) -> None:
    """The same lengths and bytes, and a step from there on computes the same on the same shapes."""
    setup = {"sink": 1, "recent": 4, "chunk": 5, "dtype": "fp32", "threads": 1, "sizes": speed.TINY}
    new, _ = made({**setup, **speed.CACHES[name]})
    read, filled = new(), new()
    read.read(torch.arange(LENGTH)[None])
    filled.fill(LENGTH, torch.Generator().manual_seed(0))
    assert lengths(read) == lengths(filled)
    for _ in range(2):
        done = []
        for through in (read, filled):
            with Operations() as operations:
                logits = through.step(torch.ones(1, 1, dtype=torch.long))
            assert logits.isfinite().all()
            done.append(operations.seen)
        assert done[0] == done[1] and len(done[0]) > 10
        assert read.kv_bytes == filled.kv_bytes and lengths(read) == lengths(filled)


def test_only_what_was_read_has_a_prefill_record() -> None:
    options = argparse.Namespace(tokens=2, rounds=2, sink=1, recent=4, chunk=5, threads=1)

    def found(seconds: float, kv_bytes: int, filled: bool) -> dict[str, Any]:
        read = {"seconds": 4 * seconds, "kv_bytes": kv_bytes, "cpu_seconds": 1.0, "peak_mb": 40.0 * seconds,
                "resident_mb": 900.0}  # fmt: skip
        return {"facts": {"weights_bytes": 100, "source": "scratch"}, "filled": filled, "bandwidth": 1000.0,
                "read": [{k: read[k] for k in ("seconds", "kv_bytes")}] if filled else [read, read],
                "write": [{"seconds": seconds, "kv_bytes": kv_bytes}] * 2}  # fmt: skip

    records = []
    for length, filled in ((8192, False), (32768, True)):
        both = {"dynamic": found(1.0, 400, filled), "duo_50": found(0.5 if filled else 0.8, 210, filled)}
        records += speed.as_records(both, length, "fp32", options)
    assert [(r["metric"], r["filled"]) for r in records if r["cache"] == "duo_50"] == [
        (speed.PREFILL, False), (speed.DECODE, False), (speed.DECODE, True),
    ]  # fmt: skip
    read, near, far = (r for r in records if r["cache"] == "duo_50")
    assert (read["value"], read["ratio"], read["peak_ratio"], read["kv_ratio"]) == (3.2, 1.25, 0.8, 0.525)
    assert (near["value"], near["ratio"], far["ratio"]) == (2.5, 1.25, 2.0)
    assert near["floor_ratio"] == pytest.approx(0.4 / 0.31, abs=1e-3)
    assert [met for _, met in speed.judged(records)] == [True, False, False, False, True]
    speed.show(records)
