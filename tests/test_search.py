"""sweep=optuna: a search that is killed goes on with no trial lost or doubled, and what it chooses from."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.errors import InstantiationException

from hvlm.config.compose import explain
from hvlm.errors import UserError
from hvlm.sweep.job import Job, read_status
from hvlm.sweep.space import Param, wandb_sweep, with_conditions
from hvlm.sweep.study import Prune, Search, open_study, read_curve
from hvlm.sweep.table import read_rows, read_values

ROOT = Path(__file__).parent.parent  # not from _tiny, which imports torch: nothing here needs it

pytest.importorskip("optuna", reason="optuna is not installed (pip install 'hvlm[optuna]')")

SPACE = [
    Param("merger", choices=("none", "tome")),
    Param("merger.keep", low=0.2, high=1.0, only=("merger=tome",)),
    Param("stage.trainable.language", low=1e-4, high=1e-2, log=True),
    Param("stage.steps", low=10, high=30, whole=True, step=10),
]


class World:
    """Jobs that end as soon as they are asked for; ``fails`` names those that do not end well."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.fails, self.ran = folder, set[str](), []
        self.objectives = settings.pop("objectives", {"accuracy": "maximize", "kv_bytes": "minimize"})
        study = open_study(f"sqlite:///{folder}/study.db", "mine", self.objectives, {"params": "p"})
        settings = {"trials": 12, "startup": 4} | settings
        self.search = Search(study, SPACE, self.objectives, self.plan, folder, **settings)

    def plan(self, chosen: list[str], name: str) -> Job:
        return Job(name, chosen, "c", stages=("sft",))

    def run(self, job: Job) -> None:
        folder = self.folder / job.name
        folder.mkdir(exist_ok=True)
        self.ran.append((job.name, tuple(job.overrides)))
        given = dict(o.split("=") for o in job.overrides)
        loss = abs(math.log10(float(given["stage.trainable.language"])) + 3)
        keep = float(given.get("merger.keep", 1))
        records = [
            {"variant": "v", "metric": "accuracy_mean", "value": 1 - loss / 4, "stderr": 0.1},
            {"variant": "v", "metric": "kv_bytes", "value": 100 * keep},
        ]
        (folder / "results.json").write_text(json.dumps(records))
        job.status = "failed" if job.name in self.fails else "done"
        (folder / "status.json").write_text(json.dumps(job.record()))

    def go(self, jobs: int = 1000) -> None:
        """At most so many jobs, as a sweep that is killed after them."""
        for _ in range(jobs):
            job = self.search.next()
            if job is None:
                return
            self.run(job)
            self.search.ended(job)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_search_that_was_killed_asks_for_the_same_trials_as_one_that_was_not(tmp_path: Path, sampler: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    alone = World(whole, sampler=sampler)
    alone.go()
    assert len(alone.ran) + sum(1 for j in alone.search.jobs if "the same" in j.error) == 12
    first = World(parts, sampler=sampler)
    first.go(5)
    asked = first.search.next()  # killed while this one runs
    second = World(parts, sampler=sampler)
    assert [j.name for j in second.search.jobs] == [name for name, _ in first.ran]
    second.go()
    assert second.ran[0] == (asked.name, tuple(asked.overrides)), "what ran is run again, in its own folder"
    assert first.ran + second.ran == alone.ran, "none lost, none doubled"
    assert len({overrides for _, overrides in alone.ran}) == len(alone.ran)
    for name, overrides in alone.ran:
        assert ("merger=tome" in overrides) == any(o.startswith("merger.keep=") for o in overrides), name
    third = World(parts, sampler=sampler)
    assert third.search.next() is None and len(third.search.jobs) == 12


def test_failed_trials_are_named_and_tried_again_in_their_folders(tmp_path: Path) -> None:
    world = World(tmp_path, trials=4, sampler="random")
    world.fails = {"trial-1", "trial-2"}
    world.go()
    states = [t["state"] for t in written(world)]
    assert states == ["complete", "fail", "fail", "complete"]
    again = World(tmp_path, trials=4, sampler="random")
    again.fails = {"trial-2"}
    again.go()
    assert again.ran == [world.ran[1], world.ran[2]]
    last = World(tmp_path, trials=4, sampler="random")
    last.go()
    assert last.ran == [world.ran[2]]
    assert World(tmp_path, trials=4, sampler="random").search.next() is None
    trials = written(last)
    assert {t["job"] for t in trials if t["state"] == "complete"} == {f"trial-{n}" for n in range(4)}
    assert [t["first"] for t in trials[4:]] == [1, 2, 2]


def written(world: World) -> list[dict[str, Any]]:
    world.search.write()
    return json.loads((world.folder / "search.json").read_text())["trials"]


def test_the_front_holds_what_nothing_beats(tmp_path: Path) -> None:
    world = World(tmp_path, sampler="nsga2")
    world.go()
    trials = written(world)
    front = [t["values"] for t in trials if t["front"]]
    assert front
    for other in (t["values"] for t in trials):
        beaten = [f["accuracy"] >= other["accuracy"] and f["kv_bytes"] <= other["kv_bytes"] for f in front]
        assert any(beaten), other
    text = (tmp_path / "search.md").read_text()
    assert text.count("| trial-") == len(front) and "12 trials: 12 complete" in text


def test_a_trial_that_learns_worse_than_the_others_is_stopped(tmp_path: Path) -> None:
    prune = Prune(after=2, percentile=50, start=20)
    good = [{(0, 10): 3.0, (0, 20): 2.0}, {(0, 10): 3.5, (0, 20): 1.0}, {(0, 10): 1.0}]
    assert prune.stops({}, good) == "" and prune.stops({(0, 10): 9.0}, good) == "", "before start"
    assert prune.stops({(0, 10): 9.0, (0, 20): 0.9}, good) == ""
    assert "val/loss 1.1 at step 20: worse than 1 of 50 %" in prune.stops({(0, 20): 1.1}, good)
    assert "nan" in prune.stops({(0, 20): float("nan")}, good)
    assert Prune(after=3).stops({(0, 20): 9.0}, good) == "", "too few have come so far"
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.jsonl").write_text('{"step": 10, "val/loss": 2.5}\n{"step": 11}\n{"step": 20, "val/l')
    assert read_curve(tmp_path, ["align", "sft"]) == {(1, 10): 2.5}

    world = World(tmp_path, trials=4, sampler="random", prune=Prune(after=2))
    for number in range(4):
        job = world.search.next()
        folder = tmp_path / job.name / "sft"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 5, "val/loss": 1.0 + number}) + "\n")
        goes_on = world.search.watch(job)
        assert goes_on == (number < 2)
        world.run(job)
        job.status = "done" if goes_on else "pruned"
        world.search.ended(job)
    assert [t["state"] for t in written(world)] == ["complete", "complete", "pruned", "pruned"]
    assert World(tmp_path, trials=4).search.next() is None, "a pruned trial is not run again"

    later = World(tmp_path, trials=5, sampler="random", prune=Prune(after=2))
    job = later.search.next()
    (tmp_path / job.name / "sft").mkdir(parents=True)
    (tmp_path / job.name / "sft" / "metrics.jsonl").write_text('{"step": 5, "val/loss": 9.0}\n')
    assert not later.search.watch(job), "a later call knows what those of the earlier one had reached"


