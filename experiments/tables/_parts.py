"""Table of how far a step that is shared is from the step at once."""

from __future__ import annotations

from experiments.tables._records import one, some, table

FILE = "parts/results.json"
WAYS = {"processes": "two processes", "accumulate": "`trainer.accumulate=2`"}


def parts() -> list[str]:
    """A row a stage: the relative difference of the loss at the first step, and the largest of all steps; how far the
    loss moves in them."""
    names = [record["metric"].removeprefix("first/") for record in some(FILE, variant="processes")]
    names = [name for name in names if "/" not in name]
    rows = []
    for name in names:
        cells = [
            f"{one(FILE, variant=way, metric=f'{kind}/{name}')['value']:.1e}"
            for way in WAYS
            for kind in ("first", "largest")
        ]
        cells.append(f"{100 * one(FILE, variant='one', metric=f'moved/{name}')['value']:.1f} %")
        rows.append([f"`{name.replace('_', '` `')}`", *cells])
    steps = one(FILE, variant="processes", metric=f"first/{names[0]}")["n"]
    head = [f"{label}, {kind}" for label in WAYS.values() for kind in ("first step", f"largest of {steps} steps")]
    return table(["", *head, "the loss moves by"], rows)


TABLES = {"parts": parts}
FILES = dict.fromkeys([*TABLES, FILE], FILE)
