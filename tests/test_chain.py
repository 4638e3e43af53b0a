"""One command is the whole way: a chain trains, skips what is done, survives a kill; eval.py needs only its folder."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from _tiny import ROOT

import eval as evaluation
from hvlm import assembly
from hvlm.config.compose import compose, plan
from hvlm.errors import UserError
from hvlm.interop.fvlm_weights import save_release
from hvlm.io.checkpoint import load_checkpoint
from hvlm.training.chain import run
from hvlm.training.start import find_start, start_stage

STAGES = ["vision", "align", "sft", "dpo"]


@pytest.fixture
def copy(trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Its own copy of the trained chain in the current folder; gives the overrides that made it."""
    folder, overrides = trained
    shutil.copytree(folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return overrides


def numbers(records: list[dict[str, Any]]) -> dict[tuple[str, str], tuple]:
    """All but the time that an answer took."""
    return {
        (r["variant"], r["metric"]): (r["value"], r["stderr"], r["n"], r["chance"])
        for r in records
        if r["metric"] not in ("latency_ms", "decode_tokens_per_s")
    }


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------- a finished chain


def test_what_a_chain_leaves(copy: list[str]) -> None:
    here = Path("runs/tiny")
    for stage in STAGES:
        files = {p.name for p in (here / stage).iterdir()}
        assert files >= {"config.yaml", "metrics.csv", "metrics.jsonl", "checkpoints", "finished.json"}
        assert json.loads((here / stage / "finished.json").read_text())["steps"] == 4
        logged = [line["train/loss"] for line in lines(here / stage / "metrics.jsonl") if "train/loss" in line]
        assert len(logged) == 4 and all(value > 0 for value in logged)
        card = load_checkpoint(here / stage)["hvlm"]
        assert card["stage"] == stage and card["config"]["stage"]["steps"] == 4
    records = json.loads((here / "results.json").read_text())
    assert {r["variant"] for r in records} == {"coarse_fine", "blind", "before_dpo"}
    reward = {r["variant"]: r for r in records if r["metric"] == "reward_accuracy"}
    assert reward["before_dpo"]["value"] == 0.5 and reward["before_dpo"]["n"] == reward["coarse_fine"]["n"] > 0
    metrics = {r["metric"] for r in records}
    assert metrics >= {"accuracy_mean", "accuracy_4of4", "accuracy/shape", "accuracy/colour", "accuracy/domain"}
    assert all(r["chance"] is not None for r in records if r["metric"].startswith("accuracy"))
    asked = {(p["variant"], p["question_id"]) for p in lines(here / "predictions.jsonl")}
    for variant in ("coarse_fine", "blind"):
        counted = sum(r["n"] for r in records if r["variant"] == variant and r["metric"].startswith("accuracy/"))
        assert counted == sum(name == variant for name, _ in asked)
    assert (here / "report.md").exists()


def test_each_stage_starts_from_the_weights_of_the_one_before(copy: list[str]) -> None:
    """Parts that a stage froze are bit for bit those of the stage before: the encoder in DPO."""
    states = {s: load_checkpoint(Path("runs/tiny") / s)["state_dict"] for s in STAGES}
    vision = [n for n in states["sft"] if n.startswith("model.vision.") and not n.startswith("model.vision.query.")]
    assert vision and all(torch.equal(states["sft"][n], states["dpo"][n]) for n in vision)
    moved = [n for n in states["sft"] if not torch.equal(states["sft"][n], states["dpo"][n])]
    assert any(n.startswith("model.language.") for n in moved)
    # The encoder that align ends with has not moved further from stage 0's than four small steps can take it.
    start = {n: v for n, v in states["vision"].items() if n.startswith("model.vision.")}
    far = max((states["align"][n] - v).abs().max() for n, v in start.items())
    assert 0 < far < 4 * 5e-3


def test_the_same_command_again_trains_nothing(copy: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*.ckpt")}
    results = numbers(json.loads(Path("runs/tiny/results.json").read_text()))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished stage was trained again")

    monkeypatch.setattr(lightning, "Trainer", refuse)
    outcome = run(copy)
    assert list(outcome.stages) == STAGES and numbers(outcome.records) == results
    assert {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*.ckpt")} == before


@pytest.mark.parametrize(
    "change, words",
    [
        (["connector=mean"], ["connector._target_", "foveated", "mean"]),
        (["stage.steps=5"], ["stage.steps: 4 -> 5"]),
        (["seed=2"], ["seed: 1 -> 2"]),
    ],
)
def test_another_configuration_under_the_same_name_is_refused(
    copy: list[str], change: list[str], words: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        run([*copy, "stage=align", *change])
    for word in ["run=", *words]:
        assert word in str(refused.value)


def test_eval_needs_nothing_but_the_run_folder(copy: list[str]) -> None:
    results = [r for r in json.loads(Path("runs/tiny/results.json").read_text()) if r["metric"] != "reward_accuracy"]
    before = [r | {"variant": "coarse_fine"} for r in results if r["variant"] == "before_dpo"]
    assert {"prefill_flops", "latency_ms", "kv_bytes", "visual_tokens"} <= {r["metric"] for r in results}
    results = numbers([r for r in results if r["variant"] != "before_dpo"])
    again = evaluation.evaluate(["checkpoint=runs/tiny/sft", "out=start", "benchmark.blind=false"])
    assert numbers([r for r in again if "accuracy" in r["metric"]]) == numbers(before)
    records = evaluation.evaluate(["checkpoint=runs/tiny", "out=again"])
    assert numbers(records) == results == numbers(json.loads(Path("again/results.json").read_text()))
    assert Path("again/predictions.jsonl").read_text() == Path("runs/tiny/predictions.jsonl").read_text()
    scored = evaluation.evaluate(["task=score", "predictions=again/predictions.jsonl", "out=scored"])
    assert {(r["metric"], r["value"]) for r in scored} == {
        (r["metric"], r["value"]) for r in records if "accuracy" in r["metric"]
    }
    fewer = evaluation.evaluate(
        ["checkpoint=runs/tiny/sft/checkpoints/last.ckpt", "out=few", "benchmark.tasks=[shape]", "benchmark.limit=4"]
    )
    assert {r["metric"] for r in fewer} >= {"accuracy/shape"} and not {"accuracy/colour"} & {r["metric"] for r in fewer}


@pytest.mark.fault(101)
def test_the_model_writes_its_own_answers_and_they_are_scored(copy: list[str]) -> None:
    answers = evaluation.evaluate(["checkpoint=runs/tiny", "task=generate", "out=words", "benchmark.limit=4"])
    assert answers == lines(Path("words/answers.jsonl"))
    assert {a["task"] for a in answers} >= {"shape", "colour"} and all("text" in a for a in answers)
    scored = evaluation.evaluate(["task=score", "predictions=words/answers.jsonl", "out=words/score"])
    (mean,) = [r for r in scored if r["metric"] == "accuracy_mean"]
    assert mean["variant"] == "coarse_fine" and mean["n"] == len({a["question_id"] for a in answers})


def test_a_checkpoint_of_another_architecture_names_part_and_shapes(copy: list[str]) -> None:
    with pytest.raises(UserError, match=r"connector.*differ.*\(") as refused:
        run([*copy, "run=other", "stage=sft", "init_from=runs/tiny/sft", "connector=mean"])
    assert "runs/tiny/sft" in str(refused.value)
    with pytest.raises(UserError, match=r"vision, connector differ .*\(1, 32, 2, 2\) there and \(1, 16, 2, 2\) here"):
        run([*copy, "run=narrow", "stage=sft", "init_from=runs/tiny/sft", "vision.dim=16"])
    with pytest.raises(UserError, match="vision"):
        evaluation.evaluate(["checkpoint=runs/tiny", "vision.dim=16", "out=narrow"])


def test_a_mixing_room_can_come_later(copy):
    outcome = run([*copy, "run=mixed", "stage=sft", "init_from=runs/tiny/sft", "attention=full", "evaluate=false"])
    before, after = (load_checkpoint(path)["state_dict"] for path in ("runs/tiny/sft", outcome.run / "sft"))
    new = {name for name in after if name not in before}
    assert new and all(name.startswith("model.attention.") for name in new)
    assert "attention=full" in (outcome.run / "report.html").read_text(), "without a benchmark there is a report, too"


# ---------------------------------------------------------------------------------------------------- killed, resumed

STEPS = 40
CHAIN = "chain={align:['stage=align','stage.steps=2'],sft:['stage=sft','stage.steps=%d']}" % STEPS  # noqa: UP031


def test_sigkill_in_the_middle_of_a_stage(needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command again ends with the weights of a run that nobody stopped, whatever the number of workers."""
    monkeypatch.chdir(tmp_path)
    command = [
        CHAIN,
        "stage.batch_size=4",
        "evaluate=false",
        "trainer.checkpoint_every=7",
        *needles,
        "callback.media=0",
    ]
    whole = run([*command, "run=whole"]).stages["sft"]

    checkpoints = tmp_path / "runs" / "cut" / "sft" / "checkpoints"
    # A copy of this process spares the imports; test_sweep kills a whole train.py.
    child = multiprocessing.get_context("fork").Process(target=run, args=([*command, "run=cut"],))
    child.start()
    while not list(checkpoints.glob("*.ckpt")) and child.is_alive():
        time.sleep(0.005)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (checkpoints.parent / "finished.json").exists() and not (checkpoints / "last.ckpt").exists()
    stopped = max(load_checkpoint(p)["global_step"] for p in checkpoints.glob("*.ckpt"))
    assert 0 < stopped < STEPS
    align = tmp_path / "runs" / "cut" / "align" / "finished.json"
    finished = align.read_text()

    shutil.copytree("runs/cut", "runs/cut2")
    for name, workers in (("cut", 0), ("cut2", 2)):
        resumed = run([*command, f"run={name}", f"trainer.num_workers={workers}"]).stages["sft"]
        assert resumed["weights_sha256"] == whole["weights_sha256"], f"{workers} workers"
        logged = {line["step"] for line in lines(Path("runs") / name / "sft" / "metrics.jsonl") if "train/loss" in line}
        # The kill may have come after a step's checkpoint and before its line.
        assert set(range(STEPS)) - logged <= {stopped - 1}
    assert align.read_text() == finished, "the finished stage was skipped"


def test_a_missing_start_is_found_before_any_data_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="runs/none: no such checkpoint"):
        run(["stage=sft", "init_from=runs/none", "run=x"])
    assert not list(tmp_path.iterdir())


def test_a_stage_starts_from_weights_in_fvlms_layout(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    needles = [o for o in needles if not o.startswith("vision.")]
    rooms = ["vision=dinov2_tiny", "connector.projector=linear", "connector.standardise=false", "order=video_first"]
    cfg = compose(["stage=sft", *rooms, *needles])
    data = assembly.dataset(cfg)
    data.prepare()
    made = assembly.model(cfg, assembly.chat(cfg, data))
    save_release(made, tmp_path / "fvlm.safetensors")
    stage, _ = start_stage(cfg, data, find_start(str(tmp_path)))
    assert all(torch.equal(value, stage.model.state_dict()[name]) for name, value in made.state_dict().items())
    assert run(["stage=dpo", *rooms, f"init_from={tmp_path}", "run=dpo", "stage.steps=1", *needles]).records
    with pytest.raises(UserError, match="has no connector.project.standardise.*connector.standardise=false"):
        start_stage(compose(["stage=sft", *rooms, "connector.standardise=true", *needles]), data, tmp_path)
    with pytest.raises(UserError, match="stage=vision trains an encoder from nothing"):
        start_stage(compose(["stage=vision", *rooms, *needles]), data, tmp_path)


# ------------------------------------------------------------------------------------------------- before any work


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["merger=tome", "merger.keep=2"], "merger.keep=2"),
        (["connector=patches", "connector.shuffle=2", "merger=tome"], "connector.shuffle=2"),
        (["merger=tome", "merger.scope=video"], "merger.scope=video"),
        (["connector=longvlm", "connector.groups=7"], "connector.groups=7"),
        (["connector.mode=autoregressive", "attention=full"], "connector.mode=autoregressive"),
        (["language.num_heads=5"], "language.num_heads=5"),
    ],
)
def test_what_later_stages_cannot_do_is_heard_first(
    overrides: list[str], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 0 needs none of these rooms, so without a rehearsal it would be trained first."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(key)):
        run(["experiment=demo", *overrides])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=align", "stage.interleave=0.2"], "cannot interleave text-only batches"),
        (["stage=vision", "trainer.overfit_batches=1"], "hands out no batch twice"),
        (["stage=task", "head=match", "head.mined=1"], "cannot be searched for similar texts"),
    ],
)
def test_what_a_stream_cannot_do_is_heard_before_needles_are_made(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"dataset.access=stream {message}"):
        run(["dataset=needles", "dataset.access=stream", f"dataset.root={tmp_path}", *overrides])
    assert not list(tmp_path.iterdir())
    (cfg,) = plan(["dataset=needles", "dataset.access=stream", overrides[0], *overrides[1:-1]]).values()
    assembly.dry_build(cfg)


def test_every_dataset_that_can_be_a_stream_takes_what_the_refusal_to_resume_one_tells_to_set() -> None:
    for name, words in {"needles": [], "shards": ["dataset.path=shards"]}.items():
        words = [f"dataset={name}", *words, "dataset.access=stream", "dataset.allow_inexact_resume=true"]
        (cfg,) = plan([*words, "stage=align"]).values()
        assert assembly.dataset(cfg).allow_inexact_resume


def test_stage_0_is_rehearsed_without_its_language_model(tmp_path: Path) -> None:
    (cfg,) = plan(["stage=vision", "language=smollm2_135m", f"language.source={tmp_path / 'absent'}"]).values()
    assembly.dry_build(cfg)
    with pytest.raises(UserError, match="language.source="):
        assembly.dry_build(
            *plan(["stage=sft", "language=smollm2_135m", f"language.source={tmp_path / 'absent'}"]).values()
        )


@pytest.mark.fault(85, 101)
@pytest.mark.parametrize(
    "change, words",
    [
        (["benchmark.split=dev"], "benchmark.split=dev: the dataset has no such split, it has .*test"),
        (["benchmark.tasks=[color]"], "tasks=.color.: the questions are of the tasks .*; .* did you mean 'colour'"),
        (["benchmark.tasks=[shape,colr]"], "'colr' is none of them; did you mean 'colour'"),
    ],
)
def test_what_the_benchmark_will_refuse_is_said_before_training(needles, tmp_path, monkeypatch, change, words) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        run(["stage=sft", "run=late", "stage.steps=1", "stage.batch_size=2", *needles, *change])
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("metrics.*")), "nothing was trained"


# ------------------------------------------------------------------------------------------------- what comes before


def done(stage: str, run: str = "tiny") -> dict[str, Any]:
    return json.loads((Path("runs") / run / stage / "finished.json").read_text())


@pytest.mark.fault(68)
def test_a_stage_of_a_chain_alone_starts_from_the_stage_before_it(copy: list[str]) -> None:
    whole = done("sft")
    shutil.rmtree("runs/tiny/sft")
    outcome = run([*copy, "stage=sft", "evaluate=false"])
    assert outcome.stages["sft"]["weights_sha256"] == whole["weights_sha256"]
    begun = load_checkpoint("runs/tiny/sft")["hvlm"]["start"]
    assert (
        begun["weights_sha256"] == done("align")["weights_sha256"] == outcome.stages["sft"]["start"]["weights_sha256"]
    )
    with pytest.raises(UserError, match=r"stage=sft starts from the end of stage align, and .*other/align is not"):
        run([*copy, "stage=sft", "run=other"])
    assert not Path("runs/other").exists()
    with pytest.raises(UserError, match=r"stage=dpo: this chain's stages are called a, b"):
        plain = [o for o in copy if not o.startswith("experiment")]
        run([*plain, "chain={a:['stage=align'],b:['stage=sft']}", "stage=dpo", "run=other"])


@pytest.mark.fault(68)
def test_a_stage_that_began_with_other_weights_was_not_finished_before(copy: list[str]) -> None:
    begun = [*copy, "run=b", "stage=sft", "stage.steps=1", "evaluate=false"]
    run([*begun, "init_from=runs/tiny/align"])
    shutil.copytree("runs/tiny/align", "runs/moved/align")
    run([*begun, "init_from=runs/moved/align/"])  # the same weights elsewhere are the same start
    with pytest.raises(UserError, match=r"runs/b/sft was made with other .*start.weights_sha256: .* -> .*resume=never"):
        run([*begun, "init_from=runs/tiny/dpo"])
    before = done("sft", "b")["weights_sha256"]
    run([*begun, "init_from=runs/tiny/dpo", "resume=never"])
    assert done("sft", "b")["weights_sha256"] != before


@pytest.mark.fault(83)
def test_a_finished_stage_whose_checkpoint_is_damaged_is_made_again_from_what_is_sound(copy: list[str]) -> None:
    whole, last = done("dpo"), Path("runs/tiny/dpo/checkpoints/last.ckpt")
    last.write_bytes(last.read_bytes()[:-1])
    outcome = run([*copy, "evaluate=false"])
    assert outcome.stages["dpo"]["weights_sha256"] == whole["weights_sha256"]
    assert load_checkpoint("runs/tiny")["hvlm"]["stage"] == "dpo"


@pytest.mark.fault(88)
def test_eval_and_the_final_table_are_of_the_chains_last_stage_whatever_the_clock_says(
    copy: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = Path("runs/tiny/align/finished.json")
    file.write_text(json.dumps(done("align") | {"finished_at": time.time() + 3600}))
    with caplog.at_level("INFO"):
        run(copy)
        assert "runs/tiny/dpo/checkpoints/last.ckpt: computing" in caplog.text
        caplog.clear()
        evaluation.evaluate(["checkpoint=runs/tiny", "out=out", "benchmark.limit=2", "benchmark.blind=false"])
    assert "runs/tiny/dpo/checkpoints/last.ckpt" in caplog.text and "align" not in caplog.text


@pytest.mark.fault(71)
def test_the_time_of_a_call_is_over_and_the_next_call_goes_on(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["stage=sft", "stage.steps=3", "stage.batch_size=2", "run=a", "evaluate=false", "callback.media=0"]
    command += [*needles, "connector=mean"]
    for step in (1, 2):
        with pytest.raises(UserError, match=rf"max_time is over: step {step} of 3 is saved .* the same command"):
            run([*command, "trainer.max_time=00:00:00:00"])
    assert run([*command, "trainer.max_time=00:01:00:00"]).stages["sft"]["steps_here"] == 1
    metrics = [json.loads(line) for line in next(Path().glob("runs/*/sft/metrics.jsonl")).read_text().splitlines()]
    assert [m["step"] for m in metrics if "val/loss" in m] == [3]  # as if it had never stopped


@pytest.mark.fault(99)
def test_resume_never_does_not_touch_a_run_that_another_process_writes(copy: list[str]) -> None:
    files = sorted(Path("runs").rglob("*.ckpt"))
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + (
        "from pathlib import Path; from hvlm.io.lock import locked\n"
        "with locked(Path('runs/tiny'), 'x'): print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"run=tiny: process {other.pid} on .* has been writing"):
            run([*copy, "resume=never"])
        assert sorted(Path("runs").rglob("*.ckpt")) == files
        other.communicate("\n")