def test_a_study_of_other_settings_is_refused(tmp_path: Path) -> None:
    World(tmp_path)
    with pytest.raises(UserError, match="search with another params"):
        open_study(f"sqlite:///{tmp_path}/study.db", "mine", {"a": "maximize", "b": "minimize"}, {"params": "q"})


def test_a_result_that_is_missing_is_named(tmp_path: Path) -> None:
    world = World(tmp_path, objectives={"flops": "minimize"})
    job = world.search.next()
    world.run(job)
    with pytest.raises(UserError, match="trial-0 has no flops; it has accuracy, accuracy_mean, kv_bytes"):
        world.search.ended(job)


def test_a_result_that_is_no_number_is_a_failed_trial(tmp_path: Path) -> None:
    world = World(tmp_path, objectives={"accuracy": "maximize"}, trials=1)
    job = world.search.next()
    world.run(job)
    path = tmp_path / job.name / "results.json"
    path.write_text(json.dumps([{"variant": "v", "metric": "accuracy_mean", "value": math.nan, "stderr": 0.1}]))
    world.search.ended(job)
    assert (job.status, job.error) == ("failed", "accuracy is nan")
    assert [(t["state"], t["values"], t["front"]) for t in written(world)] == [("fail", {}, False)]


def test_conditions_name_what_stands_before_them() -> None:
    plain = [Param("merger", choices=("none", "tome")), Param("merger.keep", low=0.2, high=1.0)]
    assert with_conditions(plain, {"merger.keep": ["merger=tome"]})[1].only == ("merger=tome",)
    with pytest.raises(UserError, match=r"merger.kept is not searched; hydra.sweeper.params has merger, merger.keep"):
        with_conditions(plain, {"merger.kept": ["merger=tome"]})
    with pytest.raises(UserError, match="merger=x is no choice"):
        with_conditions(plain, {"merger.keep": ["merger=x"]})


