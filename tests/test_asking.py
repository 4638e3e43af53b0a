"""How a benchmark is asked: again after a kill, by several processes, each video decoded and encoded once."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _tiny import CONF, Case, chat, model
from omegaconf import OmegaConf

from hvlm.benchmark.choices import Choices
from hvlm.commands import eval as evaluation
from hvlm.errors import UserError
from hvlm.evaluation import processes, progress
from hvlm.evaluation.ask import BY_LIKELIHOOD, ask
from hvlm.evaluation.evaluate import evaluate
from hvlm.evaluation.journal import Journal, count_clips, journal_of
from hvlm.evaluation.results import Label
from hvlm.evaluation.speed import measure
from hvlm.io.lock import locked
from hvlm.rebuild import Loaded
from hvlm.types import InputSpec
from hvlm.viz.media import write_mp4

LABEL = Label("own", "mean", 0)
VIDEOS, FRAMES = 7, 4
ASKED = (
    {"question": "what color is the ring ?", "options": ["red", "blue", "green"], "answer": "blue"},
    {"question": "which shape comes first ?", "options": ["ring", "square"], "answer": "ring"},
    {"question": "what color comes last ?", "options": ["red ring", "blue", "green square", "red"], "answer": 0},
)


class Data:
    """A dataset whose split nobody asks about."""

    access, max_tokens, too_long, decoder, decode_timeout, text_only = "index", 100, "refuse", "pyav", 60.0, False


@cache
def loaded() -> Loaded:
    vlm = model(Case("question_first", ()))
    config = {"trainer": {"num_workers": 0, "cache_mb": 0}, "domain": {"mixture": None, "adapter": "off"}, "seed": 0}
    config |= {
        "connector": {"_target_": "hvlm.connector.mean.Mean"},
        "resume": "auto",
        "adapters": None,
        "processes": 2,
    }
    size = vlm.vision.image_size
    return Loaded(vlm, chat(), Data(), InputSpec("question_first", FRAMES, size), "32-true", config)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three questions about each of seven videos, one of which is no video."""
    folder = tmp_path_factory.mktemp("asked")
    rows = []
    for i in range(VIDEOS):
        write_mp4(np.full((24, 3, 32, 32), 30 * i, np.uint8), folder / f"{i}.mp4", fps=8.0, scale=8)
        rows += [{"video": f"{i}.mp4", "id": f"{i}-{n}", **asked} for n, asked in enumerate(ASKED)]
    (folder / "broken.mp4").write_bytes(b"no video")
    rows.insert(4, {"video": "broken.mp4", "id": "broken", **ASKED[0]})
    file = folder / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def benchmark(questions: Path, **changes: Any) -> Choices:
    return Choices(questions=str(questions), **{"batch_size": 2, **changes})


@pytest.fixture(scope="module")
def whole(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict], list[str]]:
    """(predictions, results, names of pictures) of an evaluation that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    records = evaluate(loaded(), benchmark(questions), LABEL, out)
    assert not list(out.glob("answered*")), "a finished evaluation needs no journal"
    return (out / "predictions.jsonl").read_bytes(), figures(records), names(out)


def figures(records: list[dict]) -> list[dict]:
    return [{k: r[k] for k in ("variant", "metric", "value", "stderr", "n")} for r in records]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "clips").iterdir())


def in_a_fork(work: Callable[[], Any]) -> int:
    """The exit status of a child process that does the work; it shares nothing with us afterwards."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


class Counted:
    """A way to answer that writes the ids of what it answers into a file, dies in its n-th call, and takes so many
    seconds longer."""

    open_questions = False

    def __init__(self, file: Path, dies: int = 0, rest: float = 0.0) -> None:
        self._file, self._dies, self._rest = file, dies, rest

    def __call__(self, loaded: Any, benchmark: Any, clips: Any, variant: str) -> Any:
        self._dies -= 1
        if self._dies == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self._file, "a") as file:
            file.write("".join(f"{variant} {q.id}\n" for clip in clips for q in clip.questions))
        time.sleep(self._rest)
        return BY_LIKELIHOOD(loaded, benchmark, clips, variant)


