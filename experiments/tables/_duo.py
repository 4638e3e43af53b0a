"""Tables of kvcache=duo: its speed and memory, and other packages' caches beside ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from experiments.tables._records import Record, percent, read, some, table

SPEED, PEERS, RESULTS, HOURS = "duo/speed.json", "duo/peers.json", "duo/results.json", "duo/hours.json"
HEADS = {
    "full": "everything", "gates": "heads by gates", "random": "random heads, five draws", "inverse": "the other heads",
    "untrained_reconstruction": "heads by KVzip's score", "untrained_relative": "heads by kvpress' score",
    "streaming": "no head: sink and recent", "snapkv": "SnapKV", "expected": "Expected Attention",
    "infinipot": "InfiniPot-V", "adaptive": "merged tokens", "adaptive_x_gates": "merged tokens × heads by gates",
}  # fmt: skip
CACHES = {
    "dynamic": "`DynamicCache`", "dynamic_pieces": "the same, in pieces", "full": "`full`",
    "duo_100": "`duo`, all heads", "duo_50": "`duo`, half", "duo_25": "`duo`, a quarter", "duo_12": "`duo`, an eighth",
    "duo_50_8bit": "`duo`, half, 8 bits", "streaming": "`streaming`",
}  # fmt: skip
PRESSES = {
    "full": "everything", "none": "everything", "snapkv": "SnapKV", "expected": "Expected Attention", "adakv": "AdaKV",
    "kvzip": "KVzip", "duo": "DuoAttention",
}  # fmt: skip


def speed() -> list[str]:
    """A row for each length and cache."""

    def times(record: Record | None, key: str) -> str:
        return "" if record is None or record[key] is None else f"{record[key]:.2f}"

    def rows() -> Iterator[list[str]]:
        for wrote in some(SPEED, metric="decode_tokens_per_second"):
            place = {key: wrote[key] for key in ("cache", "dtype", "length")}
            found = some(SPEED, metric="prefill_seconds", **place)
            first = found[0] if found else None
            yield [
                f"{wrote['length']:,}", CACHES[wrote["cache"]], f"{wrote['kv_bytes'] / 2**20:.0f}",
                times(wrote, "kv_ratio"), "" if first is None else f"{first['value']:.1f}", times(first, "ratio"),
                "" if first is None else f"{first['peak_mb']:.0f}", times(first, "peak_ratio"), f"{wrote['value']:.1f}",
                times(wrote, "ratio"), times(wrote, "floor_ratio"),
            ]  # fmt: skip

    head = ("tokens", "cache", "KV, MB", "of all", "reading, s", "times as fast", "above, MB", "of it", "tokens/s",
            "times as fast", "times the floor")  # fmt: skip
    return table(head, rows())


def goals() -> list[str]:
    from experiments.duo.speed import judged

    rows = ([words, "yes" if met else "**no**"] for words, met in judged(list(read(SPEED))))
    return table(("against `DynamicCache`", "reached"), rows)


def peers() -> list[str]:
    """A row for each cache, a pair of columns for each share that is kept."""
    records = some(PEERS, metric="accuracy")

    def rows() -> Iterator[list[str]]:
        for accuracy in sorted(records, key=lambda r: -r["keep"]):
            package, _, name = accuracy["variant"].partition("_")
            place = {key: accuracy[key] for key in ("variant", "keep", "tokens")}
            cells = []
            for metric in ("stored", "said", "same_answer"):
                found = some(PEERS, metric=metric, **place)
                cells.append(f"{100 * found[0]['value']:.1f}" if found else "")
            share = accuracy["retrieval"]
            heads = "" if share is None else f", {100 * share:.0f} % of the heads"
            yield [f"{100 * accuracy['keep']:g} %", package, PRESSES[name] + heads, percent(accuracy, 0), *cells]

    head = ("kept", "package", "cache", "answers right, %", "stored, %", "said, %", "same answer as ours, %")
    return table(head, rows())


def comparison() -> list[str]:
    """A row for each share and variant of ``python -m experiments.duo``."""
    records = some(RESULTS, question="duo", metric="accuracy")

    def points(metric: str, place: dict[str, Any]) -> str:
        found = some(RESULTS, question="duo", metric=metric, **place)
        return percent(found[0]) if found else ""

    def rows() -> Iterator[list[str]]:
        for accuracy in sorted(records, key=lambda r: (-r["share"], list(HEADS).index(r["variant"]))):
            place = {key: accuracy[key] for key in ("variant", "share", "clips")}
            ends = [points(metric, place) for metric in ("accuracy_min", "accuracy_max")]
            (kept,) = some(RESULTS, question="duo", metric="kv_bytes", **place)
            yield [
                f"{100 * accuracy['share']:g} %", HEADS[accuracy["variant"]], f"{kept['value'] / 1e3:,.0f}",
                percent(accuracy) + (f" ({ends[0]} to {ends[1]})" if all(ends) else ""),
                points("minus_full", place), points("minus_gates", place),
            ]  # fmt: skip

    return table(("share", "kept", "KV of a clip, kB", "answers right, %", "minus everything", "minus gates"), rows())


def hours() -> list[str]:
    """A row for each tenth of the video that is shown, of each variant of ``python -m experiments.duo.hours``."""

    def rows() -> Iterator[list[str]]:
        for kept in some(HOURS, metric="kv_bytes"):
            if kept["frames"] % 3600 and kept["frames"] != 720:
                continue
            place = {key: kept[key] for key in ("variant", "frames")}
            (resident,), (cpu,) = (some(HOURS, metric=metric, **place) for metric in ("resident_mb", "cpu_ms"))
            yield [
                f"{100 * kept['retrieval']:g} %", f"{kept['frames']:,}", f"{kept['value']:,.0f}",
                f"{resident['value']:.1f}", f"{cpu['value']:.1f}",
            ]  # fmt: skip

    return table(("heads that keep all", "frames", "KV, bytes", "resident, MB", "processor, ms a frame"), rows())


TABLES: dict[str, Callable[[], list[str]]] = {
    "duo/comparison": comparison, "duo/hours": hours, "duo/speed": speed, "duo/speed/goals": goals, "duo/peers": peers,
}  # fmt: skip
FILES = {
    "duo/comparison": RESULTS, "duo/hours": HOURS, HOURS: HOURS, "duo/speed": SPEED, "duo/speed/goals": SPEED,
    SPEED: SPEED, "duo/peers": PEERS, PEERS: PEERS,
}  # fmt: skip
