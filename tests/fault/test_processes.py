"""A run of several processes of which one is killed ends at once, says so, and goes on with those that are left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _tiny import ROOT

from hvlm.errors import UserError
from hvlm.training.chain import run
from hvlm.training.ranks import a_lost_process_is_one_line


def children(pid: int) -> list[int]:
    """Those that are the second process of the run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"LOCAL_RANK=1" in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except (OSError, ValueError):  # it has just ended
            continue
    return found


@pytest.mark.fault(19)
@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_one_goes_on_alone(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        "stage=sft", "connector=mean", "stage.batch_size=4", "stage.interleave=0", "evaluate=false", "callback.media=0",
        "run=a", "trainer.checkpoint_every=2", *needles,
    ]  # fmt: skip
    two = ["trainer=ddp", "trainer.accelerator=cpu", "stage.steps=4000", "trainer.precision=32-true"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    with open("log", "w") as log:
        first = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *command, *two], stdout=log, stderr=log, env=environment
        )
    try:
        steps, waited = Path("runs/a/sft/checkpoints"), time.monotonic()
        while not list(steps.glob("step-*.ckpt")):
            assert first.poll() is None and time.monotonic() - waited < 300, Path("log").read_text()[-3000:]
            time.sleep(0.1)
        (second,) = children(first.pid)
        os.kill(second, signal.SIGKILL)
        killed = time.monotonic()
        code = first.wait(60)
        assert time.monotonic() - killed < 60 and code != 0
    finally:
        first.kill()
    said = Path("log").read_text()
    assert "another process of this run has ended" in said or "Child process with PID" in said, said[-3000:]
    begun = max(int(path.stem.split("-")[1]) for path in steps.glob("step-*.ckpt"))
    rest = run([*command, "stage.steps=4000", "trainer.precision=32-true", f"trainer.max_steps={begun + 2}"])
    done = json.loads((rest.run / "sft" / "finished.json").read_text())
    assert done["steps"] == begun + 2 and done["steps_here"] <= 4


FIRST = """
import os, subprocess, sys
with starts_others():
    second = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env={**os.environ, "LOCAL_RANK": "1"})
second.wait()
"""
SECOND = """
import time
end_with_the_first_process()
print("runs", flush=True)
time.sleep(60)
"""
OURS = "from hvlm.training.ranks import end_with_the_first_process, starts_others\n"


@pytest.mark.fault(19)
def test_before_there_is_a_group_the_second_ends_with_the_first(tmp_path: Path) -> None:
    """It would wait for half an hour, and be taken for a part of whatever begins at the same address next."""
    environment = {k: v for k, v in os.environ.items() if k != "LOCAL_RANK"} | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(
        [sys.executable, "-c", OURS + FIRST, OURS + SECOND], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None and first.stderr is not None
    assert first.stdout.readline(), "the second runs"
    first.kill()
    killed = time.monotonic()
    said = first.stderr.read()  # to its end: until the second has ended, too
    assert time.monotonic() - killed < 20
    assert said.startswith("error: the first process of this run has ended, and so does this one; the same command")


@pytest.mark.fault(19)
def test_what_another_process_left_undone_is_one_line_and_other_errors_stay_what_they_are() -> None:
    with pytest.raises(UserError, match="another process of this run has ended .*same command continues"):
        with a_lost_process_is_one_line():
            raise RuntimeError("[pair.cc:534] Connection closed by peer\n [127.0.0.1]:1234")
    with pytest.raises(
        UserError, match=r"^a process that reads has ended .*trainer.num_workers.*same command continues"
    ):
        with a_lost_process_is_one_line():  # raised by a signal's handler, in whatever is going on
            raise RuntimeError("DataLoader worker (pid 123) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="shapes"), a_lost_process_is_one_line():
        raise RuntimeError("shapes differ")
