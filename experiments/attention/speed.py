"""How fast is every mixing mechanism, against what a user would pick instead and against arithmetic? ``make
bench-attention``, or

    python -m experiments.attention.speed [--lengths 512 ... 32768] [--families window ssd] [--settings fp32]

Every mechanism (768 wide, 12 heads, batch 1) in three settings: float32 as torch comes, float32 with matmul precision
"medium" (fast), and bfloat16 autocast. Forward without gradients, and forward with backward. Each mechanism lives in a
process of its own, and those of a family are timed in turn, round after round, so that what else the machine does
meets all alike: processor time, the least of up to eight rounds after one to warm up, or a single run where that took
more than 20 seconds. Memory: the highest resident set of the first run minus that before. A cell beyond 120 seconds or
12 GB is ``over_limit``, and so is one of twice the length of a cell beyond half of that. Floor: the layer's operations
(three times as many with backward) at the speed of a large matrix product in the same setting. FAVOR+ is compared at
equal error (128 features of ours, 256 of the peer: features.py); ``favor_256`` has as many as the peer.

A processor without bfloat16 arithmetic works it out a number at a time, some eighty times slower than float32: there
bf16 is left out unless ``--settings`` names it. Adds to speed.json beside this file, where every processor has rows of
its own; the ratios are made anew from all that stands there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.attention._cells import LEARN, PASSES, Cell, Worker, gemm_gflops, in_turn
from experiments.attention._mechanisms import FAMILIES, OURS
from hvlm.evaluation import results
from hvlm.precision import has_fast_bf16

HERE = Path(__file__).parent
COMMAND = "python -m experiments.attention.speed"
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384, 32768]
SETTINGS = ("fp32", "fp32_fast", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "speed.json")
    options = parser.parse_args()
    settings = options.settings or [s for s in SETTINGS if s != "bf16" or has_fast_bf16()]
    if not options.settings and "bf16" not in settings:
        print("bf16: left out, this processor has no bfloat16 arithmetic")
    for setting in settings:
        gflops = gemm_gflops(setting, options.threads)
        print(f"{setting}: {gflops:.0f} GFLOP/s in a matrix product", flush=True)
        for family in options.families:
            records = []
            for name, n, which, cell in measure(family, setting, options.lengths, options.threads):
                records.append(as_record(name, setting, n, which, cell, gflops))
                print(f"  {name:30s} {n:6d} {which:17s} {'ok' if cell.ok else 'over_limit':10s} "
                      f"{1e3 * cell.seconds:10.1f} ms {cell.peak_mb:8.0f} MB", flush=True)  # fmt: skip
            add(options.out, records)
    show(results.read(options.out))


def measure(family: str, setting: str, lengths: list[int], threads: int) -> Iterator[tuple[str, int, str, Cell]]:
    workers = [Worker(name, setting, threads) for name in FAMILIES[family].members]
    for n in sorted(lengths):
        for which in PASSES:
            for name, cell in in_turn(workers, n, which).items():
                yield name, n, which, cell
    for worker in workers:
        worker.close()


def as_record(name: str, setting: str, n: int, which: str, cell: Cell, gflops: float) -> results.Record:
    """A cell with the distance to its floor; the ratios come with ``add``."""
    floor_ratio = None
    if name in OURS and cell.ok:
        flops = OURS[name]().flops(n) * (3 if which == LEARN else 1)
        floor_ratio = round(cell.seconds / (flops / gflops / 1e9), 3)
    columns = {
        "mechanism": name, "length": n, "dtype": setting, "pass": which, "status": "ok" if cell.ok else "over_limit",
    }  # fmt: skip
    made = results.make("attention_speed", name, "seconds", cell.seconds, stderr=None, n=n, chance=None,
                        seeds=[0], seconds=cell.seconds, command=COMMAND, columns=columns)  # fmt: skip
    return made | {"peak_mb": round(cell.peak_mb, 1), "gflops": round(gflops, 1), "floor_ratio": floor_ratio}


def add(path: Path, records: list[results.Record]) -> None:
    """New cells replace old ones of the same place, and every ratio is made from what then stands side by side."""
    found = {place(r): r for r in [*(results.read(path) if path.exists() else []), *records]}
    for (name, *where), record in found.items():
        family = next((f for f in FAMILIES.values() if name in (f.ours, *f.also)), None)
        rivals = [] if family is None else [found.get((peer, *where)) for peer in (family.judged, *family.others)]
        record |= {"peer": family.judged if family else None, "ratio": None, "memory_ratio": None}
        if record["status"] == "ok" and rivals and rivals[0] is not None:  # over its limit: a lower bound
            record["ratio"] = round(rivals[0]["value"] / record["value"], 3)
            least = min(r["peak_mb"] for r in rivals if r is not None)
            record["memory_ratio"] = round(least / max(record["peak_mb"], 1.0), 3)
    results.write(path, found.values())


def place(record: results.Record) -> tuple[Any, ...]:
    return record["mechanism"], processor(record), *(record[column] for column in ("dtype", "length", "pass"))


def processor(record: results.Record) -> str:
    """Its name, without how many of its cores the process might have used."""
    return record["cpu"].rsplit(" (", 1)[0]


def show(records: list[results.Record]) -> None:
    """Ratios against the goals, at the lengths where they are judged. memory: the least of any peer of the family
    divided by ours, forward and with backward."""
    found = {place(r): r for r in records}
    for cpu in dict.fromkeys(processor(r) for r in records):
        print(f"\n{cpu}\nfamily      against                        length setting     forward (goal)     "
              "+backward (goal)    memory      floor")  # fmt: skip
        for name, family in FAMILIES.items():
            for n, goals in family.goals.items():
                for setting in SETTINGS:
                    both = [found.get((family.ours, cpu, setting, n, which)) for which in PASSES]
                    if None in both or None in (both[0]["ratio"], both[1]["ratio"]):
                        continue
                    words = [
                        f"{r['ratio']:6.2f} ({goal:.1f}) {'met ' if r['ratio'] >= goal else 'NOT '}"
                        for r, goal in zip(both, goals, strict=True)
                    ]
                    print(f"{name:11s} {family.judged:30s} {n:6d} {setting:10s} {words[0]:18s} {words[1]:18s} "
                          f"{both[0]['memory_ratio']:5.2f} {both[1]['memory_ratio']:5.2f} "
                          f"{both[0]['floor_ratio']:5.2f} {both[1]['floor_ratio']:5.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
