"""DuoAttention's gates for SmolLM2-135M-Instruct (90 of them): learnt from text or from video, each tested on both.

    python -m experiments.duo.smollm2 [--train] [--only passkeys-1024 ...] [--collect] [--table] [--out FILE]

passkeys: texts of up to 8,192 tokens. needles: clips through a connector into the frozen model; needles_few: shorter
ones, as the connector has learnt from; needles_written: the same clips in words. Variants: full; gates_text,
gates_video; random heads, several draws; inverse: of the gates that were learnt from what is asked about; streaming:
none; reconstruction, relative: chosen without training. ``accuracy``: of an answer's words; ``first``, ``whole``: of
passkeys' first words, and those right in all; ``agreement``, ``kl``: with the full cache's choice and distribution.
One cell after the other, each resumes; adds to results.json beside this file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from experiments.duo import _smollm2_models as models
from experiments.duo._cells import RANDOM, Cell
from experiments.duo._smollm2_ask import Sample, ask, clips, texts
from experiments.duo._smollm2_records import (
    FEW,
    FULL,
    NEEDLES,
    PASSKEYS,
    QUESTION,
    WRITTEN,
    answers_right,
    collect,
    table,
)
from hvlm import assembly
from hvlm.config.overlay import overlay
from hvlm.contracts import KVCache
from hvlm.evaluation import results
from hvlm.rebuild import Loaded

HERE = Path(__file__).parent
STREAMING, INVERSE = "streaming", "inverse"
LEARNT = ("gates_text", "gates_video")
UNTRAINED = ("reconstruction", "relative")


class Plan(NamedTuple):
    """What is measured of a task. length: in tokens, of needles visual ones; samples: texts or clips; draws: of random
    heads."""

    task: str
    length: int
    samples: int
    variants: tuple[str, ...] = (*LEARNT, RANDOM, INVERSE, *UNTRAINED)
    shares: tuple[float, ...] = (0.5, 0.25, 0.125)
    draws: int = 3

    @property
    def name(self) -> str:
        return f"{self.task}-{self.length}"


PLANS = (
    Plan(FEW, 4 * models.TOKENS, 40, ()),
    Plan(WRITTEN, 0, 40, ()),
    Plan(PASSKEYS, 1024, 4),
    Plan(NEEDLES, models.FRAMES * models.TOKENS, 8, shares=(0.5, 0.25)),
    Plan(PASSKEYS, 8192, 1, (*LEARNT, RANDOM), (0.5, 0.25), 1),
    Plan(PASSKEYS, 2048, 2, shares=(0.5, 0.25)),
    Plan(PASSKEYS, 4096, 2, (*LEARNT, RANDOM, INVERSE), (0.5, 0.25), 1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="train connector and gates, and ask nothing")
    parser.add_argument("--only", nargs="+", choices=[plan.name for plan in PLANS], help="of what is asked")
    parser.add_argument("--collect", action="store_true", help="measure nothing: write down what is finished")
    parser.add_argument("--table", action="store_true", help="print the tables of the documentation from --out")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    if options.table:
        return print(table(r for r in results.read(options.out) if r["question"] == QUESTION))
    if not options.collect:
        torch.set_num_threads(1)
        models.train()
        for plan in () if options.train else PLANS:
            if options.only is None or plan.name in options.only:
                measure(plan)
    if records := list(collect()):
        results.update(options.out, records)
        print(table(records))
    return None


def cells(plan: Plan) -> Iterator[Cell]:
    """Full first, then what a session that ends early should have."""
    yield Cell(FULL, 1.0)
    if plan.variants:
        yield Cell(STREAMING, 0.0)
    for share in sorted(plan.shares, key=lambda share: share != 0.25):
        for variant in plan.variants:
            for draw in range(plan.draws if variant == RANDOM else 1):
                yield Cell(variant, share, draw)


def measure(plan: Plan) -> None:
    """Every cell that is not there yet."""
    for cell in cells(plan):
        path = models.ROOT / "cells" / plan.name / f"{cell.name}.json"
        if path.exists():
            continue
        loaded, samples = _samples(plan)
        began = time.monotonic()
        found = [ask(loaded.model.language, room(loaded, plan, cell), sample) for sample in samples]
        seconds = time.monotonic() - began
        value = {"task": plan.task, "length": plan.length, "seconds": seconds}
        cell.write(path, value | {"found": [answers._asdict() for answers in found]})
        right = [r for answers in found for r in answers_right(answers._asdict())]
        print(f"{plan.name} {cell.name}: {sum(right) / len(right):.3f}, {seconds:.0f} s", flush=True)


@cache
def _samples(plan: Plan) -> tuple[Loaded, list[Sample]]:
    """The model and what it is asked, made once for all cells."""
    if plan.task == PASSKEYS:
        loaded = _model(models.FRAMES, 4, 8)
        return loaded, list(texts(loaded.model.language, loaded.chat, plan.length, plan.samples))
    few = plan.task != NEEDLES
    loaded = _model(4 if few else models.FRAMES, 2 if few else 4, plan.samples)
    return loaded, list(clips(loaded, plan.samples, written=plan.task == WRITTEN))


@cache
def _model(frames: int, keys: int, count: int) -> Loaded:
    loaded = models.read(frames, keys, count)
    loaded.model.eval()
    return loaded


def room(loaded: Loaded, plan: Plan, cell: Cell) -> KVCache:
    """The cache of a cell."""
    words = ["kvcache=full"]
    if cell.variant != FULL:
        own = models.TEXT if plan.task == PASSKEYS else models.VIDEO
        variant = f"gates_{own}" if cell.variant == STREAMING else cell.variant
        folder = models.pattern(loaded, variant, cell.draw, own)
        words = ["kvcache=duo", f"kvcache.pattern={folder}", f"kvcache.retrieval={cell.share:g}",
                 f"kvcache.sink={models.SINK}", f"kvcache.recent={models.RECENT}"]  # fmt: skip
    return assembly.room(overlay(loaded.config, words)["kvcache"], **loaded.model.language.cache_sizes)


if __name__ == "__main__":
    main()
