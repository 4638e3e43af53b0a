"""How much memory and time does it save that some heads keep sink and recent only? One run, one machine, all in turn:

    python -m experiments.duo.speed [--lengths 2048 8192 32768] [--read-up-to 8192] [--threads 1] [--tokens 16]

SmolLM2-135M (30 layers of 3 KV heads) reads a prompt of noise and goes on writing, each cache in a process of its own:
transformers' ``DynamicCache`` with its own attention and the prompt in one pass (what a user has today) and in pieces,
``kvcache=full``, ``kvcache=duo`` with all, half, a quarter and an eighth of the heads retrieving (gates drawn at
random: for speed it does not matter which), half of them in 8 bits, and ``kvcache=streaming``. Prompts are read one
cache after the other, ``--reads`` times; then all write a few tokens in turn, round after round, so that whatever else
the machine does meets all alike. The time of a prompt grows with the square of its length: those above ``--read-up-to``
are filled, keys and values of noise in place of what reading would have made (column ``filled``), and have no prefill
record. What a step does from there on is the same.

Columns: kv_bytes that are allocated after the prompt; prefill: seconds, the median over reads, and the highest resident
set while reading minus that before (weights not counted) and with it; decode: tokens per second, the median over
rounds. floor_ratio: time of a token divided by the time to read all weights and the kept keys and values once, at the
speed of a product of a large matrix and a vector (gb_per_second, measured after the last round). ratio: against
``dynamic``. Adds to speed.json beside this file; lengths that are not measured stay. Then draws docs/figures/speed.png,
memory and time against length.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.duo._reader import Reader
from experiments.started import as_started
from hvlm.evaluation import results
from hvlm.precision import has_fast_bf16
from hvlm.viz.line_plot import Panel, line_plot

HERE = Path(__file__).parent
COMMAND = "python -m experiments.duo.speed"
PICTURE = Path("docs/figures/speed.png")
LENGTHS = [2048, 8192, 32768]
# Their names, and what differs. ``dynamic`` is what the others are compared with.
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {"cache": "dynamic", "chunk": None},
    "dynamic_pieces": {"cache": "dynamic"},
    "full": {"cache": "full"},
    "duo_100": {"cache": "duo", "retrieval": 1.0},
    "duo_50": {"cache": "duo", "retrieval": 0.5},
    "duo_25": {"cache": "duo", "retrieval": 0.25},
    "duo_12": {"cache": "duo", "retrieval": 0.125},
    "duo_50_8bit": {"cache": "duo", "retrieval": 0.5, "bits": 8},
    "streaming": {"cache": "streaming", "retrieval": 0.0},
}
PREFILL, DECODE = "prefill_seconds", "decode_tokens_per_second"
AT, FAR = 8192, 32768
# At so many tokens, times ``dynamic``: bytes and peak memory of the prefill at most, speeds at least. Where there is
# more to read, decoding gains more.
GOALS = {
    "duo_50": {"KV bytes": 0.55, "decode": 1.4, "prefill": 1.3, "peak": 0.5},
    "duo_25": {"KV bytes": 0.30, "decode": 1.8, "prefill": 1.3, "peak": 0.5},
}
TINY = {
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 3,
    "vocab_size": 99,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--read-up-to", type=int, default=8192, help="places; longer prompts are filled, not read")
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"))
    parser.add_argument("--sink", type=int, default=64)
    parser.add_argument("--recent", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=1024, help="places of a prompt that are read at a time")
    parser.add_argument("--tokens", type=int, default=16, help="written in a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--reads", type=int, default=2, help="of each prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, to see whether all runs")
    parser.add_argument("--draw", action="store_true", help="draw and show what is there, and measure nothing")
    parser.add_argument("--out", type=Path, default=HERE / "speed.json")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    old = results.read(options.out) if options.out.exists() else []
    if options.draw:
        show(old)
        print(draw(old, options.picture))
        return
    dtypes = options.dtypes or ["fp32", *(["bf16"] if has_fast_bf16() else [])]
    others = [r for r in old if r["dtype"] not in dtypes or r["length"] not in options.lengths]
    records: list[results.Record] = []
    for dtype in dtypes:
        for length in options.lengths:
            records += as_records(measure(length, dtype, options), length, dtype, options)
            results.write(options.out, others + records)
    show(records)
    print(draw(others + records, options.picture))


def measure(length: int, dtype: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """{cache: what was found}."""
    shared = {"sink": options.sink, "recent": options.recent, "chunk": options.chunk, "dtype": dtype,
              "threads": options.threads, "sizes": TINY if options.tiny else None}  # fmt: skip
    readers: dict[str, Reader] = {}
    found: dict[str, dict[str, Any]] = {}
    filled, began = length > options.read_up_to, time.monotonic()
    try:
        for turn in range(1 if filled else options.reads):
            for name in options.caches:
                if not turn:
                    reader = readers[name] = Reader(**{**shared, **CACHES[name]})
                    found[name] = {"facts": reader.facts, "filled": filled, "read": [], "write": []}
                read = readers[name].ask("fill" if filled else "read", length)
                found[name]["read"].append(read)
                done = "filled" if filled else f"read, {read['peak_mb']:.1f} MB above what was there,"
                print(f"{_clock(began)} {dtype} {length:6d} {name:15s} {read['seconds']:8.2f} s, {done} "
                      f"{read['kv_bytes'] / 2**20:.1f} MB kept", flush=True)  # fmt: skip
        for turn in range(options.rounds + 1):
            for name, reader in readers.items():
                wrote = reader.ask("write", options.tokens if turn else 2)
                if turn:  # the first one warms up
                    found[name]["write"].append(wrote)
            print(f"{_clock(began)} {dtype} {length:6d} round {turn} of {options.rounds} is written", flush=True)
        speed = next(iter(readers.values())).ask("bandwidth", 0)["bytes_per_second"]
    finally:
        for reader in readers.values():
            reader.close()
    for one in found.values():
        one["bandwidth"] = speed
    return found


def _clock(began: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    return f"{minutes:3d}:{seconds:02d}"


def as_records(
    found: dict[str, dict[str, Any]], length: int, dtype: str, options: argparse.Namespace
) -> list[results.Record]:
    records = []
    base = found.get("dynamic")
    for name, one in found.items():
        facts, written, read = one["facts"], [w["seconds"] / options.tokens for w in one["write"]], one["read"][0]
        token = statistics.median(written)
        floor = (facts["weights_bytes"] + one["write"][-1]["kv_bytes"]) / one["bandwidth"]
        columns = {
            "cache": name, "length": length, "dtype": dtype, "retrieval": CACHES[name].get("retrieval"),
            "bits": CACHES[name].get("bits"), "sink": options.sink, "recent": options.recent,
            "chunk": CACHES[name].get("chunk", options.chunk), "threads": options.threads, "weights": facts["source"],
            "filled": one["filled"], "kv_bytes": read["kv_bytes"], "gb_per_second": round(one["bandwidth"] / 1e9, 1),
            "kv_ratio": None if base is None else round(read["kv_bytes"] / base["read"][0]["kv_bytes"], 4),
        }  # fmt: skip
        made = {"stderr": None, "chance": None, "seeds": [0], "command": as_started(COMMAND)}
        if not one["filled"]:
            seconds, peak = _median(one["read"], "seconds"), _median(one["read"], "peak_mb")
            ratios = {"ratio": None, "peak_ratio": None}
            if base is not None:
                ratios = {"ratio": round(_median(base["read"], "seconds") / seconds, 3),
                          "peak_ratio": round(peak / max(_median(base["read"], "peak_mb"), 1.0), 3)}  # fmt: skip
            each = [r["seconds"] for r in one["read"]]
            more = {"peak_mb": round(peak, 1), "resident_mb": round(max(r["resident_mb"] for r in one["read"]), 1),
                    "cpu_seconds": round(_median(one["read"], "cpu_seconds"), 2),
                    "fastest": round(min(each), 2), "slowest": round(max(each), 2), **ratios}  # fmt: skip
            records.append(results.make("duo_speed", name, PREFILL, seconds, n=length, seconds=sum(each),
                                        columns=columns | more, **made))  # fmt: skip
        more = {"fastest": round(1 / min(written), 2), "slowest": round(1 / max(written), 2),
                "floor_ratio": round(token / floor, 3), "ratio": None}  # fmt: skip
        if base is not None:
            first = statistics.median(w["seconds"] / options.tokens for w in base["write"])
            more["ratio"] = round(first / token, 3)
        records.append(results.make("duo_speed", name, DECODE, 1 / token, n=options.tokens * options.rounds,
                                    seconds=sum(written) * options.tokens, columns=columns | more, **made))  # fmt: skip
    return records


def _median(found: list[dict[str, float]], what: str) -> float:
    return statistics.median(one[what] for one in found)


def show(records: list[results.Record]) -> None:
    """All, and what became of the goals."""
    names = ("cache", "dtype", "length", "KV MB", "of all", "prefill s", "faster", "above MB", "of it", "tokens/s")
    print("\n" + " ".join(f"{name:>9s}" for name in (*names, "faster", "of floor")))
    for wrote in (r for r in records if r["metric"] == DECODE):
        place = {key: wrote[key] for key in ("cache", "dtype", "length")}
        read = next((r for r in records if r["metric"] == PREFILL and place.items() <= r.items()), {})
        cells = [_cell(read.get("value"), 10), _cell(read.get("ratio"), 7), _cell(read.get("peak_mb"), 9),
                 _cell(read.get("peak_ratio"), 7), _cell(wrote["value"], 12), _cell(wrote["ratio"], 7),
                 _cell(wrote["floor_ratio"], 8)]  # fmt: skip
        print(f"{wrote['cache']:15s} {wrote['dtype']:5s} {wrote['length']:7d} {wrote['kv_bytes'] / 2**20:8.1f} "
              f"{_cell(wrote['kv_ratio'], 7)} {' '.join(cells)}")  # fmt: skip
    for words, met in judged(records):
        print(f"{words}: {'met' if met else 'NOT met'}")


def draw(records: list[results.Record], path: Path) -> Path:
    """Memory and time against length, of the first of the measured dtypes."""

    def curves(metric: str, what: Callable[[results.Record], float]) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for r in records:
            if r["metric"] == metric and r["dtype"] == records[0]["dtype"]:
                found.setdefault(r["cache"], []).append((r["length"], what(r)))
        return {name: sorted(points) for name, points in found.items()}

    panels = [
        Panel("keys and values, MB", "tokens", curves(DECODE, lambda r: r["kv_bytes"] / 2**20), log=True),
        Panel("reading, seconds", "tokens", curves(PREFILL, lambda r: r["value"]), log=True),
        Panel("writing, ms a token", "tokens", curves(DECODE, lambda r: 1000 / r["value"]), log=True),
    ]
    return line_plot(panels, path, f"SmolLM2-135M, {records[0]['dtype']}, {records[0]['threads']} thread(s)")


def _cell(value: float | None, width: int) -> str:
    return f"{'-':>{width}s}" if value is None else f"{value:{width}.2f}"


def judged(records: list[results.Record]) -> list[tuple[str, bool]]:
    """(what was aimed at and what was found, whether that is enough), of those goals that the records speak of."""
    said = []
    for (name, goals), dtype in itertools.product(GOALS.items(), dict.fromkeys(r["dtype"] for r in records)):
        mine = [r for r in records if r["cache"] == name and r["dtype"] == dtype]
        at = {(r["metric"], r["length"]): r for r in mine if r["ratio"] is not None}
        read, wrote, far = at.get((PREFILL, AT)), at.get((DECODE, AT)), at.get((DECODE, FAR))
        reached = {"KV bytes": wrote and wrote["kv_ratio"], "decode": wrote and wrote["ratio"],
                   "prefill": read and read["ratio"], "peak": read and read["peak_ratio"]}  # fmt: skip
        for what, value in reached.items():
            if value is not None:
                less = what in ("KV bytes", "peak")
                goal = f"{'<=' if less else '>='} {goals[what]:g} x"
                words = f"{name}, {dtype}, {AT} tokens: {what} {value:.2f} x, goal {goal}"
                said.append((words, value <= goals[what] if less else value >= goals[what]))
        if wrote and far:
            words = f"{name}, {dtype}, {FAR} tokens: decode {far['ratio']:.2f} x, goal > {wrote['ratio']:.2f} x"
            said.append((words, far["ratio"] > wrote["ratio"]))
    return said


if __name__ == "__main__":
    main()
