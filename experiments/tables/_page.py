"""Table of how soon the page of ``hvlm ui`` answers."""

from __future__ import annotations

from experiments.tables._records import one, table

TIMES = "page/results.json"
ROWS = {
    "click to first letter, median": "click_to_first_letter_ms",
    "the slowest": "largest_click_to_first_letter_ms",
    "the first after the start": "first_click_to_first_letter_ms",
    "processor time of the server's process in it": "server_processor_ms",
}


def times() -> list[str]:
    """Milliseconds, and how busy the machine was."""
    found = {label: one(TIMES, metric=metric) for label, metric in ROWS.items()}
    rows = [[label, f"{record['value']:,.0f} ms"] for label, record in found.items()]
    load = one(TIMES, metric="load")["value"]
    head = f"demo's model; {record_n(found)} visitors after the first; {load:.0f} processes wanted the processors"
    return table([head, ""], rows)


def record_n(found: dict) -> int:
    return next(iter(found.values()))["n"]


TABLES = {"page_times": times}
FILES = dict.fromkeys([*TABLES, TIMES], TIMES)
