"""eval.py: the checkpoint's configuration with the command line over it; what does not fit is said before work."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from _tiny import ROOT

import eval as evaluation
from hvlm.config.compose import compose
from hvlm.config.overlay import overlay
from hvlm.errors import UserError
from hvlm.rebuild import rebuild, stored_config
from hvlm.training.chain import run

STORED = compose(["merger=tome", "merger.keep=0.5", "dataset=shards", "dataset.path=somewhere", "trainer.threads=1"])


def refused(*overrides: str, stored: dict[str, Any] = STORED) -> str:
    with pytest.raises(UserError) as e:
        overlay(stored, overrides, "runs/x")
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.fault(85)
def test_a_setting_of_a_stored_room_is_overridden() -> None:
    """The command line alone would choose merger=none, which has no settings, and dataset=needles."""
    got = overlay(STORED, ["merger.keep=0.25", "dataset.num_frames=4", "++connector.mode=coarse"])
    assert got["merger"] == STORED["merger"] | {"keep": 0.25}
    assert got["dataset"] == STORED["dataset"] | {"num_frames": 4}
    assert got["connector"] == STORED["connector"] | {"mode": "coarse"}
    assert got["vision"] == STORED["vision"] and got["trainer"]["threads"] == 1


def test_a_room_named_on_the_command_line_is_todays_with_its_settings() -> None:
    got = overlay(STORED, ["merger=stride", "merger.keep=0.125", "trainer.precision=32-true", "seed=7"])
    assert got["merger"] == compose(["merger=stride", "merger.keep=0.125"])["merger"]
    assert got["seed"] == 7 and got["trainer"] == STORED["trainer"] | {"precision": "32-true"}


def test_a_map_is_laid_over_the_stored_one() -> None:
    before = STORED["stage"]["trainable"]
    assert overlay(STORED, ["stage.trainable={vision:0}"])["stage"]["trainable"] == before | {"vision": 0.0}


def test_what_belongs_to_the_command_is_not_taken_from_the_checkpoint() -> None:
    stored = copy.deepcopy(STORED) | {"task": "cost", "out": "elsewhere", "predictions": "p", "run": "r"}
    got = overlay(stored, ["checkpoint=runs/x"])
    assert (got["task"], got["out"], got["predictions"], got["run"]) == ("benchmark", None, None, None)
    assert got["checkpoint"] == "runs/x"


def test_no_folder_is_made_because_a_checkpoint_names_it(tmp_path: Path) -> None:
    """Where sets lie already, that is where they are read."""
    stored = compose(["dataset=needles", f"dataset.root={tmp_path}"])
    assert overlay(stored, [])["dataset"]["root"] is None
    for no_folder in ("a\0b", "a" * 5000):
        stored["dataset"]["root"] = no_folder
        assert overlay(stored, [])["dataset"]["root"] is None
    stored["dataset"]["root"] = str(tmp_path)
    assert overlay(stored, ["dataset.root=mine"])["dataset"]["root"] == "mine"
    (tmp_path / "needles-easy-1").mkdir()
    (tmp_path / "needles-easy-1" / "manifest.json").touch()
    assert overlay(stored, [])["dataset"]["root"] == str(tmp_path)


def test_no_memory_is_taken_for_more_than_the_weights_fill(trained: tuple[Path, list[str]]) -> None:
    run = trained[0] / "runs" / "tiny"
    cfg = overlay(stored_config(run), [])
    cfg["language"] |= {"hidden_size": 6_400_000, "intermediate_size": 1_000_000}
    with pytest.raises(UserError, match=r"describes a model of [\d,]{15,} numbers, and its weights are"):
        rebuild(run, cfg)


def test_a_checkpoint_of_another_day() -> None:
    """A key that is newer has today's value; one that is gone is left out; a room of another version is refused."""
    stored = copy.deepcopy(STORED)
    del stored["trainer"]["cache_mb"], stored["ask"]
    stored["trainer"]["gone"], stored["gone"] = 1, 2
    got = overlay(stored, [])
    assert got["trainer"] == STORED["trainer"] and got["ask"] == STORED["ask"] and "gone" not in got
    stored["merger"]["gone"] = 1
    assert "runs/x: its configuration is damaged or of another version" in refused(stored=stored)
    assert overlay(stored, ["merger=none"])["merger"] == compose([])["merger"]


@pytest.mark.fault(64)
def test_a_checkpoint_names_no_command(tmp_path: Path) -> None:
    stored = copy.deepcopy(STORED)
    stored["vision"] = {"_target_": "subprocess.Popen", "args": f"touch {tmp_path / 'canary'}", "shell": True}
    assert "expected a class in hvlm.vision" in refused(stored=stored)
    assert not (tmp_path / "canary").exists()


