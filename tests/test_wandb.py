"""logger=wandb, offline: what lands in the run folder, stage by stage."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import _wandb_server
import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from hvlm.config.compose import compose
from hvlm.errors import UserError
from hvlm.io.checkpoint import stored_step
from hvlm.training import chain, wandb_media
from hvlm.training.best import KeepBest
from hvlm.training.chain import closing
from hvlm.training.wandb_logger import summary, tags, wandb_logger, write_summary


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """Nobody is logged in, and what the loggers put into the environment goes away again."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "set by the logger")
    yield
    wandb.teardown()


def logged(folder):
    """Everything that W&B wrote down in a stage's folder, as bytes. Of one run, or the test fails."""
    wandb.teardown()  # its service process writes behind our back; now it is done
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    return log.read_bytes()


def test_one_run_per_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "5ec2e7" * 6 + "beef")
    cfg = compose(["logger=wandb", "seed=77", "logger.tags=[first]", "run=demo"])
    loggers = []
    for stage in ("align", "sft"):
        folder = tmp_path / "demo" / stage
        folder.mkdir(parents=True)
        logger = wandb_logger(cfg, folder, fresh=True)
        assert isinstance(logger, WandbLogger)
        with closing([logger]):
            logger.log_metrics({"train/loss": 1.5}, step=3)
        run = logger.experiment
        assert (run.name, run.group, run.project, run.tags) == (f"demo/{stage}", "demo", "hvlm", ("first",))
        assert run.config["seed"] == 77 and run.config["connector"]["mode"] == "coarse_fine"
        assert os.environ["WANDB_DATA_DIR"] == str(folder / "wandb-data")
        loggers.append(logger)
    assert loggers[0].experiment.id != loggers[1].experiment.id
    assert wandb.run is None, "the next stage must not write into this one's run"
    for stage in ("align", "sft"):
        written = logged(tmp_path / "demo" / stage)
        assert b"coarse_fine" in written and b"train/loss" in written and f"demo/{stage}".encode() in written
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8 and not [path for path in files if b"5ec2e75ec2e7" in path.read_bytes()], "no key is kept"


def test_a_continued_stage_is_the_same_run(tmp_path):
    cfg = compose(["logger=wandb", "logger.group=sweep"])
    ids = []
    for fresh in (True, False, True):
        logger = wandb_logger(cfg, tmp_path, fresh)
        with closing([logger]):
            ids.append(logger.experiment.id)
        assert logger.experiment.group == "sweep"
    assert ids[0] == ids[1] != ids[2]


def test_a_run_that_fails_is_ended_as_failed(tmp_path):
    logger = wandb_logger(compose(["logger=wandb"]), tmp_path)
    codes, finish = [], logger.experiment.finish
    logger.experiment.finish = lambda exit_code: codes.append(exit_code) or finish(exit_code)
    with pytest.raises(SystemExit), closing([logger]):
        raise SystemExit(143)
    assert codes == [1] and wandb.run is None


@pytest.mark.fault(48, 50)
def test_errors(tmp_path):
    (tmp_path / "wandb-data").write_text("in the way")
    with pytest.raises(UserError, match="wandb-data is not writable"):
        wandb_logger(compose(["logger=wandb"]), tmp_path)
    (tmp_path / "wandb-data").unlink()
    with pytest.raises(UserError, match=r"logger=wandb: .*wandb login.*logger\.offline=true"):
        wandb_logger(compose(["logger=wandb", "logger.offline=false"]), tmp_path)