def test_the_same_space_for_wandb() -> None:
    text = wandb_sweep(SPACE, ["accuracy"], ["python", "train.py", "experiment=demo"], "tpe", 24)
    found = yaml.safe_load(text)
    assert found["parameters"] == {
        "merger": {"values": ["none", "tome"]},
        "merger.keep": {"distribution": "uniform", "min": 0.2, "max": 1.0},
        "stage.trainable.language": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "stage.steps": {"distribution": "q_uniform", "min": 10, "max": 30, "q": 10},
    }
    assert found["command"][:4] == ["${env}", "python", "train.py", "experiment=demo"]
    assert found["command"][-1] == "${args_no_hyphens}" and found["method"] == "bayes"
    assert "merger.keep counts only with merger=tome" in text


# A job that takes a second, writes what train.py would, and says that it ran.
JOB = """
import json, os, pathlib, sys, time
given = dict(a.split("=", 1) for a in sys.argv[1:])
run = pathlib.Path("runs", given["run"].strip("'"))
def say(word):
    with open("ran.txt", "a") as f: f.write(json.dumps([word, run.name, given]) + "\\n")
say("begins")
time.sleep(float(os.environ.get("JOB_SECONDS", "0")))
loss = abs(float(given["stage.trainable.language"]) - 1e-3)
records = [{"variant": "v", "metric": "accuracy_mean", "value": 1 - loss, "stderr": 0.1}]
(run / "results.json").write_text(json.dumps(records))
say("ends")
"""


