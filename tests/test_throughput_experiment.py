"""experiments/throughput: the plain loop trains the same model on the same samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.throughput import cases
from experiments.throughput.__main__ import run
from experiments.throughput.hvlm_run import START

FEW = ["dataset.train_clips=24", "dataset.val_clips=8", "dataset.test_clips=8", "dataset.shard_clips=12"]


@pytest.mark.slow
@pytest.mark.parametrize("work", sorted(cases.WORKS))
def test_losses_are_those_of_the_plain_loop(work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(cases.STEPS, "small", 3)
    if work == "captions":
        (tmp_path / "captions").mkdir()
        cases.make_captions(tmp_path / "captions", 12)
    else:
        monkeypatch.setitem(cases.WORKS, work, [*cases.WORKS[work], *FEW])
    ours = run(tmp_path, "hvlm", "small", work, "float32", tmp_path / "start", {START: "1"})
    plain = run(tmp_path, "plain", "small", work, "float32", tmp_path / "plain")
    assert len(ours["losses"]) == cases.WARM + 3
    assert ours["losses"] == pytest.approx(plain["losses"], rel=1e-5)  # AdamW makes more of a gradient's rounding
    first = 1e-5 if work == "frozen" else 1e-6  # kept features are bfloat16
    assert ours["losses"][0] == pytest.approx(plain["losses"][0], rel=first)
    assert abs(ours["losses"][-1] / ours["losses"][0] - 1) > 1e-3, "it learns, so that this shows something"