@pytest.mark.fault(85)
@pytest.mark.parametrize(
    "override, words",
    [
        ("experiment=demo", "experiment=demo: the settings are runs/x's; name what should differ"),
        ("debug=fast_dev_run", "the settings are runs/x's"),
        ("merger.kep=0.5", "unknown key 'merger.kep'; did you mean 'merger.keep'?"),
        ("merger.keep=abc", "merger.keep=abc: expected float"),
        ("merger.keep=0", "merger.keep=0: expected float above 0 and at most 1"),
        ("merger.keep=${oc.env:HVLM_NOT_SET}", "merger.keep: "),
        ("merger.keep=${seed", "merger.keep"),
        ("merger.keep=0.1,0.2", "several values"),
        ("merger.keep.x=1", "unknown key 'merger.keep.x'"),
        ("benchmrk.limit=1", "did you mean 'benchmark'?"),
        ("~merger.keep", "nothing can be taken out"),
        ("seed=${oc.env:HVLM_NOT_SET}", "seed: "),
    ],
)
def test_mistakes_over_a_checkpoint_are_one_line(override: str, words: str) -> None:
    assert words in refused(override)


# ---------------------------------------------------------------------------------------------------- the whole command


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "eval.py"), *arguments]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.fault(85)
def test_eval_says_it_in_one_line_before_work(trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(trained[0])
    (tmp_path / "file").touch()
    for overrides, words in {
        ("checkpoint=runs/tiny", "experiment=demo"): "experiment=demo",
        ("checkpoint=runs/gone",): "checkpoint=runs/gone: no such file or folder",
        (): "checkpoint= is missing",
        ("checkpoint=runs/tiny", f"out={tmp_path / 'file' / 'below'}"): "cannot be written",
        ("checkpoint=runs/tiny", "vision.num_layers=0"): "expected int of 1 or more",
        ("task=score", "predictions=gone.jsonl"): "",
    }.items():
        with pytest.raises((UserError, OSError)) as e:
            evaluation.evaluate(list(overrides))
        assert words in str(e.value)


@pytest.mark.fault(101)
def test_a_rank_left_in_the_environment_is_refused(trained: tuple[Path, list[str]], monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="RANK=1"):
        evaluation.evaluate([f"checkpoint={trained[0] / 'runs/tiny'}", "benchmark.limit=1"])


@pytest.mark.fault(85, 114)
def test_the_entry_script_names_a_missing_file_without_torch(tmp_path: Path) -> None:
    for arguments in (["checkpoint=gone"], ["task=ask", "checkpoint=.", "ask.video=gone.mp4"], ["seed=-1"]):
        code = (
            "import sys, runpy\nsys.argv = ['eval.py', *sys.argv[1:]]\n"
            f"try: runpy.run_path({str(ROOT / 'eval.py')!r}, run_name='__main__')\n"
            "finally: print(sorted({'torch', 'lightning'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True,
                              env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})  # fmt: skip
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert done.stdout.endswith("[]\n")


@pytest.mark.fault(85)
@pytest.mark.slow
def test_cfg_job_shows_what_eval_would_use(trained: tuple[Path, list[str]]) -> None:
    done = command(trained[0], "--cfg", "job", "checkpoint=runs/tiny", "vision.frames_at_once=7")
    shown = yaml.safe_load(done.stdout)
    assert shown["vision"] == stored_config(trained[0] / "runs/tiny")["vision"] | {"frames_at_once": 7}, done.stderr


@pytest.mark.fault(57, 60, 64)
def test_no_file_runs_a_command(trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch) -> None:
    """A checkpoint of plain values whose rooms are a subprocess: eval.py checkpoint=, init_from= and the export."""
    monkeypatch.chdir(tmp_path)
    (last,) = sorted((trained[0] / "runs/tiny/sft/checkpoints").glob("last.ckpt"))
    content = torch.load(last, weights_only=True)
    canary = {"_target_": "subprocess.Popen", "args": ["touch", str(tmp_path / "canary")]}
    for group in ("vision", "language", "connector", "stage", "dataset"):
        poisoned = copy.deepcopy(content)
        poisoned["hvlm"]["config"][group] = canary
        torch.save(poisoned, "bad.ckpt")
        with pytest.raises(UserError, match=f"expected a class in hvlm.{group}"):
            evaluation.evaluate(["checkpoint=bad.ckpt", "benchmark.limit=1"])
    with pytest.raises(UserError):  # what a stage starts from gives weights and a tokenizer, and is asked no more
        run(["stage=sft", "init_from=bad.ckpt", "run=x", *[o for o in trained[1][4:] if "vision.dim" not in o]])
    assert not (tmp_path / "canary").exists()