def test_a_search_from_the_command_line_is_killed_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "entry.py").write_text(
        "from hvlm.cli import main\n@main\ndef entry(cfg, overrides): ...\n"
        "import hvlm.sweep.launcher as launcher\nlauncher.JobLauncher._report = lambda self: None\nentry()\n"
    )
    command = [
        sys.executable, "entry.py", "-m", "hydra.launcher.script=job.py", "hydra.launcher.threads=1", "sweep=optuna",
        "connector=foveated,mean", "stage.trainable.language=tag(log,interval(1e-4,1e-2))", "run=mine", "stage=sft",
        "hydra.sweeper.trials=5", "hydra.sweeper.startup=2",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JOB_SECONDS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while len(ran(tmp_path)) < 3 and process.poll() is None:  # the second trial runs
        time.sleep(0.05)
    process.kill()
    out = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, out
    done = subprocess.run(command, cwd=tmp_path, env=environment | {"JOB_SECONDS": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = [name for word, name, _ in ran(tmp_path) if word == "ends"]
    assert sorted(set(ended)) == [f"trial-{n}" for n in range(5)]
    assert max(ended.count(name) for name in ended) <= 2 and sum(ended.count(n) > 1 for n in set(ended)) <= 1
    folder = tmp_path / "runs" / "mine"
    trials = json.loads((folder / "search.json").read_text())["trials"]
    assert [(t["number"], t["state"], t["job"]) for t in trials] == [(n, "complete", f"trial-{n}") for n in range(5)]
    given = {name: words for _, name, words in ran(tmp_path)}
    for trial in trials:
        for override in trial["overrides"]:
            key, _, value = override.partition("=")
            assert given[trial["job"]][key] == value
        assert given[trial["job"]]["stage"] == "sft" and "sweep" in given[trial["job"]]
    rows = json.loads((folder / "sweep.json").read_text())
    assert [r["name"] for r in rows] == [f"trial-{n}" for n in range(5)] and {r["status"] for r in rows} == {"done"}
    assert {r["error"] for r in rows} == {""}
    assert "front of accuracy (maximize)" in done.stdout
    assert yaml.safe_load((folder / "wandb_sweep.yaml").read_text())["parameters"]["connector"]["values"]


def ran(folder: Path) -> list[Any]:
    path = folder / "ran.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_front_is_measured_by_what_it_dominates() -> None:
    search = pytest.importorskip("experiments.search.__main__")
    assert search.hypervolume([]) == 0 and search.hypervolume([[0, 0, 0]]) == 1
    assert search.hypervolume([[0.5, 0.5]]) == 0.25
    assert search.hypervolume([[0.5, 0.0], [0.0, 0.75], [0.75, 0.9]]) == pytest.approx(0.5 + 0.125)
    done = {"trials": [{"values": {"a": 3.0, "b": 1.0}}, {"values": {}}, {"values": {"a": 1.0, "b": 0.0}}]}
    points = search.points_of(done, {"a": "maximize", "b": "minimize"})
    assert search.scaled(points, points) == [[0, 1], [1, 0]]


@pytest.mark.parametrize("data", [b"hello" * 1000, None])
def test_a_study_that_is_damaged_or_somebody_elses_is_one_line(data: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    if data is None:
        with contextlib.closing(sqlite3.connect(path)) as base:
            base.execute("create table studies(x int)")
            base.commit()
    else:
        path.write_bytes(data)
    with pytest.raises(UserError, match=r"^hydra.sweeper.storage: sqlite:.*study.db cannot be opened .*run=\.\.\.$"):
        open_study(f"sqlite:///{path}", "mine", {"accuracy": "maximize"}, {})


def test_a_storage_that_is_none_is_one_line_without_its_password() -> None:
    with pytest.raises(UserError, match=r"foo://me:\*\*\*@host/x cannot be opened") as error:
        open_study("foo://me:secret@host/x", "mine", {"accuracy": "maximize"}, {})
    assert "secret" not in str(error.value)


def test_damaged_lines_of_metrics_are_left_out_of_a_curve(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    bad = ["5", "[1]", "[" * 100_000, '{"val/loss": 1}', '{"val/loss": "x", "step": 1}', '{"val/loss": 1, "step": []}']
    good = '{"val/loss": 0.5, "step": 3}'
    (tmp_path / "sft" / "metrics.jsonl").write_bytes("\n".join([*bad, good, ""]).encode() + b"\xff")
    assert read_curve(tmp_path, ["sft"]) == {(0, 3): 0.5}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.json", "{}"), ("results.json", "[1]"), ("results.json", "x"), ("results.json", "[" * 100_000),
        ("results.json", '[{"metric": 1}]'), ("results.json", '[{"metric": "a", "variant": "v", "value": "x"}]'),
        ("sft/finished.json", "[1]"), ("sft/finished.json", '{"finished_at": 1, "metrics": {"val/loss": "x"}}'),
    ],
)  # fmt: skip
def test_damaged_results_of_a_job_are_named(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: ") as error:
        read_values(tmp_path, ["accuracy"])
    assert "\n" not in str(error.value)


def test_a_damaged_record_of_a_job_is_named_and_a_damaged_table_made_anew(tmp_path: Path) -> None:
    job = Job("a", ["seed=1"], "c").record()
    path = tmp_path / "status.json"
    for text in ("[]", "x", json.dumps({**job, "overrides": 5}), json.dumps({**job, "status": "x"})):
        path.write_text(text)
        with pytest.raises(UserError, match="status.json: "):
            read_status(path)
    path.write_text(json.dumps({**job, "val_loss": math.nan}))
    assert read_status(path)["name"] == "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "sweep.json").write_text(json.dumps([5, {}, {"name": ["a"]}, {**job, "seconds": "x"}, job]))
    assert read_rows(tmp_path, []) == [job]
    (tmp_path / "sweep.json").write_text("5")
    assert read_rows(tmp_path, []) == []


def test_what_a_sweeper_or_launcher_refuses_is_said_in_its_own_words() -> None:
    inner, given = UserError("hydra.sweeper.trials=x: expected a whole number of 1 or more"), ["hydra.launcher.jobs=x"]
    for cause, says in ((inner, str(inner)), (TypeError("str"), "hydra.launcher.jobs=x: a value of another kind")):
        error = InstantiationException("Error in call to target\nfull_key: hydra.launcher")
        error.__cause__ = cause
        assert str(explain(error, given)).startswith(says)
