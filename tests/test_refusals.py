"""What is known before the work is said before the work; what a disk refuses is one line."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from _small import write_haystack
from _tiny import ROOT

import eval as evaluation
from hvlm.cli import main
from hvlm.config.check import check_files
from hvlm.config.compose import compose
from hvlm.config.settings import TrainerConfig
from hvlm.errors import UserError
from hvlm.io.files import folder_for
from hvlm.precision import DTYPES, choose_precision
from hvlm.rebuild import load, stored_config
from hvlm.training.chain import run

FEW = ["stage=sft", "stage.steps=1", "stage.batch_size=2", "stage.interleave=0", "callback.media=0"]
ASKED = ["benchmark.limit=2", "benchmark.blind=false", "benchmark.tries=1"]
OFFERED = typing.get_args(typing.get_type_hints(TrainerConfig)["precision"])


@pytest.mark.fault(85, 101)
@pytest.mark.parametrize(
    "override, words",
    [
        ("benchmark.split=nope", "benchmark.split=nope: the dataset has no such split"),
        ("benchmark.tasks=[nope]", "nope"),
        ("dataset.access=stream", "dataset.access=stream"),
    ],
)
def test_what_the_benchmark_would_refuse_is_said_before_training(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        run([*FEW, *needles, "run=late", override])
    assert not list((tmp_path / "runs").rglob("*.ckpt"))


@pytest.mark.fault(76)
def test_the_precisions_that_are_offered_are_those_that_both_know() -> None:
    assert set(OFFERED) == {"auto", *DTYPES}


@pytest.mark.fault(76)
@pytest.mark.parametrize("precision", OFFERED)
def test_an_offered_precision_trains_and_evaluates_or_is_refused_before_work(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [*FEW, *ASKED, *needles, "run=p", f"trainer.precision={precision}"]
    if precision == "16-mixed":
        with pytest.raises(UserError, match="needs a GPU; on a CPU use trainer.precision=auto or 32-true"):
            run(command)
        assert not list((tmp_path / "runs").rglob("*.ckpt"))
        return
    assert run(command).records
    checkpoint = tmp_path / "runs" / "p"
    assert evaluation.evaluate([f"checkpoint={checkpoint}", "benchmark.limit=1"])
    with pytest.raises(UserError, match="needs a GPU"):
        load(checkpoint, stored_config(checkpoint) | {"trainer": {"precision": "16-mixed", "accelerator": "gpu"}})


@pytest.mark.gpu
@pytest.mark.fault(76)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", OFFERED)
def test_an_offered_precision_trains_and_evaluates_on_a_gpu(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*FEW, *ASKED, *needles, "run=p", "trainer.accelerator=gpu", f"trainer.precision={precision}"]).records


def test_16_mixed_without_a_gpu_is_refused_whatever_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for accelerator in ("cpu", "gpu", "auto"):
        with pytest.raises(UserError, match="needs a GPU"):
            choose_precision("16-mixed", accelerator)
        assert choose_precision("auto", accelerator)[0] in DTYPES


@pytest.mark.fault(100)
def test_a_moment_after_the_video_is_refused(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    write_haystack(tmp_path)  # 6 seconds
    asked = [f"checkpoint={trained[0] / 'runs/tiny'}", "task=ask", f"ask.video={tmp_path / 'a.mp4'}",
             "ask.question=what's (this), é = 1 ?", f"out={tmp_path / 'out'}"]  # fmt: skip
    with pytest.raises(UserError, match=r"ask.at=100: .*a.mp4 ends at 6.00 s"):
        evaluation.evaluate([*asked, "ask.at=[3,100]"])
    with pytest.raises(UserError, match=r"ask.at\[0\]=-3: expected float of 0 or more"):
        evaluation.evaluate([*asked, "ask.at=[-3,5]"])
    lines = evaluation.evaluate([*asked, "ask.at=[3,6]"])
    assert [line["seconds"] for line in lines] == [3.0, 6.0]
    with pytest.raises(UserError, match="task=ask needs ask.question="):
        evaluation.evaluate([*asked, "ask.question= "])
    with pytest.raises(UserError, match="ask.fps=1000000000.0: expected float above 0 and at most 1000"):
        evaluation.evaluate([*asked, "ask.fps=1e9"])
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"^ask.video=.*broken.mp4: cannot be read as a video"):
        evaluation.evaluate([*asked, f"ask.video={tmp_path / 'broken.mp4'}"])


@pytest.mark.fault(85)
@pytest.mark.parametrize(
    "key", ["checkpoint", "init_from", "predictions", "ask.video", "benchmark.questions", "benchmark.path"]
)
def test_an_empty_file_name_is_not_the_current_folder(key: str) -> None:
    with pytest.raises(UserError, match=f"^{key}= is empty"):
        check_files(compose(["benchmark=choices", f"{key}="]))


def test_videos_of_a_published_layout_lie_in_the_copy(tmp_path: Path) -> None:
    copy = f"benchmark.path={tmp_path}"
    with pytest.raises(UserError, match="^benchmark.videos=video: no such file or folder"):
        check_files(compose(["benchmark=mlvu", copy, "benchmark.videos=video"]))
    (tmp_path / "video").mkdir()
    check_files(compose(["benchmark=mlvu", copy, "benchmark.videos=video"]))
    check_files(compose(["benchmark=mlvu", copy]))
    check_files(compose(["benchmark=mlvu"]))  # what is missing then is path=, which the benchmark says


@pytest.mark.fault(85)
def test_a_setting_that_the_chosen_room_has_not_lists_those_it_has_whatever_else_is_wrong() -> None:
    with pytest.raises(UserError, match="unknown key 'dataset.size'; known: .*path"):
        compose(["dataset=shards", "dataset.size=32", "dataset.clips=3", "dataset.path=x"])


@pytest.mark.fault(85)
@pytest.mark.parametrize("override", ["trainer.devices=2", "trainer.num_nodes=2"])
def test_several_processes_without_a_strategy_are_refused_before_work(override: str, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path), pytest.raises(UserError, match=f"{override} .*add trainer=ddp"):
        run([*FEW, override])
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(109)
def test_a_failed_first_try_leaves_the_run_s_name_free(
    needles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong folder, advice that is followed, a look at three steps, then the whole run: one name."""
    monkeypatch.chdir(tmp_path)
    first = ["stage=sft", "stage.steps=4", "stage.batch_size=2", "callback.media=0", "evaluate=false", "run=mine"]
    command = [*first, *needles, f"dataset.root={tmp_path / 'data'}", "dataset.text_chats=0", "dataset.shard_clips=25"]
    with pytest.raises(UserError, match="no such folder: /gone"):
        run([*command, "dataset.haystack=/gone"])
    with pytest.raises(UserError, match="set stage.interleave=0"):
        run([*command, "stage.interleave=0.2"])
    looked = run([*command, "debug=fast_dev_run"])
    assert looked.stages["sft"]["steps"] == 3
    whole = run([*command, "trainer.log_every=1", "trainer.cache_mb=0", "vision.frames_at_once=4"])
    assert whole.stages["sft"]["steps"] == 4 and whole.stages["sft"]["steps_here"] == 1, "it went on from the look"


