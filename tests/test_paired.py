"""How far one variant is ahead of another: question by question."""

from pathlib import Path

import pytest

from experiments.merging._paired import ahead
from hvlm.evaluation.predictions import write_predictions
from hvlm.evaluation.scores import Prediction


def written(folder: Path, right: list[bool]) -> Path:
    """Four videos with two questions each, one try."""
    lines = [
        Prediction(
            f"q{i}", f"clip{i // 2}", "direction" if i == 7 else "shape", 0, ("a", "b"), 0, int(not r), None, "x"
        )
        for i, r in enumerate(right)
    ]
    folder.mkdir()
    write_predictions(folder / "predictions.jsonl", lines)
    return folder


def test_a_difference_has_the_error_of_a_difference(tmp_path: Path) -> None:
    hard = [True, False, True, False, True, False, True, True]
    one, same = written(tmp_path / "one", hard), written(tmp_path / "same", hard)
    better = written(tmp_path / "better", [True] * 7 + [False])
    record = {"question": "q", "variant": "v", "metric": "m", "command": "c"}
    (equal,) = ahead([one], [same], [1], **record)
    assert (equal["value"], equal["stderr"]) == (0, 0), "alike in every question, however hard they are"
    (found,) = ahead([better], [one], [1], **record)
    assert found["value"] == pytest.approx(3 / 7) and found["n"] == 7, "direction stands beside the mean"
    assert 0 < found["stderr"] < 0.2
    assert list(ahead([one], [tmp_path / "absent"], [1], **record)) == []
