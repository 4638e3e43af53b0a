"""How fast is every mixing mechanism, against what a user would pick instead and against arithmetic? ``make
bench-attention``, or

    python -m experiments.attention.speed [--lengths 512 ... 32768] [--only window local_attention] [--threads 1]

Every mechanism (768 wide, 12 heads, batch 1) in three settings: float32 as torch comes, float32 with matmul precision
"medium" (fast), and bfloat16 autocast. Forward without gradients, and forward with backward; processor time of the
process, the least of up to eight repeats after one to warm up (what runs beside it only adds), or a single run where
that took more than 4 seconds. Memory: the highest resident set minus that before, in the process of that
mechanism. A cell beyond 120 seconds or 12 GB is ``over_limit``. Floor: the layer's operations (three times as many with
backward) at the speed of a large matrix product in the same setting. Adds to speed.json beside this file; the ratios
are made anew from all that stands there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from experiments.attention._mechanisms import DIM, FAMILIES, FORWARD_ONLY, OURS, PEERS
from experiments.memory import peak_since, start_peak
from hvlm import results

HERE = Path(__file__).parent
COMMAND = "python -m experiments.attention.speed"
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384, 32768]
SETTINGS = ("fp32", "fp32_fast", "bf16")
PASSES = ("forward", "forward_backward")
SECONDS, MEGABYTES = 120, 12_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--only", nargs="+", choices=[*OURS, *PEERS], default=[*OURS, *PEERS])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "speed.json")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        measure(*options.cell, options.lengths, options.threads)
        return
    for setting in options.settings:
        gflops = gemm_gflops(setting, options.threads)
        print(f"{setting}: {gflops:.0f} GFLOP/s in a matrix product", flush=True)
        for name in options.only:
            records = []
            for cell in one_process(name, setting, options):
                records.append(as_record(name, setting, cell, gflops))
                print(f"  {name:30s} {cell['n']:6d} {cell['pass']:17s} {cell['status']:10s} "
                      f"{1e3 * cell['seconds']:10.1f} ms {cell['peak_mb']:8.0f} MB", flush=True)  # fmt: skip
            add(options.out, records)
    show(results.read(options.out))


def one_process(name: str, setting: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The cells of one mechanism in one setting, from a process of their own; what it does not manage is over_limit."""
    command = [sys.executable, "-m", "experiments.attention.speed", "--cell", name, setting, "--threads",
               str(options.threads), "--lengths", *map(str, options.lengths)]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in child.stdout] + [lines.put(None)], daemon=True).start()
    wanted = [(n, p) for n in options.lengths for p in PASSES if not (p == PASSES[1] and name in FORWARD_ONLY)]
    done = set()
    with contextlib.suppress(queue.Empty):
        while (line := lines.get(timeout=2 * SECONDS + 60)) is not None:
            if line.startswith("{"):
                cell = json.loads(line)
                done.add((cell["n"], cell["pass"]))
                yield cell
    child.kill()
    for n, which in (cell for cell in wanted if cell not in done):
        yield {"n": n, "pass": which, "status": "over_limit", "seconds": float(SECONDS), "peak_mb": float(MEGABYTES)}