@pytest.fixture
def one_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counting way answers as the one that it counts, so the same journal serves."""
    monkeypatch.setattr("hvlm.evaluation.journal.identity_of", lambda *_: "the same")


# ------------------------------------------------------------------------------------------------------- after a kill


def test_of_two_evaluations_into_one_folder_the_second_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the first one's journal away."""
    monkeypatch.setattr("hvlm.io.checkpoint.find_checkpoint", lambda path: path)
    cfg = {"checkpoint": str(tmp_path / "last.ckpt"), "task": "benchmark", "out": str(tmp_path / "eval")}
    with (
        locked(tmp_path / "eval", "out=eval"),
        pytest.raises(UserError, match=r"out=.*eval: process .*has been writing"),
    ):
        evaluation.ask(cfg)


@pytest.mark.parametrize("dies", [(1,), (3, 2), (5,)])
def test_a_killed_evaluation_asks_what_is_missing_and_ends_with_the_same_file(
    dies: tuple[int, ...], questions: Path, whole: tuple, tmp_path: Path, one_identity: None
) -> None:
    asked = tmp_path / "asked.txt"
    for n in dies:
        work = lambda n=n: evaluate(loaded(), benchmark(questions), LABEL, tmp_path, answer=Counted(asked, n))  # noqa: E731
        assert in_a_fork(work) == signal.SIGKILL
    records = evaluate(loaded(), benchmark(questions), LABEL, tmp_path, answer=Counted(asked))
    assert (tmp_path / "predictions.jsonl").read_bytes() == whole[0]
    assert figures(records) == whole[1]
    lines = asked.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 2 * 3 * VIDEOS, "nothing is asked twice"
    assert not list(tmp_path.glob("answered*"))


def test_what_a_kill_tears_off_is_asked_again_as_it_was(
    questions: Path, whole: tuple, tmp_path: Path, one_identity: None
) -> None:
    out = tmp_path / "first"
    in_a_fork(lambda: evaluate(loaded(), benchmark(questions), LABEL, out, answer=Counted(tmp_path / "x", 4)))
    written = (out / "answered.jsonl").read_bytes()
    ends = [i + 1 for i, c in enumerate(written) if c == ord("\n")]
    for cut in (3, ends[1] - 2, ends[-2] + 1, len(written)):
        again, asked = tmp_path / f"cut{cut}", tmp_path / f"{cut}.txt"
        again.mkdir()
        (again / "answered.jsonl").write_bytes(written[:cut])
        evaluate(loaded(), benchmark(questions), LABEL, again, answer=Counted(asked))
        assert (again / "predictions.jsonl").read_bytes() == whole[0], cut
        assert names(again) == whole[2] != [], cut
    assert len(asked.read_text().splitlines()) < 2 * 3 * VIDEOS, "of the whole journal nothing is asked again"


