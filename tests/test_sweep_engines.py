"""The contract of engines: the same four tasks come to the same table wherever they run."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvlm.errors import UserError
from hvlm.sweep.engine import Ended, Engine, Handle, Needs, Task, stop
from hvlm.sweep.processes import Processes

ROOT = Path(__file__).parent.parent  # not from _tiny, which imports torch: nothing here needs it

ENGINES = ("process", "submitit", "ray")


def make(kind: str, folder: Path) -> Engine:
    if kind == "process":
        return Processes(threads=1)
    if kind == "submitit":
        pytest.importorskip("submitit", reason="submitit is not installed (pip install 'hvlm[submitit]')")
        from hvlm.sweep.on_slurm import Submitit

        return Submitit(folder, "local", 1, {"timeout_min": 60, "signal_delay_s": 30}, 3)
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'hvlm[ray]')")
    from hvlm.sweep.on_ray import Ray

    return Ray(None, 4, 1, None, {})


@pytest.fixture(params=ENGINES, scope="module")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))  # of the workers, who import hvlm
        found = make(request.param, folder)
        yield found
        found.close()


Make = Callable[..., Task]


@pytest.fixture
def task(tmp_path: Path) -> Make:
    def make_task(name: str, code: str, **settings: Any) -> Task:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Task(name, [sys.executable, "-S", "-c", code], folder, **settings)

    return make_task


def wait(handles: list[Handle], seconds: float = 240) -> list[Ended]:
    until = time.monotonic() + seconds
    while any(h.poll() is None for h in handles):
        assert time.monotonic() < until, [h.place for h in handles if h.poll() is None]
        time.sleep(0.05)
    return [h.poll() for h in handles]  # type: ignore[misc]


def test_four_tasks_come_to_the_same_end_everywhere(engine: Engine, task: Make, tmp_path: Path) -> None:
    """One well, one failing, one killed, and one that is asked to stop and saves."""
    saves = (
        "import signal, sys, time\n"
        f"def save(*_): open({str(tmp_path / 'saved')!r}, 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready', flush=True)\ntime.sleep(300)"
    )
    tasks = [
        task("well", "import os; print(os.environ['WORD'], os.getcwd(), os.getpid())", environment={"WORD": "given"}),
        task("fails", "print('before'); raise ValueError('its own mistake')"),
        task("killed", "import os; os.kill(os.getpid(), 9)"),
        task("stopped", saves),
    ]
    handles = list(engine.submit(tasks))
    assert all(h.place for h in handles) and len({h.place for h in handles}) == 4
    ended = wait(handles[:3])
    assert (
        [e.returncode for e in ended] == [0, 1, -9] and ended[2].signal == "SIGKILL" and not any(e.busy for e in ended)
    )
    word, where, process = (tmp_path / "well" / "log.txt").read_text().split()
    assert word == "given" and where == os.getcwd() and int(process) != os.getpid()
    assert "its own mistake" in (tmp_path / "fails" / "log.txt").read_text()
    until = time.monotonic() + 120
    while "ready" not in _text(tmp_path / "stopped" / "log.txt") and time.monotonic() < until:
        time.sleep(0.05)

    (again,) = engine.submit([tasks[3]])
    assert wait([again])[0].busy, "it runs already"
    stop([handles[3]])
    assert handles[3].poll() == Ended(143) and (tmp_path / "saved").exists()
    (once_more,) = engine.submit([task("stopped", "print('after')")])
    assert wait([once_more]) == [Ended(0)], "having been asked to stop is no matter of the next time"
    assert engine.adopt(tasks[0], handles[0].place) is None, "what has ended is not found running"


def test_what_does_not_listen_is_killed(engine: Engine, task: Make, tmp_path: Path) -> None:
    deaf = task(
        "deaf", "import signal, time; signal.signal(15, signal.SIG_IGN); print('x', flush=True); time.sleep(300)"
    )
    (handle,) = engine.submit([deaf])
    until = time.monotonic() + 120
    while not _text(tmp_path / "deaf" / "log.txt") and time.monotonic() < until:
        time.sleep(0.05)
    stop([handle], patience=3)
    ended = wait([handle])[0]
    assert ended.signal == "SIGKILL", ended


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# ------------------------------------------------------------------------------------------------------- submitit


def test_a_job_that_is_preempted_saves_and_is_queued_again(task: Make, tmp_path: Path) -> None:
    """The warning reaches submitit's process of the job: its command gets SIGTERM and saves, and then runs again."""
    code = f"""
import pathlib, signal, sys, time
count = pathlib.Path({str(tmp_path)!r}, "count")
done = int(count.read_text()) if count.exists() else 0
def save(*_):
    count.write_text(str(done + 1)); sys.exit(143)
assert signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
signal.signal(signal.SIGTERM, save)
print("continues from", done, flush=True)
if done == 0: time.sleep(300)
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        engine = make("submitit", tmp_path)
        (handle,) = engine.submit([task("job", code)])
    log = tmp_path / "job" / "log.txt"
    until = time.monotonic() + 240
    while "continues from 0" not in _text(log) and time.monotonic() < until:
        time.sleep(0.05)
    controller = int(handle.place.split()[-1])
    (worker,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(worker), signal.SIGUSR2)
    assert wait([handle]) == [Ended(0)]
    assert log.read_text() == "continues from 0\ncontinues from 1\n"


def slurm(folder: Path, patch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """The engine of SLURM, with commands of its name that write down what they were given."""
    pytest.importorskip("submitit", reason="submitit is not installed (pip install 'hvlm[submitit]')")
    from hvlm.sweep.clusters import SubmititLauncher

    commands = folder / "bin"
    commands.mkdir()
    for name, does in (
        ("srun", "exit 1"),
        ("sbatch", f'cat "$1" > {folder}/script.sh; echo "Submitted batch job 77"'),
        ("sacct", "echo 'JobID|State|NodeList'; echo '77_0|RUNNING|n1'; echo '77_1|FAILED|n1'; echo '77|PENDING|'"),
        ("scancel", f'echo "$@" >> {folder}/cancelled'),
    ):
        (commands / name).write_text(f"#!/bin/bash\n{does}\n")
        (commands / name).chmod(0o755)
    patch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    launcher = SubmititLauncher(**settings)
    launcher.folder = folder
    return launcher.make_engine()


@pytest.mark.parametrize("planted", ["writable by all", "a link", "a file"])
def test_pickled_results_are_read_from_a_folder_of_ones_own_alone(
    planted: str, task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = slurm(tmp_path, monkeypatch)
    engine.submit([task("a", "pass")])
    assert stat.S_IMODE(engine.folder.stat().st_mode) == 0o700
    shutil.rmtree(engine.folder)
    if planted == "a link":
        (tmp_path / "elsewhere").mkdir()
        engine.folder.symlink_to(tmp_path / "elsewhere")
    elif planted == "a file":
        engine.folder.touch()
    else:
        engine.folder.mkdir()
        engine.folder.chmod(0o777)
    for use in (lambda: engine.submit([task("b", "pass")]), lambda: engine.adopt(task("c", "pass"), "slurm job 77_0")):
        with pytest.raises(UserError, match="submitit: submitit reads pickled results there"):
            use()


def test_what_slurm_is_asked_for(task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = slurm(
        tmp_path, monkeypatch, jobs=5, threads=6, timeout_min=90, partition="gpus", warning_s=120,
        parameters={"slurm_account": "mine", "slurm_setup": ["module load cuda"]},
    )  # fmt: skip
    needs = Needs(nodes=2, devices=4, gpu=True)
    tasks = [task(name, "pass", needs=needs) for name in ("a", "b", "c")]
    handles = engine.submit(tasks)
    assert [h.place for h in handles] == ["slurm job 77_0", "slurm job 77_1", "slurm job 77_2"]
    script = (tmp_path / "script.sh").read_text().splitlines()
    for line in (
        "--array=0-2%3", "--partition=gpus", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=90",
        "--cpus-per-task=6", "--signal=USR2@120", "--account=mine", "--open-mode=append",
    ):  # fmt: skip
        assert f"#SBATCH {line}" in script, line
    assert "module load cuda" in script and any(line.startswith("srun ") and "submitit" in line for line in script)
    (alone,) = engine.submit([task("d", "pass")])
    script = (tmp_path / "script.sh").read_text()
    assert alone.place == "slurm job 77" and "--array" not in script and "gpus-per-node" not in script
    assert "#SBATCH --ntasks-per-node=1" in script and "#SBATCH --nodes=1" in script

    assert engine.adopt(tasks[0], "slurm job 77_0").place == "slurm job 77_0", "a later call finds what still runs"
    assert engine.adopt(tasks[1], "slurm job 77_1") is None and engine.adopt(tasks[0], "process 12") is None
    alone.ask_to_stop()
    assert (tmp_path / "cancelled").read_text() == "77\n", "what waits has nothing to save"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"parameters": {"slurm_nodes": 3}}, "hydra.launcher.parameters.nodes: follows from trainer.devices"),
        ({"parameters": {"slurm_acount": "x"}}, "hydra.launcher.parameters: "),
        ({"cluster": "sge"}, "hydra.launcher.cluster=sge: expected slurm, or local"),
        ({"timeout_min": 1, "warning_s": 90}, "hydra.launcher.warning_s=90: a job has 60 s"),
        ({"jobs": 0}, "hydra.launcher.jobs=0: expected 1 or more"),
    ],
)
def test_mistakes_of_the_launcher_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Make, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as said:
        slurm(tmp_path, monkeypatch, **settings).submit([task("a", "pass")])
    assert words in str(said.value)


def test_slurm_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed (pip install 'hvlm[submitit]')")
    from hvlm.sweep.on_slurm import Submitit

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no srun here"):
        Submitit(tmp_path, "slurm", 1, {}, 3)
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    with pytest.raises(UserError, match="SUBMITIT_PREEMPT_SIGNAL=USR1"):
        Submitit(tmp_path, "local", 1, {}, 3)


# ------------------------------------------------------------------------------------------------------ DDP

RANKS = """
import json, os, sys
import lightning.fabric as fabric
found = fabric.Fabric(accelerator="cpu", devices=2, strategy="ddp")
found.launch()
"""


@pytest.mark.slow
def test_every_rank_of_a_job_sees_the_same_overrides_and_folder(tmp_path: Path) -> None:
    """Two trials of a search with two ranks each: one study, and the ranks of a job have its very command."""
    pytest.importorskip("optuna", reason="optuna is not installed (pip install 'hvlm[optuna]')")
    (tmp_path / "job.py").write_text(
        RANKS + "import pathlib\nrun = next(a for a in sys.argv if a.startswith('run=')).split('=')[1].strip(\"'\")\n"
        "folder = pathlib.Path('runs', run)\n"
        "(folder / f'rank-{found.global_rank}.json').write_text(json.dumps(sys.argv[1:]))\n"
        '(folder / \'results.json\').write_text(\'[{"variant": "v", "metric": "accuracy_mean", "value": 0.5}]\')\n'
    )
    (tmp_path / "entry.py").write_text("from hvlm.cli import main\n@main\ndef entry(cfg, overrides): ...\nentry()\n")
    done = subprocess.run(
        [sys.executable, "entry.py", "-m", "hydra.launcher.script=job.py", "sweep=optuna", "run=mine", "trainer=ddp",
         "stage.batch_size=4", "stage.trainable.language=interval(1e-4,1e-2)", "hydra.sweeper.trials=2"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    commands = []
    for name in ("trial-0", "trial-1"):
        ranks = [(tmp_path / "runs" / "mine" / name / f"rank-{r}.json").read_text() for r in (0, 1)]
        assert ranks[0] == ranks[1] and f"run='mine/{name}'" in ranks[0]
        commands.append(ranks[0])
    assert commands[0] != commands[1]
