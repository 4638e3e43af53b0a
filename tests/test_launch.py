"""A sweep goes on when a job fails or is killed, and runs what is missing when it is called again."""

from __future__ import annotations

import csv
import fcntl
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from _runs import write_run
from _tiny import ROOT

from hvlm.cli import main
from hvlm.config.compose import compose
from hvlm.io.lock import locked
from hvlm.io.processors import usable_processors
from hvlm.sweep.engine import Task, stop
from hvlm.sweep.job import job_name, last_line
from hvlm.sweep.launcher import ProcessLauncher
from hvlm.sweep.processes import Child
from hvlm.sweep.table import read_numbers
from hvlm.training.identity import config_id


@main
def entry(cfg: dict, overrides: list[str]) -> None:
    raise AssertionError("the sweeping process itself must not run a job")


# What each job runs instead of train.py: seed 1 is well, 2 raises and 3 is killed while the file `broken` exists.
JOB = """
import json, os, pathlib, shutil, signal, sys
given = dict(a.split("=", 1) for a in sys.argv[1:])
seed, run = given["seed"], given["run"].strip("'")
with open("ran.txt", "a") as f:
    tracebacks = os.environ.get("HYDRA_FULL_ERROR")
    f.write(json.dumps({**given, "run": run, "threads": os.environ["OMP_NUM_THREADS"], "full": tracebacks}) + "\\n")
if pathlib.Path("broken").exists():
    if seed == "2":
        raise ValueError("the job's own mistake")
    if seed == "3":
        os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path("runs", run, "results.json").write_text(json.dumps([
    {"variant": "blind", "metric": "accuracy_mean", "value": 0.25},
    {"variant": "coarse_fine", "metric": "accuracy_mean", "value": 0.5 + int(seed) / 10, "stderr": 0.05},
]))
for stage, loss in (("sft", float(seed)), ("align", 9.0)):
    folder = pathlib.Path("runs", run, stage)
    folder.mkdir(exist_ok=True)
    done = {"metrics": {"val/loss": loss}, "finished_at": {"align": 1, "sft": 2}[stage]}
    (folder / "finished.json").write_text(json.dumps(done))
made = pathlib.Path("made", seed)  # a whole run of this seed, for those who want a report of it
if made.exists():
    shutil.copytree(made, pathlib.Path("runs", run), dirs_exist_ok=True)
"""