# -------------------------------------------------------------------------------------------- what a disk refuses


def script(folder: Path, body: str, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "entry.py").write_text(
        f"from hvlm.cli import main\n@main\ndef entry(cfg, overrides):\n    {body}\nentry()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "entry.py", *arguments]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.fault(100)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("costs ${5}", marks=pytest.mark.slow),
        pytest.param(r"a \${b}", marks=pytest.mark.slow),
        "${oc.env:HOME}, what's that ?",
    ],
)
def test_a_question_is_text_from_the_shell_to_the_task(tmp_path: Path, text: str) -> None:
    done = script(tmp_path, "print(cfg['ask']['question'])", f"ask.question={text}")
    assert (done.stdout, done.returncode) == (text + "\n", 0), done.stderr


@pytest.mark.fault(101)
@pytest.mark.parametrize(
    "body, code, line",
    [
        ("raise OSError(28, 'No space left on device', 'runs/x')", 1, "error: runs/x: No space left on device;"),
        pytest.param("open('/proc/no/such', 'w')", 1, "", marks=pytest.mark.slow),
        pytest.param("open(__file__ + '/below', 'w')", 1, "entry.py/below: Not a directory", marks=pytest.mark.slow),
        pytest.param("raise KeyboardInterrupt", 130, "error: stopped by Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_what_the_machine_refuses_is_one_line(tmp_path: Path, body: str, code: int, line: str) -> None:
    done = script(tmp_path, body)
    assert done.returncode == code and line in done.stderr
    assert ("Traceback" in done.stderr) == (line == ""), "a file that the program itself does not find is its mistake"


def test_other_mistakes_keep_their_traceback() -> None:
    @main
    def entry(cfg: dict, overrides: list[str]) -> None:
        raise OSError(errno.ECONNRESET, "reset")

    with pytest.raises(OSError):
        entry([])


def test_a_failure_before_anything_is_written_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("[")
    out = tmp_path / "a" / "b"
    with pytest.raises(UserError, match="bad.jsonl"):
        evaluation.evaluate(["task=score", f"predictions={tmp_path}/bad.jsonl", f"out={out}"])
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt), folder_for(out, "out"):
        (out / "kept").write_text("")
        raise KeyboardInterrupt
    assert (out / "kept").exists(), "what was written stays"
    with pytest.raises(UserError), folder_for(out / "c", "out"):
        raise UserError("")
    assert not (out / "c").exists() and out.exists(), "what was there stays"
