"""The command ``hvlm``: a file for each command, help and completion without torch, the same work as the scripts."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from _tiny import CONF, ROOT

from hvlm import commands, console
from hvlm.commands import completion
from hvlm.config.catalog import page, words
from hvlm.config.settings import RootConfig
from hvlm.errors import UserError


def test_every_file_is_a_command_and_says_what_it_does(capsys: pytest.CaptureFixture) -> None:
    files = {path.stem for path in (ROOT / "hvlm" / "commands").glob("[!_]*.py")}
    assert set(commands.names()) == files >= {"train", "eval", "completion"}
    assert all(commands.names().values())
    for name in files:
        assert callable(importlib.import_module(f"hvlm.commands.{name}").main)
    commands.run([])
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in files)


def test_a_misspelt_command_is_one_line(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        commands.run(["trian"])
    assert capsys.readouterr().err == "error: hvlm trian: no such command; did you mean 'train'?\n"


def test_help_of_a_command_may_be_asked_for_in_either_order(capsys: pytest.CaptureFixture) -> None:
    commands.run(["help", "dashboard"])
    first = capsys.readouterr().out
    commands.run(["dashboard", "--help"])
    assert first == capsys.readouterr().out and first.startswith("usage: hvlm dashboard")


@pytest.mark.fault(116)
def test_help_lists_every_word_and_what_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/hvlm", "eval", "--help"])
    listed, shown = words([CONF]), page(True, [CONF])
    for path in CONF.glob("*/*.yaml"):
        assert f"\n  {path.stem}" in shown
        assert listed[path.parent.name][path.stem] or path.stem == "none", f"{path}: says nothing of itself"
    for task in RootConfig.__annotations__["task"].removeprefix("Literal[").removesuffix("]").split(", "):
        assert f"\n  {task[1:-1]:9}  " in shown.split("vision=")[0]
    assert shown.startswith("usage: hvlm eval checkpoint=RUN")
    assert listed["connector"]["mean"] == "Mean pooling: one visual token per frame, the average of its patches"
    assert "(Vaswani et al. 2017)" in listed["attention"]["full"], "a name's full stop ends no sentence"


@pytest.mark.fault(114)
def test_what_needs_no_torch_does_not_wait_for_it(tmp_path: Path) -> None:
    """In one process, one after the other: commands that stop at once."""
    code = """
import sys
from hvlm import commands
for words in (["--help"], ["train", "--help"], ["trian"], ["train", "conector=mean"], ["train", "init_from=nowhere"],
              ["eval", "checkpoint=nowhere"], ["eval", "--help"], ["completion", "bash"],
              ["compare", "--help"], ["compare"]):
    sys.argv = ["hvlm", *words]
    try: commands.run()
    except SystemExit as e: assert e.code == 1, e.code
print(sorted({"torch", "lightning", "transformers", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("[]\n"), done.stdout[-200:] + done.stderr[-500:]
    assert done.stderr.splitlines() == [
        "error: hvlm trian: no such command; did you mean 'train'?",
        "error: unknown key 'conector'; did you mean 'connector'?",
        "error: init_from=nowhere: no such file or folder",
        "error: checkpoint=nowhere: no such file or folder",
        "error: runs= is missing: hvlm compare runs=runs/a,runs/b names runs, a sweep, or a folder of runs",
    ]


def test_who_stops_reading_the_help_sees_no_traceback(tmp_path: Path) -> None:
    code = "from hvlm import commands; commands.run(['train', '--help'])"
    shell = f'{sys.executable} -c "{code}" | head -1; exit ${{PIPESTATUS[0]}}'
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.startswith("usage:") and done.stderr == "" and done.returncode in (0, 141)


def test_completion_knows_commands_groups_words_and_settings() -> None:
    for line, expected in {
        "hvlm ev": ["eval"],
        "hvlm train connector=fov": ["connector=foveated"],
        "hvlm train seed=3 conn": ["connector.", "connector="],
        "hvlm eval connector=foveated connector.mo": ["connector.mode="],
        "hvlm completion z": ["zsh"],
        "hvlm eval task=ge": ["task=generate"],
        "hvlm train evaluate=": ["evaluate=true", "evaluate=false"],
        "hvlm train trainer.precision=": [
            f"trainer.precision={p}" for p in ("auto", "32-true", "bf16-mixed", "16-mixed")
        ],
        "hvlm prepare clips lett": ["lettered="],
        "hvlm prepare clips answers=ind": ["answers=index0", "answers=index1"],
        "hvlm prepare clips/": [],
        "hvlm compare runs=a bas": ["baseline="],
        "hvlm compare runs=a measure=t": ["measure=true"],
    }.items():
        assert completion.candidates(line) == expected, line
    with pytest.raises(UserError, match="expected one of bash, zsh, fish"):
        completion.main(["tcsh"])


@pytest.mark.parametrize("argv, typed, again", [
    (["/venv/bin/hvlm", "train", "a=1"], ["hvlm", "train", "a=1"], ["-P", "-m", "hvlm", "train"]),
    (["/x/hvlm/__main__.py", "eval", "a=1"], ["hvlm", "eval", "a=1"], ["-m", "hvlm", "eval"]),
    (["train.py", "a=1"], ["python", "train.py", "a=1"], [str(Path("train.py").resolve())]),
])  # fmt: skip
def test_a_job_is_started_as_its_sweep_was(monkeypatch, argv: list[str], typed: list[str], again: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert console.typed() == typed and console.program() == [sys.executable, *again]
    assert console.program("job.py") == [sys.executable, str(Path("job.py").resolve())]


def test_commands_and_scripts_are_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """``hvlm train`` reads its arguments from where it was called and leaves the process's own as they are."""
    shown = []
    for argv in (["hvlm", "train", "seed=5", "--cfg", "job"], ["train.py", "seed=5", "--cfg", "job"]):
        monkeypatch.setattr(sys, "argv", argv)
        commands.run() if argv[0] == "hvlm" else importlib.import_module("hvlm.commands.train").train()
        shown.append(capsys.readouterr().out)
        assert sys.argv is argv
    assert shown[0] == shown[1] and "seed: 5" in shown[0]
