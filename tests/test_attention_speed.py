"""The table of speeds: cells of several calls stand side by side, and ratios are made from what stands there."""

import pytest

from experiments.attention import speed
from hvlm import results


def cell(name: str, seconds: float, mb: float, status: str = "ok"):
    return speed.as_record(name, "fp32", {"n": 512, "pass": "forward", "status": status, "seconds": seconds,
                                          "peak_mb": mb}, 100.0)  # fmt: skip


def test_later_cells_replace_earlier_ones_and_ratios_follow(tmp_path):
    path = tmp_path / "speed.json"
    speed.add(path, [cell("window", 2.0, 50.0), cell("local_attention", 3.0, 100.0)])
    ours = results.read(path)[0]
    assert ours["ratio"] == 1.5 and ours["memory_ratio"] == 2.0 and ours["peer"] == "local_attention"
    floor = speed.OURS["window"]().flops(512) / 100e9
    assert ours["floor_ratio"] == pytest.approx(2.0 / floor, rel=1e-3)
    speed.add(path, [cell("local_attention", 1.0, 100.0), cell("longformer", 9.0, 40.0)])
    assert [r["mechanism"] for r in results.read(path)] == ["window", "local_attention", "longformer"]
    assert results.read(path)[0]["ratio"] == 0.5 and results.read(path)[0]["memory_ratio"] == 0.8
    speed.add(path, [cell("window", 120.0, 12000.0, "over_limit")])
    assert results.read(path)[0]["ratio"] is None
