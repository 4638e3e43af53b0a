"""Tables of what processes hold and lose, from experiments/strategies."""

from __future__ import annotations

from experiments.tables._records import read, table

FILE = "strategies/results.json"
HELD = {
    "parameters": "weights",
    "gradients": "gradients",
    "optimiser": "optimiser states",
    "buffers": "buffers",
    "resident": "growth of the process until then",
    "peak": "its growth at its most",
}
TRAINERS = ("trainer=ddp", "trainer=fsdp")


def figures(question: str) -> dict[str, dict[str, float]]:
    """{metric: {trainer: value}}."""
    found: dict[str, dict[str, float]] = {}
    for record in read(FILE):
        if record["question"] == f"strategies_{question}":
            found.setdefault(record["metric"], {})[record["variant"]] = record["value"]
    return found


def memory() -> list[str]:
    rows = []
    for what, values in figures("memory").items():
        ddp, fsdp = (values[trainer] for trainer in TRAINERS)
        rows.append([HELD[what], f"{ddp:,.2f}", f"{fsdp:,.2f}", f"{fsdp / ddp:.2f}"])
    return table(["MB of each of two processes", *TRAINERS, "ratio"], rows)


def losses() -> list[str]:
    rows = [
        [metric.removeprefix("difference/"), *(f"{values[trainer]:.1e}" for trainer in TRAINERS)]
        for metric, values in figures("losses").items()
    ]
    return table(["largest difference of a step's loss to one process", *TRAINERS], rows)


TABLES = {"strategies/memory": memory, "strategies/losses": losses}