@pytest.mark.fault(112)
def test_its_summary_holds_the_results_of_the_benchmark(tmp_path, needles, monkeypatch):
    """Those of the stage's own run, which the benchmark finds ended."""
    monkeypatch.chdir(tmp_path)
    few = ["stage=sft", "stage.steps=1", "stage.batch_size=2", "callback.media=2", "benchmark.limit=2"]
    outcome = chain.run([*few, "run=w", "logger=wandb", "benchmark.tries=1", *needles])
    stage = tmp_path / "runs" / "w" / "sft"
    wandb.teardown()
    training, after = sorted(stage.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert training.stem == after.stem, "one run for W&B"
    written = after.read_bytes()
    for record in outcome.records:
        assert f"eval/{record['variant']}/{record['metric']}".encode() in written
    assert {r["variant"] for r in outcome.records} > {"blind"}
    (table,) = stage.glob("wandb/offline-run-*/files/media/table/eval/clips*.json")
    assert json.loads(table.read_text())["columns"] == ["frames", "question", "answer", "gold", "right"]
    for name in ("eval/score", "eval/score/stderr", "eval/blind", "cost/prefill_flops", "cost/kv_bytes"):
        assert name.encode() in written, name
    first = outcome.records[0]
    assert summary(outcome.records)["eval/score"] == first["value"] and first["variant"] != "blind"


def test_training_fills_it(tmp_path, needles, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chain.run(["stage=sft", "stage.steps=2", "stage.batch_size=4", "run=w", "logger=wandb", "evaluate=false", *needles])
    stage = tmp_path / "runs" / "w" / "sft"
    written = logged(stage)
    for name in ("grad_norm", "lr/connector", "samples_per_s", "gaze/entropy_fine", "val/loss", "clips"):
        assert name.encode() in written, name
    tables = [json.loads(p.read_text()) for p in stage.glob("wandb/offline-run-*/files/media/table/*.json")]
    assert tables and all(table["columns"] == list(wandb_media.COLUMNS) for table in tables)
    assert all(isinstance(row[4], bool) and row[5] == "Image" for t in tables for row in t["data"])
    videos = {video.read_bytes() for video in stage.glob("clips/*.mp4") if not video.stem.endswith("-gaze")}
    staged = {path.read_bytes() for path in (stage / "wandb-data/artifacts/staging").iterdir()}
    assert videos and videos <= staged, "what `wandb sync` uploads for the table lies in the run folder"
    assert list(stage.glob("wandb/offline-run-*/files/media/images/gaze*.png")), "sheets of where the gaze went"
    assert (stage / "metrics.csv").exists() and (stage / "metrics.jsonl").exists()


def test_its_tags_are_the_words_of_its_rooms(tmp_path):
    chosen = ["connector=mean", "merger=tome", "language=smollm2_135m", "vision=dinov2_small"]
    cfg = compose(["logger=wandb", *chosen, "run=demo", "logger.group=sweep-1"])
    folder = tmp_path / "demo" / "sft"
    folder.mkdir(parents=True)
    logger = wandb_logger(cfg, folder, fresh=True)
    with closing([logger]):
        run = logger.experiment
        assert set(chosen) <= set(run.tags) and len(set(run.tags)) == len(run.tags)
        assert not [tag for tag in run.tags if tag.endswith("=none") or tag.startswith(("stage=", "benchmark="))]
        assert (run.group, run.job_type) == ("sweep-1", "sft")
    own = tags(compose(["logger=wandb", f"logger.tags=[mine,{'x' * 65},{'x' * 66}]"]))
    assert own[0] == "mine" and len(own) == 3 == len(set(own)) and max(map(len, own)) == 64


@pytest.mark.skipif(shutil.which("wandb", path=str(Path(sys.executable).parent)) is None, reason="no wandb command")
def test_synced_twice_it_is_one_run(tmp_path, monkeypatch):
    """A stage that was stopped and continues, and the results of its benchmark: three folders of W&B's, one run, whose
    curve goes on where it stopped. (wandb's own program, against a server of this test.)"""
    cfg = compose(["logger=wandb", "run=demo", "logger.group=sweep-1"])
    stage = tmp_path / "runs" / "demo" / "sft"
    stage.mkdir(parents=True)
    record = {"variant": "sft", "metric": "accuracy", "value": 0.5, "stderr": 0.1}
    for k in range(2):
        logger = wandb_logger(cfg, stage, fresh=k == 0)
        with closing([logger]):
            for i in range(2):
                logger.log_metrics({"train/loss": 1.0 - k / 2 - i / 10}, step=2 * k + i)
        time.sleep(1.1)  # W&B names its folders by the second
    write_summary(cfg, stage, [record])
    wandb.teardown()
    parts = sorted(stage.glob("wandb/offline-run-*"))
    assert len(parts) == 3
    program = Path(sys.executable).with_name("wandb")
    with _wandb_server.running() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        said = ""
        for given in (parts[:1], parts, parts):  # after the first part; all; all once more
            done = subprocess.run([program, "sync", "--yes", *given], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr[-500:]
            said = done.stderr
        (run,) = server.made
        assert run == (stage / "wandb-id").read_text().strip() and list(server.runs) == [run] and not server.unknown
        losses = [(line["trainer/global_step"], line["train/loss"]) for line in server.history(run)]
        assert [step for step, _ in losses] == [0, 1, 2, 3] and losses[2][1] == 0.5, losses
        assert "Finished" not in said, "what was uploaded is not uploaded again"
        assert server.summary(run)["eval/sft/accuracy"] == 0.5
        assert server.runs[run]["groupName"] == "sweep-1" and server.runs[run]["jobType"] == "sft"


def test_a_table_ends_where_its_bytes_do(tmp_path):
    """The text of all clips, the videos of as many as fit."""
    videos = []
    for i in range(3):
        videos.append(tmp_path / f"{i}.mp4")
        videos[-1].write_bytes(bytes([i]) * 1000)
    rows = [{"question": "what ?", "answer": "Red", "prediction": said} for said in ("red", "blue", "red")]
    shown = wandb_media.clips(rows, videos, tmp_path, 2500)
    assert len(shown["clips"].data) == 3 and len(shown["clip_videos"]) == 2
    assert [(row[0] is not None, row[4]) for row in shown["clips"].data] == [(True, True), (True, False), (False, True)]
    assert set(wandb_media.clips(rows, videos, tmp_path, 0)) == {"clips"}


def test_artifacts_without_wandb_are_refused_before_anything_starts(tmp_path, needles, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="logger.artifacts=last with logger=csv: .*add logger=wandb"):
        chain.run([*needles, "stage=sft", "logger.artifacts=last"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["best", "last"])
def test_a_checkpoint_is_an_artifact_where_it_is_asked_for(kind, tmp_path, needles, monkeypatch):
    """One, copied into the stage's folder; the best is what the lowest val/loss was measured of."""
    monkeypatch.chdir(tmp_path)
    few = ["stage=sft", "stage.steps=3", "stage.batch_size=4", "callback.media=0", "evaluate=false", "run=w"]
    far = ["stage.trainable={language: 30.0}", "trainer.val_every=1"]  # gets worse and worse
    chain.run([*needles, *few, *far, "logger=wandb", f"logger.artifacts={kind}"])
    stage = tmp_path / "runs" / "w" / "sft"
    written = logged(stage)
    assert b"w-sft" in written and kind.encode() in written
    staged = [path.read_bytes() for path in (stage / "wandb-data/artifacts/staging").iterdir()]
    held = stage / "checkpoints/last.ckpt"
    if kind == "best":
        found = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
        losses = {line["step"]: line["val/loss"] for line in found if "val/loss" in line}
        step = min(losses, key=losses.get)
        assert step < 2, losses
        held = stage / "best.ckpt"
        assert stored_step(held) == step + 1  # on the way Lightning counts from 0
    assert staged == [held.read_bytes()]


def test_the_lower_loss_is_the_best(tmp_path):
    kept, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    best = KeepBest(kept)
    assert best.of(last, 9, 0.5) == (last, 9, 0.5), "nothing was kept on the way"
    kept.touch()
    best.load_state_dict({"value": 0.4, "step": 4})
    assert best.of(last, 9, 0.5) == (kept, 4, 0.4) and best.of(last, 9, 0.3) == (last, 9, 0.3)
    assert best.of(last, 9, float("nan")) == (kept, 4, 0.4)
    assert wandb_media.artifact_name("sweep/a b=é-sft") == "sweep-a-b---sft"
