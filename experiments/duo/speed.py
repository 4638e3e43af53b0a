"""How much memory and time does it save that some heads keep sink and recent only? One run, one machine, all in turn:

    python -m experiments.duo.speed [--lengths 2048 8192 32768] [--dtypes fp32] [--threads 1] [--tokens 16] [--rounds 4]

SmolLM2-135M (30 layers of 3 KV heads) reads a prompt of noise and goes on writing, each cache in a process of its own:
transformers' ``DynamicCache`` with its own attention and the prompt in one pass (what a user has today) and in pieces,
``kvcache=full``, ``kvcache=duo`` with half, a quarter and an eighth of the heads retrieving (gates drawn at random: for
speed it does not matter which), half of them in 8 bits, and ``kvcache=streaming``. Prompts are read one cache after the
other; then all write a few tokens in turn, round after round, so that whatever else the machine does meets all alike.

Columns: kv_bytes that are allocated after the prompt; prefill: seconds, and the highest resident set while reading
minus that before (weights not counted) and with it; decode: tokens per second, the median over rounds. floor_ratio:
time of a token divided by the time to read all weights and the kept keys and values once, at the speed of a product of
a large matrix and a vector, measured in the same process. ratio: against ``dynamic``. Writes speed.json beside this
file.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from experiments.duo._reader import Reader
from hvlm.evaluation import results
from hvlm.precision import has_fast_bf16

HERE = Path(__file__).parent
COMMAND = "python -m experiments.duo.speed"
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
GOALS = {  # at 8,192 tokens: KV bytes at most, decode and prefill at least, memory of the prefill at most
    "duo_50": {"kv_ratio": 0.55, "decode": 1.4, "prefill": 1.3, "peak_ratio": 0.5},
    "duo_25": {"kv_ratio": 0.30, "decode": 1.8, "prefill": 1.3, "peak_ratio": 0.5},
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
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"))
    parser.add_argument("--sink", type=int, default=64)
    parser.add_argument("--recent", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=1024, help="places of a prompt that are read at a time")
    parser.add_argument("--tokens", type=int, default=16, help="written in a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, to see whether all runs")
    parser.add_argument("--out", type=Path, default=HERE / "speed.json")
    options = parser.parse_args()
    dtypes = options.dtypes or ["fp32", *(["bf16"] if has_fast_bf16() else [])]
    records = []
    for dtype in dtypes:
        for length in options.lengths:
            found = measure(length, dtype, options)
            records += as_records(found, length, dtype, options)
            results.write(options.out, records)
    show(records)


def measure(length: int, dtype: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """{cache: what was found}."""
    shared = {"sink": options.sink, "recent": options.recent, "chunk": options.chunk, "dtype": dtype,
              "threads": options.threads, "sizes": TINY if options.tiny else None}  # fmt: skip
    readers: dict[str, Reader] = {}
    found: dict[str, dict[str, Any]] = {}
    try:
        for name in options.caches:
            reader = readers[name] = Reader(**{**shared, **CACHES[name]})
            read = reader.ask("read", length)
            found[name] = {"read": read, "facts": reader.facts, "write": []}
            print(f"{dtype} {length:6d} {name:15s} read in {read['seconds']:8.2f} s, {read['peak_mb']:8.1f} MB above "
                  f"what was there, {read['kv_bytes'] / 2**20:8.1f} MB kept", flush=True)  # fmt: skip
        for turn in range(options.rounds + 1):
            for name, reader in readers.items():
                wrote = reader.ask("write", options.tokens if turn else 2)
                if turn:  # the first one warms up
                    found[name]["write"].append(wrote)
        speed = next(iter(readers.values())).ask("bandwidth", 0)["bytes_per_second"]
    finally:
        for reader in readers.values():
            reader.close()
    for one in found.values():
        one["bandwidth"] = speed
    return found


def as_records(
    found: dict[str, dict[str, Any]], length: int, dtype: str, options: argparse.Namespace
) -> list[results.Record]:
    records = []
    base = found.get("dynamic")
    for name, one in found.items():
        read, facts = one["read"], one["facts"]
        each = [w["seconds"] / options.tokens for w in one["write"]]
        token = statistics.median(each)
        kept = one["write"][-1]["kv_bytes"]
        floor = (facts["weights_bytes"] + kept) / one["bandwidth"]
        columns = {
            "cache": name, "length": length, "dtype": dtype, "retrieval": CACHES[name].get("retrieval"),
            "bits": CACHES[name].get("bits"), "sink": options.sink, "recent": options.recent,
            "chunk": CACHES[name].get("chunk", options.chunk), "threads": options.threads, "weights": facts["source"],
            "kv_bytes": read["kv_bytes"], "gb_per_second": round(one["bandwidth"] / 1e9, 1),
        }  # fmt: skip
        ratio: dict[str, float | None] = {"kv_ratio": None, "decode": None, "prefill": None, "peak_ratio": None}
        if base is not None:
            first = statistics.median(w["seconds"] / options.tokens for w in base["write"])
            ratio = {
                "kv_ratio": round(read["kv_bytes"] / base["read"]["kv_bytes"], 4),
                "decode": round(first / token, 3),
                "prefill": round(base["read"]["seconds"] / read["seconds"], 3),
                "peak_ratio": round(read["peak_mb"] / max(base["read"]["peak_mb"], 1.0), 3),
            }
        made = {"stderr": None, "chance": None, "seeds": [0], "command": COMMAND}
        record = results.make("duo_speed", name, "prefill_seconds", read["seconds"], n=length, seconds=read["seconds"],
                              columns=columns | {"peak_mb": round(read["peak_mb"], 1),
                                                 "resident_mb": round(read["resident_mb"], 1),
                                                 "cpu_seconds": round(read["cpu_seconds"], 2),
                                                 "ratio": ratio["prefill"], "peak_ratio": ratio["peak_ratio"],
                                                 "kv_ratio": ratio["kv_ratio"]}, **made)  # fmt: skip
        records.append(record)
        record = results.make("duo_speed", name, "decode_tokens_per_second", 1 / token,
                              n=options.tokens * options.rounds, seconds=sum(each) * options.tokens,
                              columns=columns | {"fastest": round(1 / min(each), 2), "slowest": round(1 / max(each), 2),
                                                 "floor_ratio": round(token / floor, 3), "ratio": ratio["decode"],
                                                 "kv_ratio": ratio["kv_ratio"]}, **made)  # fmt: skip
        records.append(record)
    return records


def show(records: list[results.Record]) -> None:
    """All, and at 8,192 tokens against the goals."""
    names = ("cache", "dtype", "length", "KV MB", "of all", "prefill s", "faster", "above MB", "of it", "tokens/s")
    print("\n" + " ".join(f"{name:>9s}" for name in (*names, "faster", "of floor")))
    both = zip(records[::2], records[1::2], strict=True)
    for read, wrote in both:
        said = [
            f"{'-':>7s}" if x is None else f"{x:7.2f}"
            for x in (read["kv_ratio"], read["ratio"], read["peak_ratio"], wrote["ratio"])
        ]
        print(f"{read['cache']:15s} {read['dtype']:5s} {read['length']:7d} {read['kv_bytes'] / 2**20:8.1f} {said[0]} "
              f"{read['value']:10.2f} {said[1]} {read['peak_mb']:9.0f} {said[2]} {wrote['value']:12.2f} {said[3]} "
              f"{wrote['floor_ratio']:8.2f}")  # fmt: skip
        goals = GOALS.get(read["cache"]) if read["length"] == 8192 else None
        if goals and read["kv_ratio"] is not None:
            reached = {
                "kv_ratio": read["kv_ratio"],
                "decode": wrote["ratio"],
                "prefill": read["ratio"],
                "peak_ratio": read["peak_ratio"],
            }
            words = []
            for what, goal in goals.items():
                met = reached[what] <= goal if what.endswith("ratio") else reached[what] >= goal
                words.append(f"{what} {reached[what]:.2f} (goal {goal}) {'met' if met else 'NOT met'}")
            print(f"{'':15s} {'; '.join(words)}")


if __name__ == "__main__":
    main()
