"""Curves as PNG, and the records of hours of video that are drawn so."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from PIL import Image

from experiments.duo import hours
from hvlm.viz.line_plot import HEIGHT, WIDTH, Panel, line_plot


def test_panels_stand_beside_each_other_and_curves_where_their_numbers_are(tmp_path: Path) -> None:
    flat, rising = [(0.0, 5.0), (10.0, 5.0)], [(0.0, 0.0), (10.0, 10.0)]
    both = line_plot(
        [Panel("a", "x", {"one": flat, "two": rising}), Panel("b", "x", {"one": rising})], tmp_path / "p.png"
    )
    with Image.open(both) as picture:
        assert picture.width == 2 * WIDTH and picture.height > HEIGHT and both.stat().st_size < 50_000
    line_plot([Panel("a", "x", {"one": [(1.0, 1.0), (1000.0, 10.0)]}, log=True)], tmp_path / "log.png")
    for series, log in (({}, False), ({"one": [(0.0, 1.0)]}, True), ({"one": [(1.0, float("nan"))]}, False)):
        with pytest.raises(ValueError, match="no points, or some that its axes do not have"):
            line_plot([Panel("a", "x", series, log)], tmp_path / "q.png")


def test_records_of_hours_are_of_every_tenth_and_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {
            "frames": 10 * i,
            "kv_bytes": 1000 * i,
            "resident_mb": 400.0,
            "frame_ms": 9.0 + i % 2,
            "cpu_ms": None if i == 1 else 5.0,
        }
        for i in range(1, 21)
    ]
    records = hours.as_records("duo_25", lines, 3.0, argparse.Namespace(checkpoint=None))
    kept = [(r["frames"], r["value"]) for r in records if r["metric"] == "kv_bytes"]
    assert kept == [(20 * i, 2000.0 * i) for i in range(1, 11)]
    assert {r["retrieval"] for r in records} == {0.25} and {r["weights"] for r in records} == {"random"}
    assert hours.draw(records, tmp_path / "hours.png").stat().st_size < 200_000
    hours.show(records)
    assert "| `duo_25` | 200 | 0.02 | 400 | 9.50 | 5.00 |" in capsys.readouterr().out
