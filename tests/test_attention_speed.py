"""The table of speeds: mechanisms are timed in turn, cells of several calls stand side by side, and ratios follow."""

import pytest

from experiments.attention import _cells, speed
from experiments.attention._cells import Cell, Worker, in_turn
from hvlm.evaluation import results


def cell(name: str, seconds: float, mb: float, ok: bool = True):
    return speed.as_record(name, "fp32", 512, "forward", Cell(seconds, mb, ok), 100.0)


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
    speed.add(path, [cell("window", 120.0, 12000.0, ok=False)])
    assert results.read(path)[0]["ratio"] is None


def test_another_processor_has_rows_of_its_own(tmp_path):
    path = tmp_path / "speed.json"
    speed.add(path, [cell("window", 2.0, 50.0), cell("local_attention", 3.0, 100.0)])
    speed.add(path, [cell("local_attention", 9.0, 100.0) | {"cpu": "another"}])
    assert [r["ratio"] for r in results.read(path)] == [1.5, None, None]


class Script(Worker):
    """Says what it was told to instead of running anything."""

    def __init__(self, name: str, cells: list[Cell]):
        super().__init__(name, "fp32", 1)
        self.cells, self.asked = cells, []

    def _run(self, n, which):
        self.asked.append(n)
        return self.cells[min(len(self.asked), len(self.cells)) - 1]


def test_in_turn_the_least_counts_and_the_first_run_only_for_its_memory():
    ours, slow = (
        Script("window", [Cell(9.0, 70.0, True), Cell(2.0, 0, True), Cell(1.0, 0, True)]),
        Script("longformer", [Cell(30.0, 80.0, True)]),
    )
    found = in_turn([ours, slow], 64, "forward")
    assert found == {"window": Cell(1.0, 70.0, True), "longformer": Cell(30.0, 80.0, True)}
    assert len(ours.asked) == 1 + _cells.ROUNDS and len(slow.asked) == 1


def test_what_took_more_than_half_is_not_tried_at_twice_the_length():
    worker = Script("full", [Cell(61.0, 80.0, True)])
    assert worker.first(64, "forward").ok and not worker.first(128, "forward").ok and worker.asked == [64]
    assert worker.first(64, "forward_backward").ok  # the other pass is another matter


def test_a_mechanism_in_a_process_of_its_own():
    worker = Worker("strided_64", "fp32", 1)
    try:
        found = worker.first(64, "forward_backward")
    finally:
        worker.close()
    assert found.ok and 0 < found.seconds < 60 and found.peak_mb > 0
    assert not Worker("flex", "fp32", 1).can("forward_backward")
