"""Where a step's time goes, and the parts that are compiled or computed again: what they say is so, and they change
nothing that is learned."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

from hvlm.training import chain
from hvlm.training.profile import BACKWARD, FILE, OPTIMISER, REST, STEP, Clock

FEW = ["stage=sft", "stage.batch_size=4", "stage.interleave=0", "evaluate=false", "callback.media=0"]


class Steps(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())


def test_the_rows_sum_to_the_step(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    made, spy = chain.callbacks, Steps()
    monkeypatch.setattr(chain, "callbacks", lambda *a, **k: [*made(*a, **k), spy])
    with caplog.at_level(logging.INFO):
        chain.run([*FEW, "stage.steps=14", "trainer.profile=true", "run=a", *needles])
    found = json.loads((tmp_path / "runs" / "a" / "sft" / FILE).read_text())
    assert (found["steps"], found["steps_not_timed"], found["steps_counted"]) == (12, 2, 1)
    whole = (spy.ends[-1] - spy.ends[1]) / 12
    rows = {label: row["seconds"] for label, row in found["step"].items()}
    assert sum(rows.values()) == pytest.approx(found["seconds_per_step"])
    assert found["seconds_per_step"] == pytest.approx(whole, rel=0.05), "a step by another clock"
    assert {"data", "vision", "connector", "language", "head", BACKWARD, OPTIMISER, "logging"} <= set(rows)
    assert set(rows) <= set(STEP) and rows[REST] < 0.1 * whole and min(rows.values()) >= 0
    assert found["step"]["language"]["flops"] > 0 and found["flops_again"] == 0
    forward = sum(row["flops"] for label, row in found["step"].items() if label != BACKWARD)
    assert 1.5 * forward < found["step"][BACKWARD]["flops"] <= 2 * forward, "no gradient of the pixels, two of the rest"
    assert 0 < found["mfu"] < 1 and found["samples_per_s"] == pytest.approx(4 / found["seconds_per_step"])
    assert "MFU" in caplog.text and "language" in caplog.text
    assert "profile/mfu" in (tmp_path / "runs" / "a" / "sft" / "metrics.jsonl").read_text()


def test_what_begins_inside_takes_over_until_it_ends() -> None:
    ticks = iter(range(100))
    clock = Clock(lambda: next(ticks))  # each turn takes a second
    clock.start()
    with clock.inside("a"), clock.inside("b"), clock.inside(None):
        pass
    with clock.inside("validation", forced=True), clock.inside("a"):
        pass
    clock.stop()
    # before a; a; b; b (of nobody else); b; a; before; then validation three times; and the end
    assert clock.seconds == {REST: 3, "a": 2, "b": 3, "validation": 3}


def test_a_devices_marks_are_read_when_they_have_passed() -> None:
    passed, ticks = [False], iter(range(100))
    clock = Clock(lambda: next(ticks), lambda a, b: b - a if passed[0] else None)
    clock.start()
    with clock.inside("a"):
        pass
    assert not clock.seconds
    passed[0] = True
    clock.stop()
    assert clock.seconds == {REST: 2, "a": 1}