def measure(name: str, setting: str, lengths: list[int], threads: int) -> None:
    """In a process of its own: print a line per length and pass, stop at the first that is over a limit."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if setting == "fp32_fast":
        torch.set_float32_matmul_precision("medium")
    layer = {**OURS, **PEERS}[name]().eval()
    half = setting == "bf16"
    over = {which: False for which in PASSES}
    for n in lengths:
        x = torch.randn(1, n, DIM)
        for which in PASSES:
            if which == PASSES[1] and name in FORWARD_ONLY or over[which]:
                continue

            def run(x: torch.Tensor = x, learn: bool = which == PASSES[1]) -> None:
                with torch.set_grad_enabled(learn), torch.autocast("cpu", torch.bfloat16, enabled=half):
                    y = layer(x.requires_grad_(learn))
                if learn:
                    y.float().sum().backward()
                    layer.zero_grad()
                    x.grad = None

            seconds, mb = timed(run)
            over[which] = seconds > SECONDS or mb > MEGABYTES
            status = "over_limit" if over[which] else "ok"
            print(json.dumps({"n": n, "pass": which, "status": status, "seconds": seconds, "peak_mb": mb}), flush=True)
        if all(over.values()):
            return


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """(processor seconds, megabytes beyond what was there)."""
    before = start_peak()
    taken = [once(run)]
    peak = peak_since(before)
    if taken[0] > 4:
        return taken[0], peak
    repeats = []
    started = time.process_time()
    while len(repeats) < 8 and (len(repeats) < 2 or time.process_time() - started < 2):
        repeats.append(once(run))
    return min(repeats), max(peak, peak_since(before))


def once(run: Callable[[], None]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def gemm_gflops(setting: str, threads: int) -> float:
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("medium" if setting == "fp32_fast" else "highest")
    dtype = torch.bfloat16 if setting == "bf16" else torch.float32
    a, b = torch.randn(4096, DIM, dtype=dtype), torch.randn(DIM, DIM, dtype=dtype)
    a @ b
    best = min(once(lambda: a @ b) for _ in range(10))
    return 2 * a.shape[0] * DIM * DIM / best / 1e9


def as_record(name: str, setting: str, cell: dict[str, Any], gflops: float) -> results.Record:
    """A cell with the distance to its floor; the ratios come with ``add``."""
    floor_ratio = None
    if name in OURS and cell["status"] == "ok":
        flops = OURS[name]().flops(cell["n"]) * (3 if cell["pass"] == PASSES[1] else 1)
        floor_ratio = round(cell["seconds"] / (flops / gflops / 1e9), 3)
    columns = {
        "mechanism": name, "length": cell["n"], "dtype": setting, "pass": cell["pass"], "status": cell["status"],
    }  # fmt: skip
    made = results.make("attention_speed", name, "seconds", cell["seconds"], stderr=None, n=cell["n"], chance=None,
                        seeds=[0], seconds=cell["seconds"], command=COMMAND, columns=columns)  # fmt: skip
    return made | {"peak_mb": round(cell["peak_mb"], 1), "gflops": round(gflops, 1), "floor_ratio": floor_ratio}


def add(path: Path, records: list[results.Record]) -> None:
    """New cells replace old ones of the same place, and every ratio is made from what then stands side by side."""
    found = {place(r): r for r in [*(results.read(path) if path.exists() else []), *records]}
    for (name, *where), record in found.items():
        family = next((f for f in FAMILIES.values() if f.ours == name), None)
        rivals = [] if family is None else [found.get((peer, *where)) for peer in (family.judged, *family.others)]
        record |= {"peer": family.judged if family else None, "ratio": None, "memory_ratio": None}
        if record["status"] == "ok" and rivals and rivals[0] is not None:  # over its limit: a lower bound
            record["ratio"] = round(rivals[0]["value"] / record["value"], 3)
            least = min(r["peak_mb"] for r in rivals if r is not None)
            record["memory_ratio"] = round(least / max(record["peak_mb"], 1.0), 3)
    results.write(path, found.values())


def place(record: results.Record) -> tuple[Any, ...]:
    return tuple(record[column] for column in ("mechanism", "dtype", "length", "pass"))


def show(records: list[results.Record]) -> None:
    """Ratios against the goals, at the lengths where they are judged. memory: the least of any peer of the family
    divided by ours, forward and with backward."""
    found = {place(r): r for r in records}
    print("\nfamily      against                        length setting     forward (goal)     +backward (goal)    "
          "memory      floor")  # fmt: skip
    for name, family in FAMILIES.items():
        for n, goals in family.goals.items():
            for setting in SETTINGS:
                both = [found.get((family.ours, setting, n, which)) for which in PASSES]
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
