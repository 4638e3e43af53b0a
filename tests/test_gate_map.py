"""The picture of the gates: from a pattern, at the end of a stage, and in the report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hvlm.evaluation.report import write_report
from hvlm.io.head_patterns import write_pattern
from hvlm.training.gate_picture import GatePicture
from hvlm.viz import gate_map
from hvlm.viz.heat_map import HIGH, LOW

GATES = torch.tensor([[1.0, 0.0, 0.25], [0.0, 0.75, 0.5]])


def test_a_pattern_is_drawn_layers_by_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pattern(tmp_path / "p", GATES, 2, 4)
    assert gate_map.main([str(tmp_path / "p")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "p" / "gates.png")
    with Image.open(tmp_path / "p" / "gates.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    dark, light = ((pixels == colour).all(1).sum() for colour in (HIGH, LOW))
    assert 0 < dark < light, "one gate of 1, two of 0"
    wide = gate_map.gate_map(torch.rand(30, 40), tmp_path / "wide.png")
    assert wide.exists()
    assert gate_map.main([]) == 2
    with pytest.raises(SystemExit, match="1"):
        gate_map.main([str(tmp_path / "nothing")])
    (tmp_path / "p" / "full_attention_heads.tsv").write_text("1.0\tx\n")
    with pytest.raises(SystemExit, match="1"):
        gate_map.main([str(tmp_path / "p"), str(tmp_path / "q.png")])
    assert not (tmp_path / "q.png").exists()
    said = capsys.readouterr().err
    assert "nothing: no pattern that can be read" in said and "line 1" in said and "Traceback" not in said


def test_a_stage_that_learnt_gates_leaves_their_picture_and_the_report_shows_it(tmp_path: Path) -> None:
    stage = tmp_path / "run" / "duo"
    stage.mkdir(parents=True)
    (stage / "config.yaml").write_text("seed: 1\norder: video_first\n")
    trainer = SimpleNamespace(global_step=3, max_steps=4, is_global_zero=True, loggers=[])
    learns = SimpleNamespace(gates=lambda: GATES)
    GatePicture(stage).on_train_end(trainer, learns)
    assert not (stage / "gates.png").exists(), "it was stopped on the way"
    trainer.global_step = 4
    GatePicture(stage).on_train_end(trainer, SimpleNamespace())
    assert not (stage / "gates.png").exists()
    report = write_report(stage.parent)
    assert "gates.png" not in report.read_text() + report.with_suffix(".html").read_text()
    GatePicture(stage).on_train_end(trainer, learns)
    report = write_report(stage.parent)
    assert "](duo/gates.png)" in report.read_text()
    assert 'alt="gates.png" src="data:image/png;base64,' in report.with_suffix(".html").read_text()
