"""What somebody meets on the first day: what will run, where data go, what Ctrl-C does, what an export says."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

import train
from hvlm.config.compose import compose
from hvlm.dataset.needles import Needles
from hvlm.interop.hf_card import figures_of
from hvlm.stage.sft import SFT
from hvlm.training.chain import run
from hvlm.training.identity import config_id
from hvlm.training.trainer import make_trainer_kwargs


@pytest.mark.fault(116)
def test_cfg_job_shows_the_stages_that_run(capsys: pytest.CaptureFixture) -> None:
    train.train.main(["experiment=demo", "--cfg", "job", "seed=7"])
    shown = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [cfg["stage"]["steps"] for cfg in shown] == [1150, 200, 450, 80] and {cfg["seed"] for cfg in shown} == {7}
    train.train.main(["experiment=demo", "stage=sft", "--cfg", "job"])
    (alone,) = yaml.safe_load_all(capsys.readouterr().out)
    assert alone["stage"]["_target_"].endswith("SFT") and alone["stage"]["steps"] == 450, "the chain's, not the file's"


@pytest.mark.fault(116)
def test_ddp_is_the_one_that_bears_frozen_parts() -> None:
    for word in ("ddp", "ddp_find_unused_parameters_true"):
        cfg = compose([f"trainer.strategy={word}"])
        assert make_trainer_kwargs(cfg["trainer"], 1)["strategy"] == "ddp_find_unused_parameters_true"


@pytest.mark.fault(116)
def test_ctrl_c_in_the_last_validation_loses_nothing(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["stage=sft", "stage.steps=2", "stage.batch_size=2", "stage.interleave=0", "evaluate=false", "run=a"]
    command += ["callback.media=0", *needles]

    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(SFT, "validation_step", pressed)
        with pytest.raises(KeyboardInterrupt):
            run(command)
    signal.signal(signal.SIGINT, handler)
    outcome = run(command)
    assert outcome.stages["sft"]["steps"] == 2 and outcome.stages["sft"]["steps_here"] == 0
    assert outcome.stages["sft"]["metrics"]["val/loss"] > 0


@pytest.mark.fault(116)
def test_a_new_folder_of_data_is_said_and_the_environment_may_name_one(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("HVLM_DATA", raising=False)
    assert Needles().root == Path("data")
    name = config_id(compose([]))
    assert name == config_id(compose(["dataset.root=data"]))
    monkeypatch.setenv("HVLM_DATA", str(tmp_path / "mine"))
    assert Needles().root == tmp_path / "mine" and Needles(root="here").root == Path("here")
    assert name == config_id(compose([]))
    haystack = next(o.split("=", 1)[1] for o in needles if o.startswith("dataset.haystack="))
    none: dict[str, Any] = {
        "haystack": haystack,
        "train_clips": 0,
        "val_clips": 0,
        "test_clips": 0,
        "text_chats": 1,
        "generate_workers": 1,
    }
    with caplog.at_level("INFO"):
        Needles(**none).prepare()
        Needles(**none, seed=1).prepare()
    assert caplog.text.count(f"a new folder, {tmp_path / 'mine'}; sets that were made elsewhere") == 1


@pytest.mark.fault(116)
def test_the_figures_of_a_run_are_found_wherever_they_were_written(tmp_path: Path) -> None:
    run_folder, checkpoint = tmp_path / "a", tmp_path / "a" / "sft" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    assert figures_of(checkpoint) is None and figures_of(run_folder) is None
    for folder in (run_folder / "eval", run_folder, run_folder / "sft" / "eval", checkpoint.parent / "eval"):
        folder.mkdir(exist_ok=True)
        (folder / "results.json").write_text(json.dumps([]))
        assert figures_of(checkpoint) == folder / "results.json", "the nearest to the checkpoint"
    assert figures_of(run_folder) == run_folder / "results.json"