class Sweep(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., Sweep]:
    """``python entry.py -m ...`` in ``tmp_path``, with job.py in the place of the script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    (tmp_path / "job.py").write_text(JOB)

    def call(*arguments: str) -> Sweep:
        monkeypatch.setattr(sys, "argv", ["entry.py", "-m", "hydra.launcher.script=job.py", *arguments])
        code = 0
        try:
            entry()
        except SystemExit as e:
            code = e.code
        return Sweep(code, *capsys.readouterr())

    return call


def ran(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "ran.txt").read_text().splitlines() if (folder / "ran.txt").exists() else []
    (folder / "ran.txt").unlink(missing_ok=True)
    return [json.loads(line) for line in lines]


@pytest.mark.fault(51, 52)
def test_sweep_survives_its_jobs_and_runs_what_is_missing(tmp_path: Path, sweep: Callable[..., Sweep]) -> None:
    (tmp_path / "broken").touch()
    arguments = ("stage.steps=3", "seed=1,2,3", "hydra.launcher.jobs=2", "hydra.launcher.threads=1")
    first = sweep(*arguments)
    assert first.code == 1, first.err
    assert first.err.startswith("error: 2 of 3 jobs did not finish") and first.err.count("\n") == 1, first.err
    jobs = ran(tmp_path)
    assert sorted(j["seed"] for j in jobs) == ["1", "2", "3"]
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("sweep-")
    assert {j["run"] for j in jobs} == {f"{folder.name}/seed-{s}" for s in "123"}
    assert {j["logger.group"].strip("'") for j in jobs} == {folder.name} and {j["threads"] for j in jobs} == {"1"}
    assert {j["full"] for j in jobs} == {"0"}, "a job's own mistakes are told in a line, not by a traceback"

    records = {r["overrides"][-1]: r for r in json.loads((folder / "sweep.json").read_text())}
    assert [records[f"seed={s}"]["status"] for s in "123"] == ["done", "failed", "killed"]
    assert records["seed=1"]["accuracy"] == pytest.approx(0.6)
    assert "the job's own mistake" in records["seed=2"]["error"]
    assert "Traceback" in (folder / "seed-2" / "log.txt").read_text()
    assert records["seed=3"]["signal"] == "SIGKILL"
    assert json.loads((folder / "seed-3" / "status.json").read_text())["status"] == "killed"
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [r["status"] for r in rows] == ["done", "failed", "killed"] and rows[0]["accuracy"] == "0.600"
    assert "| stage.steps=3 seed=1 | done | 0.600 |" in (folder / "sweep.md").read_text()

    (tmp_path / "broken").unlink()
    second = sweep(*arguments)
    assert second.code == 0, second.err
    assert sorted(j["seed"] for j in ran(tmp_path)) == ["2", "3"]
    assert "1 of 3 jobs are already done" in second.out
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [(r["status"], r["accuracy"]) for r in rows] == [("done", "0.600"), ("done", "0.700"), ("done", "0.800")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job.py", "runs"]


def test_every_launcher_ends_with_the_same_table_and_report(
    tmp_path: Path, sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four jobs, one failing and one killed, by each launcher; and what one began, another finishes."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for seed in range(1, 5):
        write_run(tmp_path / "made" / str(seed), [True, seed > 2, True, True, False, True], seed=seed)
    launchers = {"process": (), "submitit": ("hydra.launcher.cluster=local",), "ray": ("hydra.launcher.cpus=2",)}
    launchers = {word: more for word, more in launchers.items() if word == "process" or importlib.util.find_spec(word)}
    if len(launchers) == 1:
        pytest.skip("neither submitit nor Ray is installed (pip install 'hvlm[submitit,ray]')")
    tables, pages = {}, {}
    for word, more in launchers.items():
        (tmp_path / "broken").touch()
        arguments = (
            f"launcher={word}",
            *more,
            "stage.steps=3",
            "seed=1,2,3,4",
            f"run=of-{word}",
            "hydra.launcher.threads=1",
        )
        first = sweep(*arguments)
        assert first.code == 1 and "error: 2 of 4 jobs did not finish" in first.err, first.err
        assert sorted(job["seed"] for job in ran(tmp_path)) == ["1", "2", "3", "4"]
        rows = json.loads((tmp_path / "runs" / f"of-{word}" / "sweep.json").read_text())
        tables[word] = [{k: v for k, v in r.items() if k not in ("place", "seconds", "log", "config")} for r in rows]
        assert f"report: runs/of-{word}/report.html" in first.out
        pages[word] = (tmp_path / "runs" / f"of-{word}" / "report.html").read_text().replace(f"of-{word}", "NAME")
        (tmp_path / "broken").unlink()
    assert [r["status"] for r in tables["process"]] == ["done", "failed", "killed", "done"]
    page = pages["process"]
    assert "seed-2 is left out: failed: ValueError: the job&#x27;s own mistake" in page
    assert "seed-3 is left out: killed" in page and re.search(r">1: \d+\.\d %, 4: \d+\.\d %<", page)
    for word, table in tables.items():
        assert table == tables["process"] and pages[word] == page, word
    done = sweep("stage.steps=3", "seed=1,2,3,4", f"run=of-{word}")
    assert done.code == 0 and sorted(job["seed"] for job in ran(tmp_path)) == ["2", "3"], "of another launcher's sweep"


def test_a_launcher_without_a_sweep_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["entry.py", "launcher=submitit", "stage=sft"])
    with pytest.raises(SystemExit):
        entry()
    assert "launcher=submitit: says where the jobs of a sweep run; add -m" in capsys.readouterr().err


@pytest.mark.fault(112)
def test_a_sweep_puts_seeds_together_and_keeps_the_rows_of_earlier_calls(
    tmp_path: Path, sweep: Callable[..., Sweep]
) -> None:
    done = sweep("connector=mean,patches", "seed=1,3", "run=mine", "evaluate=false")
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "mine"
    text = (folder / "sweep.md").read_text()
    # seeds 1 and 3: 0.6 and 0.8, mean 0.7, standard error 0.1; val/loss 1 and 3, mean 2, standard error 1
    assert "| connector=mean seed=1 evaluate=false | done | 0.600 | 0.050 | 1.0000 |" in text
    assert "| connector=patches evaluate=false | 1 3 | 0.700 | 0.100 | 2.0000 | 1.0000 |" in text
    assert "over seeds" in done.out
    assert sweep("connector=longvlm", "seed=1", "run=mine").code == 0
    text = (folder / "sweep.md").read_text()
    assert text.count("| done |") == 5 and "connector=longvlm seed=1 | done |" in text
    assert len(json.loads((folder / "sweep.json").read_text())) == 5


@pytest.mark.fault(112)
def test_a_note_ends_with_a_word(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(100)]
    (tmp_path / "log").write_text("first\n" + " ".join(words) + "\n\n")
    *said, dots = last_line(tmp_path / "log").split(" ")
    assert dots == "..." and said == words[: len(said)] and len(said) > 20


@pytest.mark.fault(112)
def test_a_container_says_how_many_processors_there_are(tmp_path: Path) -> None:
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    inner = groups / "docker" / "job"
    inner.mkdir(parents=True)
    own.write_text("0::/docker/job\n")
    there = usable_processors(groups, own)
    assert there == len(os.sched_getaffinity(0))
    (inner / "cpu.max").write_text("max 100000\n")
    assert usable_processors(groups, own) == there
    (groups / "docker" / "cpu.max").write_text("50000 100000\n")
    assert usable_processors(groups, own) == 1
    own.write_text("4:cpu,cpuacct:/docker/job\n3:memory:/x\n")
    (groups / "cpu" / "docker" / "job").mkdir(parents=True)
    (groups / "cpu" / "docker" / "job" / "cpu.cfs_quota_us").write_text("20000\n")
    (groups / "cpu" / "docker" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_processors(groups, own) == 1
    assert usable_processors(groups, tmp_path / "gone") == there


@pytest.mark.fault(90)
@pytest.mark.parametrize(
    "overrides",
    [
        ("stage.trainable={vision:0}", "stage.trainable={language:1e-3}"),
        pytest.param(("stage.trainable={language:1e-3}", "stage.trainable={vision:0}"), marks=pytest.mark.slow),
        ("++stage.trainable={vision:0}", "stage.trainable.language=1e-3"),
        pytest.param(("stage.steps=3", "stage.steps=4"), marks=pytest.mark.slow),
        pytest.param(("connector=mean", "connector=foveated", "connector.mode=coarse"), marks=pytest.mark.slow),
        ("connector=mean", "++benchmark.limit=3"),
        ("ask.question=it's (a, b) = é", "init_from=a b", "logger.tags=[x,y z]", "trainer.deterministic=false"),
        pytest.param(("stage.converge_to=1e-4", "stage.schedule=converging"), marks=pytest.mark.slow),
    ],
)
def test_a_job_of_a_sweep_is_configured_as_the_single_run(
    tmp_path: Path, sweep: Callable[..., Sweep], overrides: tuple[str, ...]
) -> None:
    (tmp_path / "job.py").write_text(
        "import json, pathlib, sys\n"
        "if 'seed=7' in sys.argv: pathlib.Path('argv.json').write_text(json.dumps(sys.argv[1:]))\n"
    )
    done = sweep(*overrides, "seed=7,8", "run=mine")
    assert done.code == 0, done.err
    words = json.loads((tmp_path / "argv.json").read_text())
    job, alone = compose(words), compose([*overrides, "seed=7"])
    assert job.pop("run") == "mine/seed-7" and job["logger"].pop("group") == "mine"
    assert alone.pop("run") is None and alone["logger"].pop("group") is None
    assert job == alone
    record = json.loads((tmp_path / "runs" / "mine" / "seed-7" / "status.json").read_text())
    assert record["config"] == config_id(alone | {"run": None, "logger": {}})


def test_a_job_of_eval_writes_into_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    @main(configure=compose, folder="out")
    def evaluation(cfg: dict, overrides: list[str]) -> None:
        raise AssertionError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text("import sys; open('argv.txt', 'a').write(sys.argv[-1] + '\\n')")
    monkeypatch.setattr(sys, "argv", ["eval.py", "-m", "hydra.launcher.script=job.py", "run=mine", "seed=1,2"])
    evaluation()
    assert (tmp_path / "argv.txt").read_text() == "out='runs/mine/seed-1'\nout='runs/mine/seed-2'\n"
    monkeypatch.setattr(sys, "argv", ["eval.py", "-m", "hydra.launcher.script=job.py", "out=x", "seed=1,2"])
    with pytest.raises(SystemExit):
        evaluation()
    assert "name the sweep with run=" in capsys.readouterr().err


@pytest.mark.fault(101)
def test_ctrl_c_twice_ends_a_sweep_in_one_line(tmp_path: Path) -> None:
    """The first asks the jobs to save, the second kills the deaf one; the table is written and no traceback shown."""
    (tmp_path / "job.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "pathlib.Path('started').touch(); time.sleep(60)\n"
    )
    (tmp_path / "entry.py").write_text("from hvlm.cli import main\n@main\ndef entry(cfg, overrides): ...\nentry()\n")
    process = subprocess.Popen(
        [sys.executable, "entry.py", "-m", "hydra.launcher.script=job.py", "seed=1,2", "run=mine"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not (tmp_path / "started").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again" in next(line for line in process.stdout if "stopping" in line)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in out + err, out + err
    records = json.loads((tmp_path / "runs" / "mine" / "sweep.json").read_text())
    assert [r["status"] for r in records] == ["killed", "waiting"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("seed=1,2", "seed=3"), ["seed is given again"]),
        (("stage.trainable={vision:0},{vision:1}", "stage.trainable={language:1e-3}"), ["is given again"]),
        (("--cfg", "job", "seed=1,2"), ["-m with --cfg"]),
        (("--config-dir", "elsewhere", "seed=1,2"), ["config_dir=elsewhere: no such folder"]),
        (("seed=1,2", "stage.steps=5,abc"), ["stage.steps=abc", "expected int"]),
        (("connector=foveated,men",), ["connector=men", "did you mean 'mean'?"]),
        (("seed=1,2", "stage.stepz=3"), ["did you mean 'stage.steps'?"]),
        (("seed=1,2", "hydra.launcher.jobz=2"), ["did you mean 'hydra.launcher.jobs'?"]),
        (("seed=1,2", "run=a,b"), ["one folder"]),
    ],
)
def test_mistakes_stop_a_sweep_before_any_job(
    tmp_path: Path, sweep: Callable[..., Sweep], arguments: tuple[str, ...], words: list[str]
) -> None:
    done = sweep(*arguments)
    assert done.code == 1 and ran(tmp_path) == []
    assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    for word in words:
        assert word in done.err


def test_a_sweep_from_conf_in_a_named_folder(tmp_path: Path, sweep: Callable[..., Sweep]) -> None:
    done = sweep("sweep=connectors", "run=mine")
    assert done.code == 0, done.err
    assert {(j["connector"], j["seed"], j["run"]) for j in ran(tmp_path)} == {
        (c, s, f"mine/connector-{c}_seed-{s}") for c in ("foveated", "mean") for s in "12"
    }


def test_job_names() -> None:
    assert job_name(["stage.steps=3", "connector=mean", "seed=2"], ["stage.steps=3"]) == "connector-mean_seed-2"
    assert job_name(["seed=2"], ["seed=2"]) == "seed-2"
    names = {job_name([f"stage.trainable={{vision:{v}}}"], []) for v in ("1", "[1]")}
    assert len(names) == 2 and not any(c in name for name in names for c in "{}:=/[]")


def test_accuracy_is_the_models_own(tmp_path: Path) -> None:
    assert read_numbers(tmp_path / "none") == (None, None, None)


def test_stop_asks_then_kills(tmp_path: Path) -> None:
    ignore = "if sys.argv[1:]: signal.signal(15, signal.SIG_IGN)"
    code = f"import pathlib, signal, sys, time\n{ignore}\nprint(1, flush=True)\ntime.sleep(60)"
    children = []
    for name, extra in (("polite", []), ("deaf", ["deaf"])):
        (tmp_path / name).mkdir()
        children.append(Child(Task(name, [sys.executable, "-c", code, *extra], tmp_path / name)))
        while not (tmp_path / name / "log.txt").read_text():
            time.sleep(0.02)
    started = time.monotonic()
    stop(children, patience=0.5)
    assert [child.poll().signal for child in children] == ["SIGTERM", "SIGKILL"]
    assert time.monotonic() - started < 10


def test_a_job_never_runs_twice_at_once(tmp_path: Path, sweep: Callable[..., Sweep]) -> None:
    """A sweeper that was killed leaves its job running; the next call must not start it again."""
    folder = tmp_path / "runs" / "mine" / "seed-1"
    folder.mkdir(parents=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    done = sweep("seed=1", "run=mine")
    os.close(lock)
    assert done.code == 1 and "busy" in done.out and ran(tmp_path) == []


def test_of_two_sweeps_into_one_folder_the_second_is_refused(tmp_path: Path, sweep: Callable[..., Sweep]) -> None:
    with locked(tmp_path / "runs" / "mine", "run=mine"):
        done = sweep("seed=1,2", "run=mine")
    assert done.code == 1 and done.err.startswith("error: run=mine: process ") and done.err.count("\n") == 1
    assert ran(tmp_path) == []


def test_all_jobs_at_once_have_a_thread_each():
    assert ProcessLauncher(jobs=None).threads == 1 and ProcessLauncher(jobs=None, threads=3).threads == 3