def test_a_kill_at_any_moment_costs_at_most_the_pass_that_was_under_way(
    questions: Path, whole: tuple, tmp_path: Path, one_identity: None
) -> None:
    asked = tmp_path / "asked.txt"
    own = benchmark(questions, batch_size=1, blind=False)  # a pass is a clip
    drawn, kept = random.Random(5), set()
    for _ in range(kills := 4):
        child = os.fork()
        if child == 0:
            try:
                evaluate(loaded(), own, LABEL, tmp_path, answer=Counted(asked, rest=0.03), contact_sheets=0)
            finally:
                os._exit(0)
        until, waited = len(lines_of(asked)) + drawn.choice((3, 6)), time.monotonic() + 60
        while len(lines_of(asked)) < until and time.monotonic() < waited:
            assert os.waitpid(child, os.WNOHANG)[0] == 0, "it ended before it was killed"
            time.sleep(0.001)
        time.sleep(drawn.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        known = journaled(tmp_path)
        lost = set(lines_of(asked)) - known
        assert known >= kept and len({line.rpartition("/")[0] for line in lost}) <= 1, lost
        kept = known
    evaluate(loaded(), own, LABEL, tmp_path, answer=Counted(asked), contact_sheets=0)
    lines = lines_of(asked)
    again = len(lines) - len(set(lines))
    print(f"{kills} kills: {again} of {len(set(lines))} questions asked again")
    assert len(set(lines)) == len(ASKED) * VIDEOS and kept and again <= kills * len(ASKED)
    once = tmp_path / "once"
    evaluate(loaded(), own, LABEL, once, contact_sheets=0)
    assert (tmp_path / "predictions.jsonl").read_bytes() == (once / "predictions.jsonl").read_bytes()


def test_a_journal_that_is_cut_anywhere_holds_whole_passes_and_names_what_it_drops(
    questions: Path, tmp_path: Path, one_identity: None, caplog: pytest.LogCaptureFixture
) -> None:
    own = benchmark(questions, blind=False)
    in_a_fork(lambda: evaluate(loaded(), own, LABEL, tmp_path, answer=Counted(tmp_path / "x", 4)))
    file = tmp_path / "answered.jsonl"
    written = file.read_bytes()
    lines = [json.loads(line) for line in written.splitlines()]
    assert [(line.get("question") or "").rpartition("/")[2] for line in lines[1:5]] == ["0-0", "0-1", "0-2", "1-0"], (
        "a line for each question"
    )
    passes, held = [], 0
    for line, end in zip(lines, ends_of(written), strict=True):
        held += len(line.get("predictions", ()))
        passes += [(end, held)] if "end" in line else []
    assert [n for _, n in passes] == [6, 9, 15], "the broken clip shares the second pass"
    for cut in [*range(len(lines[0]), len(written), 211), *(end + n for end in ends_of(written) for n in (-1, 0))]:
        file.write_bytes(written[:cut])
        caplog.clear()
        found = Journal(tmp_path, "the same").found.values()
        assert sum(len(one.predictions) for one in found) == max([n for end, n in passes if end <= cut], default=0), cut
    file.write_bytes(written[: ends_of(written)[-2] - 1])
    Journal(tmp_path, "the same")
    assert "no whole line" in caplog.text and "3-1" in caplog.text, "the questions that are asked again are named"


def journaled(folder: Path) -> set[str]:
    """``variant question`` of each line of whole passes."""
    rows = [json.loads(line) for line in lines_of(folder / "answered.jsonl")]
    last = max((i for i, row in enumerate(rows) if "end" in row), default=0)
    return {f"{row['variant']} {row['question']}" for row in rows[:last] if "question" in row}


def lines_of(file: Path) -> list[str]:
    """Those that are whole."""
    return file.read_text().split("\n")[:-1] if file.exists() else []


def ends_of(data: bytes) -> list[int]:
    return [i + 1 for i, c in enumerate(data) if c == ord("\n")]


def test_pictures_of_what_was_answered_before_the_kill_are_made_after_it(
    questions: Path, tmp_path: Path, one_identity: None
) -> None:
    ways = {"once": [], "killed": [3]}
    for name, dies in ways.items():
        for n in dies:
            in_a_fork(
                lambda n=n: evaluate(
                    loaded(), benchmark(questions), LABEL, tmp_path / "killed", answer=Counted(tmp_path / "x", n)
                )
            )
        evaluate(loaded(), benchmark(questions), LABEL, tmp_path / name, contact_sheets=4)
    once, killed = (tmp_path / name / "clips" for name in ways)
    assert names(once.parent) == names(killed.parent) != []
    assert all((killed / path.name).read_bytes() == path.read_bytes() for path in once.iterdir())


def test_answers_of_another_model_benchmark_or_of_before_resume_never_are_not_taken(
    questions: Path, tmp_path: Path
) -> None:
    def kept(one: Loaded, asked: Choices) -> int:
        return journal_of(one, asked, BY_LIKELIHOOD, tmp_path).kept

    journal = journal_of(loaded(), benchmark(questions), BY_LIKELIHOOD, tmp_path)
    ask(loaded(), benchmark(questions), "tiny", tmp_path, journal=journal)
    journal.close()
    assert kept(loaded(), benchmark(questions)) == VIDEOS
    assert kept(loaded(), benchmark(questions, batch_size=5, blind=False)) == VIDEOS, "these change no answer"
    assert kept(loaded(), benchmark(questions, scoring="loglik_sum")) == 0
    assert kept(loaded()._replace(precision="bf16-mixed"), benchmark(questions)) == 0
    assert kept(loaded()._replace(config={**loaded().config, "resume": "never"}), benchmark(questions)) == 0
    weight = next(loaded().model.language.parameters())
    before = weight.data.clone()
    try:
        weight.data.mul_(1.5)
        assert kept(loaded(), benchmark(questions)) == 0
    finally:
        weight.data.copy_(before)


# ------------------------------------------------------------------------------------------------------ once per video


def test_each_video_is_decoded_and_encoded_once_and_counted(
    questions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        work = ask(loaded(), benchmark(questions), "tiny", tmp_path).work
    assert (work.questions, work.clips, work.decoded, work.frames) == (
        3 * VIDEOS, VIDEOS, VIDEOS + 1, VIDEOS * FRAMES,
    ), "answers of one word and of several, about the same frames; the broken video was tried"  # fmt: skip
    assert "21 questions about 7 videos in " in caplog.text and "8 videos decoded, 28 frames encoded" in caplog.text


def test_three_questions_a_video_go_two_and_a_half_times_as_fast_as_one_by_one(
    questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", time.process_time)  # what other programs do here is no matter
    speed = measure(loaded(), benchmark(questions, batch_size=8, blind=False), BY_LIKELIHOOD)
    print("\n".join(speed.lines()))
    assert speed.together.questions == speed.alone.questions == 3 * VIDEOS
    assert speed.alone.frames == 3 * speed.together.frames
    assert speed.ratio >= 2.5, speed.lines()


# --------------------------------------------------------------------------------------------------- several processes


def settings(questions: Path) -> dict[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(CONF / "benchmark" / "choices.yaml"))
    return {**node, "batch_size": 2, "questions": str(questions)}


def together(questions: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = {**loaded().config, "benchmark": settings(questions)}
    monkeypatch.setattr(processes, "load", lambda path, cfg: loaded()._replace(config=cfg))
    monkeypatch.setattr(processes, "LOOK", 0.02)
    processes.ask_together(Path("any.ckpt"), cfg, out, start="fork")


def test_two_processes_answer_all_and_the_evaluation_asks_nothing_more(
    questions: Path, whole: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_identity: None
) -> None:
    together(questions, tmp_path, monkeypatch)
    shares = [
        sum(b'"times"' in line for line in f.read_bytes().split(b"\n")) for f in tmp_path.glob("answered.*.jsonl")
    ]
    assert sorted(shares) == [3, 4] and count_clips(tmp_path, "mean") == VIDEOS, (
        "batches of two clips, by turns; the broken one is nobody's"
    )
    asked = tmp_path / "asked.txt"
    records = evaluate(loaded(), benchmark(questions), LABEL, tmp_path, answer=Counted(asked))
    assert all(line.startswith("blind") for line in asked.read_text().splitlines())
    assert figures(records) == whole[1]
    assert (tmp_path / "predictions.jsonl").read_bytes() == whole[0]


def test_what_a_killed_process_leaves_is_asked_by_the_evaluation(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_identity: None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    real = processes.ask_share

    def dies(*given: Any) -> None:
        if given[-2] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*given)

    monkeypatch.setattr(processes, "ask_share", dies)
    together(questions, tmp_path, monkeypatch)
    assert "process 1 of 2 ended with -9" in caplog.text
    asked = tmp_path / "asked.txt"
    evaluate(loaded(), benchmark(questions, blind=False), LABEL, tmp_path, answer=Counted(asked))
    assert 0 < len(asked.read_text().splitlines()) < 3 * VIDEOS


def test_what_a_process_refuses_is_said_in_one_line(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"^benchmark.questions=.*cannot be read"):
        together(questions.parent / "nowhere" / "x.jsonl", tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"^processes=2: where a router picks"):
        cfg = {**loaded().config, "adapters": ["a"], "benchmark": settings(questions)}
        processes.ask_together(Path("any.ckpt"), cfg, tmp_path)


# ------------------------------------------------------------------------------------------------------------ progress


def test_progress_says_how_long_it_will_take(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO), progress.Asking("asking m", 100, 20, every=10) as bar:
        bar._terminal = False
        bar.at(20, 0)
        clock[0] += 60
        bar.at(40, 60)
        clock[0] += 1
        bar.at(41, 63)
    assert caplog.messages == ["asking m: 40 of 100 videos, 1 questions a second, 3 min 0 s left"]
    assert progress.duration(3725) == "1 h 2 min"
