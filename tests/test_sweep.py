"""A sweep of real training runs, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from _tiny import ROOT

import hvlm.sweep.processes
import train


@pytest.mark.slow
def test_a_killed_job_does_not_take_the_others_with_it(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """python train.py -m seed=1,2: the second job is killed while it trains; called again, it alone goes on."""
    monkeypatch.chdir(tmp_path)
    started: dict[str, subprocess.Popen] = {}
    real = subprocess.Popen

    def popen(command: list[str], **how: Any) -> subprocess.Popen:
        process = real(command, **how)
        started[next(word for word in command if word.startswith("seed="))] = process
        return process

    def kill() -> None:
        """SIGKILL to the job of seed 2 as soon as it has saved something."""
        folder = tmp_path / "runs" / "mine" / "seed-2" / "sft" / "checkpoints"
        while code is None and not list(folder.glob("*.ckpt")):
            time.sleep(0.005)
        if code is None:
            os.kill(started["seed=2"].pid, signal.SIGKILL)

    monkeypatch.setattr(hvlm.sweep.processes.subprocess, "Popen", popen)
    arguments = [
        "-m", "seed=1,2", "run=mine", "stage=sft", "stage.steps=40", "stage.batch_size=4", "trainer.checkpoint_every=5",
        "benchmark.limit=4", "benchmark.blind=false", "benchmark.tries=1",
        "hydra.launcher.jobs=2", "hydra.launcher.threads=1", *needles,
    ]  # fmt: skip

    def sweep() -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
        started.clear()
        try:
            train.train()
            return 0, *capsys.readouterr()
        except SystemExit as stopped:
            return stopped.code, *capsys.readouterr()

    code: int | None = None  # of the sweep, once it has ended
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    code, out, err = sweep()
    killer.join()
    folder = tmp_path / "runs" / "mine"
    records = {r["name"]: r for r in json.loads((folder / "sweep.json").read_text())}
    assert code == 1 and "1 of 2 jobs did not finish" in err, out + err
    assert records["seed-1"]["status"] == "done", (folder / "seed-1" / "log.txt").read_text()[-2000:]
    assert records["seed-2"]["status"] == "killed" and records["seed-2"]["signal"] == "SIGKILL"
    assert 0 <= records["seed-1"]["accuracy"] <= 1 and records["seed-2"]["accuracy"] is None
    assert "| killed |" in (folder / "sweep.md").read_text() and "killed" in out

    saved = (folder / "seed-1" / "sft" / "finished.json").read_text()
    code, out, err = sweep()
    assert code == 0, out + err
    assert list(started) == ["seed=2"] and "1 of 2 jobs are already done" in out
    records = {r["name"]: r for r in json.loads((folder / "sweep.json").read_text())}
    assert [r["status"] for r in records.values()] == ["done", "done"]
    assert all(0 <= r["accuracy"] <= 1 for r in records.values())
    assert (folder / "seed-1" / "sft" / "finished.json").read_text() == saved
    assert "continues from step-" in (folder / "seed-2" / "log.txt").read_text(), "not from the beginning"
    one, two = (json.loads((folder / f"seed-{s}" / "sft" / "finished.json").read_text()) for s in (1, 2))
    assert one["weights_sha256"] != two["weights_sha256"]


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_and_comes_to_the_same_weights(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """python train.py -m launcher=submitit, of whose two equal jobs one is warned by the cluster while it trains."""
    pytest.importorskip("submitit", reason="submitit is not installed (pip install 'hvlm[submitit]')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # logger.tags cannot change a result: two jobs that must come to the same weights.
    arguments = [
        "-m", "logger.tags=[alone],[warned]", "run=mine", "stage=sft", "stage.steps=40", "stage.batch_size=4",
        "trainer.checkpoint_every=100", "trainer.log_every=1", "evaluate=false", "launcher=submitit",
        "hydra.launcher.cluster=local", "hydra.launcher.jobs=1", "hydra.launcher.threads=1", *needles,
    ]  # fmt: skip

    def warn() -> None:
        """SIGUSR2 to submitit's process of the second job, once it has made some steps."""
        metrics = "sft/metrics.jsonl"
        while code is None:
            time.sleep(0.01)
            found = [p for p in (tmp_path / "runs" / "mine").glob("*warned*/" + metrics) if len(_lines(p)) >= 5]
            if found:
                status = json.loads((found[0].parent.parent / "status.json").read_text())
                controller = int(status["place"].split()[-1])
                (worker,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
                os.kill(int(worker), signal.SIGUSR2)
                return

    code: int | None = None
    killer = threading.Thread(target=warn, daemon=True)
    killer.start()
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
    try:
        train.train()
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    killer.join()
    (alone,), (warned,) = (list((tmp_path / "runs" / "mine").glob(f"*{name}*")) for name in ("alone", "warned"))
    said = (warned / "log.txt").read_text()
    assert code == 0, said
    assert "SIGTERM: step" in said and "continues from stopped" in said, said
    one, two = (json.loads((job / "sft" / "finished.json").read_text()) for job in (alone, warned))
    assert two["steps_here"] < 40 and one["weights_sha256"] == two["weights_sha256"]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
