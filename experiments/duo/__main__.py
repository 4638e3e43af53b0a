"""Which heads need the whole video, and is that the best way to shrink a KV cache? Accuracy against bytes.

    python -m experiments.duo [--seeds 1 2 3] [--only gates random ...] [--train] [--collect] [--clips 96] [--out FILE]

Models: conf/experiment/duo.yaml, one a seed, of 2,048 visual tokens and 16 KV heads; then their gates, learnt from
other clips and in another wording than what is asked. ``gates``: the heads with the largest gates keep everything, the
others sink and recent tokens; ``random`` and ``inverse`` choose as many otherwise; ``streaming``: none;
``untrained_...``: by a score that needs no training (hvlm/evaluation/head_scores.py), of the model reading clips of its
validation split. The rivals get as many bytes as ``gates`` at the same share, whatever heads or tokens they spend them
on; ``adaptive`` merges the video's tokens before the language model instead. Bytes are those that the cache has
allocated when the video was read.
A word of kvcache= that does not exist here is left out and named. One cell after the other, each resumes; adds to
results.json beside this file. --train: models and gates alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.duo import _models as models
from experiments.duo import scores
from experiments.duo._ask import Asker, Found
from experiments.duo._cells import RANDOM, Cell
from hvlm.config.search_path import CONF
from hvlm.evaluation import results
from hvlm.evaluation.head_scores import inverse
from hvlm.evaluation.stats import clustered_mean
from hvlm.io.head_patterns import GATES as FILE
from hvlm.io.head_patterns import read_pattern, write_pattern

HERE = Path(__file__).parent
QUESTION = "duo"
SHARES = (0.5, 0.25, 0.125)
DRAWS = 5
SINK, RECENT = 4, 32
WINDOW = [f"kvcache.sink={SINK}", f"kvcache.recent={RECENT}"]
FULL, STREAMING, GATES, INVERSE = "full", "streaming", "gates", "inverse"
UNTRAINED = {f"untrained_{score}": score for score in ("reconstruction", "relative")}
# Rivals by the word of kvcache=. They read the video in one piece and then choose, which suits them; InfiniPot-V is
# made to choose again and again.
RIVALS: dict[str, list[str]] = {"snapkv": [], "expected": [], "infinipot": ["kvcache.chunk=256"]}
MERGED, BOTH = "adaptive", "adaptive_x_gates"
VARIANTS = (FULL, GATES, RANDOM, INVERSE, STREAMING, *UNTRAINED, *RIVALS, MERGED, BOTH)
CHANCE = 1 / 6  # colours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--train", action="store_true", help="train models and gates, and ask nothing")
    parser.add_argument("--collect", action="store_true", help="measure nothing: write down what is finished")
    parser.add_argument("--clips", type=int, default=models.CLIPS, help="of the held-out ones, to be asked about")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    if not options.collect:
        torch.set_num_threads(1)
        for seed in options.seeds:
            models.train(seed)
            if not options.train:
                ask(seed, options.only, options.clips)
    records = list(collect())
    if records:
        results.update(options.out, records)
        show(records)


def cells(only: Sequence[str]) -> Iterator[Cell]:
    for variant in only:
        if variant in (FULL, STREAMING):
            yield Cell(variant, 1.0 if variant == FULL else 0.0)
            continue
        for share in SHARES[1:] if variant == BOTH else SHARES:
            for draw in range(DRAWS if variant == RANDOM else 1):
                yield Cell(variant, share, draw)


def ask(seed: int, only: Sequence[str], clips: int) -> None:
    """Every cell that is not there yet."""
    missing = [word for word in only if word in RIVALS and not (CONF / "kvcache" / f"{word}.yaml").exists()]
    if missing:
        print(f"left out, for there is no such cache here: {', '.join(f'kvcache={word}' for word in missing)}")
    todo = [cell for cell in cells([v for v in only if v not in missing]) if not file_of(seed, cell, clips).exists()]
    if not todo:
        return
    asker = Asker(models.read(seed), clips)
    for cell in todo:
        found = measure(asker, seed, cell)
        cell.write(file_of(seed, cell, clips), {"seed": seed, **found._asdict()})
        print(
            f"seed {seed} {cell.name}: {found.share:.3f}, {found.kv_bytes / 1e3:.0f} kB, {found.seconds:.0f} s",
            flush=True,
        )


def file_of(seed: int, cell: Cell, clips: int) -> Path:
    return models.folder(seed) / "cells" / str(clips) / f"{cell.name}.json"


def measure(asker: Asker, seed: int, cell: Cell) -> Found:
    variant, share = cell.variant, cell.share
    full = asker.room(["kvcache=full"])
    if variant == FULL:
        return asker(full)
    equal = min(1.0, equal_bytes(asker, seed, share) / full.bytes(asker.patches))
    if variant == MERGED:
        return asker(full, asker.merger(merged(equal)))
    if variant == BOTH:  # half of the tokens, and of the heads what is left to reach the share
        heads = retrieving(asker, seed, GATES, min(1.0, 2 * share), cell.draw)
        return asker(heads, asker.merger(merged(0.5)))
    if variant in RIVALS:
        budget = f"kvcache.budget={round(equal * asker.patches)}"
        return asker(asker.room([f"kvcache={variant}", budget, *RIVALS[variant]]))
    return asker(retrieving(asker, seed, variant, share, cell.draw))


def merged(keep: float) -> list[str]:
    return ["merger=adaptive", "merger.proportional=true", f"merger.keep={keep:.6g}"]


def equal_bytes(asker: Asker, seed: int, share: float) -> float:
    """What ``gates`` allocates for a clip at that share."""
    return float(retrieving(asker, seed, GATES, share, 0).bytes(asker.patches))


def retrieving(asker: Asker, seed: int, variant: str, share: float, draw: int) -> Any:
    """The cache whose heads are chosen by gates, at random, the other way round, or by a score without training."""
    pattern = models.folder(seed) / "patterns" / (f"{variant}-{draw}" if variant == RANDOM else variant)
    if variant in UNTRAINED:
        untrained(asker, variant, pattern)
    else:
        language = asker.model.language
        gates = read_pattern(models.pattern(seed), language.num_layers, language.num_kv_heads).gates
        chosen: dict[str, Callable[[], torch.Tensor]] = {
            GATES: lambda: gates,
            STREAMING: lambda: gates,
            INVERSE: lambda: inverse(gates),
            RANDOM: lambda: torch.rand(gates.shape, generator=torch.Generator().manual_seed(1000 * seed + draw)),
        }
        write_pattern(pattern, chosen[variant](), SINK, RECENT)
    return asker.room(["kvcache=duo", f"kvcache.pattern={pattern}", f"kvcache.retrieval={share:g}", *WINDOW])


def untrained(asker: Asker, variant: str, pattern: Path) -> None:
    """Writes the pattern, if it is not there, from clips of the validation split, none of which is asked about."""
    if (pattern / FILE).exists():
        return
    score, many = scores.over(scores.clips(asker.loaded, "val", scores.SAMPLES), UNTRAINED[variant])
    write_pattern(pattern, score, SINK, RECENT, {"score": UNTRAINED[variant], "samples": many})


def collect() -> Iterator[results.Record]:
    """Over the seeds that are finished. The draws of random heads of one seed count as more questions about the same
    clips."""
    found: dict[tuple[str, float, int], dict[int, list[dict[str, Any]]]] = {}
    for path in sorted(models.ROOT.glob("seed*/cells/*/*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        key = value["cell"]["variant"], value["cell"]["share"], int(path.parent.name)
        found.setdefault(key, {}).setdefault(value["seed"], []).append(value)
    for (variant, share, clips), seeds in found.items():
        runs = []
        for seed, draws in seeds.items():
            rivals = {}
            for name, key in (("full", (FULL, 1.0, clips)), ("gates", (GATES, share, clips))):
                if key in found and seed in found[key] and variant not in (FULL, name):
                    rivals[name] = found[key][seed][0]["right"]
            runs.append(list(of_seed(variant, share, clips, seed, draws, rivals)))
        yield from results.merge_seeds(runs)


def of_seed(
    variant: str,
    share: float,
    clips: int,
    seed: int,
    draws: Sequence[dict[str, Any]],
    rivals: Mapping[str, list[list[bool]]],
) -> Iterator[results.Record]:
    """rivals: what others answered rightly, by clip and question; ``minus_<name>`` is this variant's accuracy minus
    theirs, over the same questions."""
    columns = {"task": "keys", "share": share, "clips": clips, "sink": SINK, "recent": RECENT}
    seconds = sum(draw["seconds"] for draw in draws)
    label = results.Label(QUESTION, variant, seed, models.COMMAND, columns)
    nothing = [[False] * len(row) for row in draws[0]["right"]]
    for name, right in {"accuracy": nothing, **{f"minus_{name}": right for name, right in rivals.items()}}.items():
        pairs = [
            (clip, float(mine) - float(theirs))
            for draw in draws
            for clip, rows in enumerate(zip(draw["right"], right, strict=True))
            for mine, theirs in zip(*rows, strict=True)
        ]
        value, stderr = clustered_mean([v for _, v in pairs], [clip for clip, _ in pairs])
        chance = CHANCE if name == "accuracy" else 0.0
        yield label.record(name, value, n=len(pairs), seconds=seconds, stderr=stderr, chance=chance)
    yield label.record("kv_bytes", draws[0]["kv_bytes"], n=len(draws[0]["right"]), seconds=seconds)
    if len(draws) > 1:
        for name, worst in (("accuracy_min", min), ("accuracy_max", max)):
            yield label.record(name, worst(d["share"] for d in draws), n=len(draws), seconds=seconds, chance=CHANCE)


def show(records: Sequence[results.Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("variant", "share", "kB", "accuracy", "draws from", "to", "seeds")
    rows: dict[tuple[str, float, int], dict[str, results.Record]] = {}
    for r in records:
        rows.setdefault((r["variant"], r["share"], r["clips"]), {})[r["metric"]] = r
    for (variant, share, _), row in rows.items():
        error = row["accuracy"]["stderr"]
        ends = [f"{row[m]['value']:.3f}" if m in row else "" for m in ("accuracy_min", "accuracy_max")]
        table.add_row(
            variant, f"{share:g}", f"{row['kv_bytes']['value'] / 1e3:.0f}",
            f"{row['accuracy']['value']:.3f}" + ("" if error is None else f"±{error:.3f}"),
            *ends, " ".join(map(str, row["accuracy"]["seeds"])),
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
