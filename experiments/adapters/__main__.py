"""What do adapters cost: in a training step, in a batch that mixes three, merged, and as DPO's reference?

    python -m experiments.adapters [--repeats 7] [--threads 2] [--layers 6] [--rows 12]

A language model of SmolLM2-135M's widths with ``--layers`` of its layers and untrained weights, convvit and foveated;
``--rows`` questions about as many clips of 8 frames, about 90 tokens each. What is compared is timed in turns in one
process, in the precision of training on this machine; values are medians. Writes speed.json beside this file.

Steps (``step_ms``): forward, backward and AdamW. ``none`` trains the connector beside a frozen language model, so its
gradients go through all layers; each adapter trains beside it, and ``full`` has the language model train as well.
Answers (``forward_ms``): without gradients. ``*_merged`` has the adapter in the weights, ``*_mixed`` three sets, a
third of the rows each. ``ratio`` is to ``none``, of ``*_mixed`` to the batch of one set. How far merging moves logits
is said in float32 (``logits_apart``), in float64 (``logits_apart_float64``), and beside what float32 itself moves them
without merging (``logits_rounding``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvlm import assembly
from hvlm.config.compose import compose
from hvlm.data.collate import Item, collate
from hvlm.evaluation import results
from hvlm.model import VLM
from hvlm.precision import autocast, choose_precision
from hvlm.text.chat import Chat
from hvlm.text.tokenizer import train_word_tokenizer
from hvlm.types import Batch

HERE = Path(__file__).parent
KINDS = ("lora", "dora", "prefix", "bottleneck")
NAMES = ["sports", "tutorials", "news"]
WORDS = "what color shape is the ring ? how many red blue green circle star one two three before after".split()
RATES = {"vision": 0.0, "connector": 1e-4, "language": 0.0}
FRAMES, ASKED, ANSWERED = 8, 48, 24  # frames of a clip, words of a question and of its answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results.write(HERE / "speed.json", measure(options.repeats, options.layers, options.rows))


class Bench:
    """Models of one size and one batch for them; ``small``: of a size that shows that everything runs."""

    def __init__(self, layers: int, rows: int, small: bool = False):
        self.layers, self.small = layers, small
        self.chat = Chat(train_word_tokenizer([" ".join(WORDS)]), "tiny")
        self.precision, _ = choose_precision("auto", "cpu")
        self.batch = self._batch(rows)

    def model(self, kind: str, **adapter: Any) -> VLM:
        """The same weights each time, with an adapter that has learned something."""
        language = {"source": "scratch", "num_layers": self.layers, "template": "tiny", "system": None}
        language |= {"vocab_size": 49152}
        if self.small:
            language |= {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "num_kv_heads": 1}
            language |= {"vocab_size": 64}
        cfg = compose([f"adapter={kind}", "language=smollm2_135m", "domain=sports"])
        cfg["language"] |= language
        cfg["adapter"] |= adapter
        torch.manual_seed(0)
        vlm = assembly.model(cfg, self.chat)
        for parameter in vlm.adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        return vlm.eval()

    def stage(self, vlm: VLM, word: str = "sft", **changes: Any) -> Any:
        settings = compose([f"stage={word}"], unused=("benchmark",))["stage"] | changes
        made = assembly.stage({"stage": settings}, vlm, None)
        made.configure_model()
        return made

    def step(self, vlm: VLM, rates: Mapping[str, float]) -> Callable[[Batch], None]:
        stage = self.stage(vlm, trainable=dict(rates)).train()
        optimizer = stage.configure_optimizers()["optimizer"]

        def step(batch: Batch) -> None:
            with autocast(torch.device("cpu"), self.precision):
                terms = stage.losses(batch).terms
            sum(term.total / term.count for term in terms.values()).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def answer(self, vlm: VLM, batch: Batch) -> None:
        with torch.no_grad(), autocast(torch.device("cpu"), self.precision):
            vlm.token_logprobs(batch)

    def logits(self, vlm: VLM) -> torch.Tensor:
        with torch.no_grad():
            return vlm.targets(self.batch).logits_MV

    def _batch(self, rows: int) -> Batch:
        draw = np.random.default_rng(0)
        items = []
        for _ in range(rows):
            said = [" ".join(draw.choice(WORDS, many)) for many in (ASKED, ANSWERED)]
            row = (*self.chat.encode(*said, "answer", "question_first"), {})
            frames = draw.integers(0, 256, (FRAMES, 3, 64, 64), dtype=np.uint8)
            items.append(Item(frames, np.arange(FRAMES, dtype=np.float32), [row]))
        return collate(items, pad_id=self.chat.pad_id, size=(64, 64))


def in_turns(cases: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat of each case, after two rounds to warm up; each round begins with another case."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(repeats + 2):
        first = i % len(cases)
        for name in [*cases][first:] + [*cases][:first]:
            started = time.perf_counter()
            cases[name]()
            if i >= 2:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def measure(repeats: int, layers: int, rows: int, small: bool = False) -> list[results.Record]:
    bench = Bench(layers, rows, small)
    return [*steps(bench, repeats), *answers(bench, repeats), *reference(bench)]


def steps(bench: Bench, repeats: int) -> list[results.Record]:
    """Each kind beside a connector that trains, and LoRA with three sets in a batch."""
    beside = {"alone": False}
    models = {"none": bench.model("none"), "full": bench.model("none")}
    models |= {kind: bench.model(kind, **beside) for kind in KINDS}
    models["lora_mixed"] = bench.model("lora", names=NAMES, **beside)
    share = {name: trained(vlm, name == "full") for name, vlm in models.items()}
    rates = {name: RATES | ({"language": 1e-5} if name == "full" else {}) for name in models}
    learn = {name: bench.step(vlm, rates[name]) for name, vlm in models.items()}
    batch, mixed = bench.batch, mixed_rows(bench.batch)
    cases = {name: _calls(step, mixed if name == "lora_mixed" else batch) for name, step in learn.items()}
    seconds = in_turns(cases, repeats)
    return _timed("step_ms", seconds, bench, {"lora_mixed": "lora"}, share)


def answers(bench: Bench, repeats: int) -> list[results.Record]:
    """Beside, merged and mixed, without gradients; and how far logits are apart once merged."""
    records, cases = [], {"none": _calls(bench.answer, bench.model("none"), bench.batch)}
    mixed, compared = mixed_rows(bench.batch), {}
    for kind in KINDS:
        vlm = bench.model(kind, names=NAMES)
        cases[kind] = _calls(bench.answer, vlm, bench.batch)
        cases[f"{kind}_mixed"] = _calls(bench.answer, vlm, mixed)
        compared[f"{kind}_mixed"] = kind
    for kind in ("lora", "dora"):
        vlm = bench.model(kind)
        before = bench.logits(vlm)
        exact = bench.model(kind).double()
        right = bench.logits(exact)  # float64 up to the logits, which are handed on in float32
        exact.adapter.merge()
        vlm.adapter.merge()
        apart = {
            "logits_apart": bench.logits(vlm) - before,
            "logits_apart_float64": bench.logits(exact) - right,
            "logits_rounding": before - right,
        }
        for metric, difference in apart.items():
            largest = float(difference.abs().max())
            records.append(_record(bench, f"{kind}_merged", metric, largest, len(before)))
            print(f"{kind}_merged {metric}: {largest:.1e}, logits up to {float(right.abs().max()):.1f}")
        cases[f"{kind}_merged"] = _calls(bench.answer, vlm, bench.batch)
    return records + _timed("forward_ms", in_turns(cases, repeats), bench, compared, {})


def reference(bench: Bench) -> list[results.Record]:
    """Bytes of all weights that DPO holds, with a copy as its reference and with the adapter off."""
    held = {}
    for word in ("copy", "adapter_off"):
        stage = bench.stage(bench.model("lora"), "dpo", reference=word)
        modules = [stage.model, *stage._reference]
        held[word] = sum(p.untyped_storage().nbytes() for module in modules for p in module.parameters())
        print(f"DPO's weights, reference={word}: {held[word] / 1e6:.1f} MB")
    ratio = {"ratio": round(held["adapter_off"] / held["copy"], 4)}
    return [
        _record(
            bench, f"dpo_{word}", "weights_mb", size / 1e6, 1, 0.0, ratio if word == "adapter_off" else {"ratio": 1.0}
        )
        for word, size in held.items()
    ]


def trained(vlm: VLM, full: bool) -> float:
    """The share of all weights that the adapter has, or, with ``full``, the language model."""
    part = vlm.language if full else vlm.adapter
    return sum(p.numel() for p in part.parameters()) / sum(p.numel() for p in vlm.parameters())


def mixed_rows(batch: Batch) -> Batch:
    """A third of the rows with each set, in turns."""
    return batch._replace(adapter_K=torch.arange(len(batch.clip_K)) % len(NAMES))


def _calls(function: Callable[..., None], *given: Any) -> Callable[[], None]:
    return lambda: function(*given)


def _timed(
    metric: str,
    seconds: Mapping[str, list[float]],
    bench: Bench,
    compared: Mapping[str, str],
    share: Mapping[str, float],
) -> list[results.Record]:
    """Medians, and of each round the ratio to what it is compared with, of which the median again."""
    records = []
    for name, of in seconds.items():
        other = seconds[compared.get(name, "none")]
        ratio = statistics.median(a / b for a, b in zip(of, other, strict=True))
        columns: dict[str, Any] = {"ratio": round(ratio, 4), "compared_with": compared.get(name, "none")}
        if name in share:
            columns["trained_percent"] = round(100 * share[name], 3)
        median = statistics.median(of)
        print(f"{metric:12s} {name:18s} {1e3 * median:9.1f}  {ratio:6.3f} x {compared.get(name, 'none')}")
        records.append(_record(bench, name, metric, 1e3 * median, len(of), sum(of), columns))
    return records


def _record(
    bench: Bench, variant: str, metric: str, value: float, n: int, seconds: float = 0.0, columns: Mapping | None = None
) -> results.Record:
    said = {"dtype": bench.precision, "threads": torch.get_num_threads(), "layers": bench.layers}
    return results.make("adapters", variant, metric, value, stderr=None, n=n, chance=None, seeds=[0], seconds=seconds,
                        command="python -m experiments.adapters", columns=said | dict(columns or {}))  # fmt: skip


if __name__ == "__main__":
    main()
