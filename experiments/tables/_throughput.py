"""Tables of what a step costs beside a plain loop's, from experiments/throughput."""

from __future__ import annotations

from experiments.tables._records import read, table

FILE = "throughput/results.json"
SIZES, WORKS = ("small", "medium", "large"), ("question", "questions", "frozen", "captions")
WAYS = ("plain", "plain_checkpoints", "before", "hvlm")
Values = dict[str, float]


def figures() -> dict[tuple[str, str, str], dict[str, Values]]:
    """{(size, work, dtype): {way: {metric: value}}}."""
    found: dict[tuple[str, str, str], dict[str, Values]] = {}
    for r in read(FILE):
        found.setdefault((r["size"], r["work"], r["dtype"]), {}).setdefault(r["variant"], {})[r["metric"]] = r["value"]
    return found


def ordered() -> list[tuple[tuple[str, str, str], dict[str, Values]]]:
    return sorted(figures().items(), key=lambda case: (SIZES.index(case[0][0]), WORKS.index(case[0][1]), case[0][2]))


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def loops() -> list[str]:
    """hvlm, and what it was, beside the plain loop."""
    rows = []
    for (size, work, dtype), ways in ordered():
        for way in WAYS:
            if (v := ways.get(way)) is not None:
                rows.append([
                    size, work, dtype, way, f"{v['samples_per_cpu_s']:.3g}", f"{v['ratio']:.2f}",
                    f"{v['peak_mb']:,.0f}", f"{v['peak_ratio']:.2f}", percent(v.get("mfu")),
                ])  # fmt: skip
    head = ["size", "a step reads", "dtype", "way", "samples / CPU s", "ratio", "peak MB", "ratio", "MFU %"]
    return table(head, rows)


def changes() -> list[str]:
    """Each setting beside hvlm without it."""
    rows = []
    for (size, work, dtype), ways in ordered():
        for way, v in ways.items():
            if way in WAYS or "hvlm" not in ways:
                continue
            base = ways["hvlm"]
            speed = v["samples_per_cpu_s"] / base["samples_per_cpu_s"]
            rows.append([
                way.removeprefix("hvlm_"), size, work, dtype, f"{speed:.2f}",
                f"{v['peak_mb'] / base['peak_mb']:.2f}", percent(v.get("data")),
            ])  # fmt: skip
    return table(
        ["way", "size", "a step reads", "dtype", "samples / CPU s", "peak memory", "wait for data, % of a step"], rows
    )


TABLES = {"throughput/loops": loops, "throughput/changes": changes}
FILES = dict.fromkeys(TABLES, FILE)
