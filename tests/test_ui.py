"""The page on which videos are asked about: in a real browser where there is one, its parts without."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from test_library import TEXTS, TINY

import hvlm
from experiments.page.window import Window, free_port, missing
from hvlm import commands
from hvlm.commands import ui
from hvlm.errors import UserError
from hvlm.ui.asking import Pictures, in_a_thread, tell
from hvlm.ui.drawing import SHOWN, strips
from hvlm.ui.serve import Settings, check, videos_of

QUESTION = "what color is the object ?"


@pytest.fixture(scope="module")
def run(trained: tuple[Path, list[str]]) -> Path:
    return trained[0] / "runs" / "tiny"


@pytest.fixture(scope="module")
def videos(trained: tuple[Path, list[str]]) -> Path:
    return Path(next(o.split("=", 1)[1] for o in trained[1] if o.startswith("dataset.haystack=")))


@pytest.fixture(scope="module")
def model(run: Path) -> hvlm.Model:
    return hvlm.load(run, device="cpu")


def test_an_answer_comes_word_by_word_and_is_the_one_of_answer(model: hvlm.Model, videos: Path) -> None:
    steps = list(tell(model, str(videos / "a.mp4"), QUESTION, None, 6))
    assert steps[-1].text == model.answer(videos / "a.mp4", QUESTION, max_new_tokens=6)
    written = [int(step.figures["tokens written"]) for step in steps]
    assert written == [*range(1, len(steps)), len(steps) - 1], "a step for each word, and one for the pictures"
    last = steps[-1]
    assert all(step.pictures is None for step in steps[:-1]) and last.pictures is not None
    frames = int(last.figures["frames"])
    assert last.pictures.frames.shape[0] == last.pictures.gaze.shape[0] == frames == model.inputs.num_frames
    assert int(last.figures["KV cache"].split()[0].replace(",", "")) > 0
    assert last.figures["visual tokens"] == str(frames), "connector=foveated: one for each frame"


def test_the_model_is_shown_the_question_and_not_the_end_of_an_answer(videos: Path) -> None:
    """By a model that repeats what it read last: "red" after the opening of its turn, the end after an end."""
    model = hvlm.build(texts=TEXTS, **TINY, device="cpu")
    *_, opening, end = model.batch(videos / "a.mp4", [QUESTION]).input_ids_KS[0].tolist()
    embedding = model.vlm.language.model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[model.chat.to_fast().convert_tokens_to_ids("red")] = 2 * embedding[opening]
    assert end in model.chat.end_ids and model.vlm.head.logits(embedding[end]).argmax() == end
    last = list(tell(model, str(videos / "a.mp4"), QUESTION, 4, 3))[-1]
    assert last.text == model.answer(videos / "a.mp4", QUESTION, num_frames=4, max_new_tokens=3) == "red red red"


def test_what_was_merged_is_drawn(videos: Path) -> None:
    merging = hvlm.build(merger="tome", connector="patches", texts=TEXTS, **TINY, device="cpu")
    last = list(tell(merging, str(videos / "a.mp4"), QUESTION, 4, 2))[-1].pictures
    assert last.gaze is None and last.merged.shape == last.frames.shape
    assert "merged" in strips(last) and f"{last.tokens[0]} tokens" in strips(last)


def test_a_long_row_of_frames_is_thinned_and_says_so() -> None:
    many = Pictures(np.arange(200.0), np.zeros((200, 3, 4, 4), np.uint8))
    shown = strips(many)
    assert shown.count("<img") == SHOWN and f"{SHOWN} of 200 frames" in shown and "199.0 s" in shown


def test_words_that_the_model_cannot_read_are_named(model: hvlm.Model, videos: Path) -> None:
    first = next(iter(tell(model, str(videos / "a.mp4"), "what color is the zeppelin ?", None, 1)))
    assert "zeppelin" in first.note


def test_steps_are_computed_in_one_thread_which_ends_with_its_listener() -> None:
    seen, closed = [], threading.Event()

    def steps() -> Iterator[int]:
        try:
            for i in range(1_000_000):
                seen.append((threading.get_ident(), torch.is_inference_mode_enabled()))
                yield i
        finally:
            closed.set()

    def make() -> Iterator[int]:
        with torch.inference_mode():
            yield from steps()

    came = in_a_thread(make)
    assert [next(came), next(came)] == [0, 1]
    came.close()
    assert closed.wait(10) and len({thread for thread, _ in seen}) == 1 and all(mode for _, mode in seen)
    assert threading.get_ident() not in {thread for thread, _ in seen}

    def broken() -> Iterator[int]:
        raise UserError("clip.mp4: no video")
        yield 0

    with pytest.raises(UserError, match=r"clip\.mp4: no video"):
        next(in_a_thread(broken))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "checkpoint= is missing"),
        (["runs/demo"], "hvlm ui runs/demo: expected key=value"),
        (["checkpoint=a", "checkpoint=b"], "checkpoint is given twice: a and b"),
        (["checkpoint=a", "prot=1"], "unknown key 'prot'; did you mean 'port'"),
        (["checkpoint=a", "port=soon"], "port"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        commands.run(["ui", *words])
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err and err.count("\n") == 1


def test_help_says_every_setting(capsys: pytest.CaptureFixture) -> None:
    commands.run(["ui", "--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name}= " in shown for name in Settings.__dataclass_fields__)


def test_settings_out_of_range_and_folders_without_videos_are_refused(tmp_path: Path, videos: Path) -> None:
    assert ui.read(["checkpoint=5", "port=80"]) == {"checkpoint": "5", "port": 80}
    with pytest.raises(UserError, match="port=0: expected 1 to 65535"):
        check(Settings("run", port=0))
    with pytest.raises(UserError, match="upload_mb=0"):
        check(Settings("run", upload_mb=0))
    with pytest.raises(UserError, match="no such folder"):
        videos_of(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no video in it"):
        videos_of(str(tmp_path))
    assert list(videos_of(str(videos))) == ["a.mp4", "b.mp4"]
    assert Settings("run").host == "127.0.0.1", "reachable from this machine alone"


# In a browser.


in_a_browser = pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}")


@pytest.fixture(scope="module")
def address(run: Path, videos: Path) -> Iterator[str]:
    import os

    from hvlm.ui.serve import served

    settings = Settings(str(run), str(run / "sft"), str(videos), port=free_port(), upload_mb=1, max_new_tokens=4)
    with served(settings) as url:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        yield url
    assert not folder.exists(), "temporary files go with the page"


@pytest.fixture
def windows(address: str) -> Iterator[Callable[[], Window]]:
    opened: list[Window] = []

    def another() -> Window:
        opened.append(Window(address))
        return opened[-1]

    yield another
    for window in opened:
        window.driver.quit()


@in_a_browser
def test_a_good_file_is_answered_by_both_models_and_removed_afterwards(
    windows: Callable[[], Window], model: hvlm.Model, videos: Path
) -> None:
    import os

    window = windows()
    window.upload(videos / "a.mp4")
    window.ask(QUESTION)
    window.until(lambda: window.value("status") == "done", "the answer")
    assert window.value("answer0") == model.answer(videos / "a.mp4", QUESTION, max_new_tokens=4)
    for i in range(2):
        text = window.all(f"#figures{i}")[0].text
        assert all(name in text for name in ("visual tokens", "first token after", "KV cache", "bytes"))
        assert len(window.all(f"#pictures{i} .gaze img")) == model.inputs.num_frames
    kept = Path(os.environ["GRADIO_TEMP_DIR"])
    assert list(kept.rglob("a.mp4"))
    window.driver.get("about:blank")
    window.until(lambda: not list(kept.rglob("a.mp4")), "the removal of the upload")


@in_a_browser
def test_files_that_are_no_videos_are_one_line_and_the_page_goes_on(
    windows: Callable[[], Window], videos: Path, tmp_path: Path
) -> None:
    window = windows()
    (tmp_path / "notes.txt").write_text("not a video")
    (tmp_path / "nothing.mp4").touch()
    (tmp_path / "larger.mp4").write_bytes(b"\0" * (2 << 20))
    for name in ("notes.txt", "nothing.mp4"):
        window.upload(tmp_path / name)
        window.ask(QUESTION)
        window.until(lambda name=name: name in window.value("status"), f"what is wrong with {name}")
        said = window.value("status")
        assert "\n" not in said and "/" not in said.split(":")[0], f"no path of the server: {said}"
        assert window.value("answer0") == ""
        window.driver.refresh()
        window.until(lambda: window.all("#ask"), "the page")
    window.all("#video input[type=file]")[0].send_keys(str(tmp_path / "larger.mp4"))
    window.until(lambda: "size" in window.all("body")[0].text.lower(), "that the file is too large")
    window.driver.refresh()
    window.until(lambda: window.all("#ask"), "the page")
    window.ask(QUESTION)
    window.until(lambda: window.value("status") == "Choose a video first.", "what is missing")
    window.upload(videos / "a.mp4")
    window.ask(QUESTION)
    window.until(lambda: window.value("status") == "done", "the answer")


@in_a_browser
def test_a_very_long_video_is_read_evenly(windows: Callable[[], Window], tmp_path: Path, model: hvlm.Model) -> None:
    """Ten hours, a picture every ten seconds."""
    import av

    with av.open(str(tmp_path / "hours.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(1, 10), options={"preset": "ultrafast", "g": "30"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(3_600):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode())
    window = windows()
    window.upload(tmp_path / "hours.mp4")
    window.ask(QUESTION)
    window.until(lambda: window.value("status") == "done", "the answer")
    seconds = [float(f.text.split()[0]) for f in window.all("#pictures0 .gaze figcaption")]
    assert len(seconds) == model.inputs.num_frames
    assert seconds[0] < 36_000 / len(seconds) and seconds[-1] > 36_000 * (1 - 1 / len(seconds)), seconds


@in_a_browser
def test_two_users_at_once_get_their_own_answers(
    windows: Callable[[], Window], model: hvlm.Model, videos: Path
) -> None:
    questions = [QUESTION, "what shape is the object ?"]
    both = [windows(), windows()]
    for window, name in zip(both, ("a.mp4", "b.mp4"), strict=True):
        window.upload(videos / name)
    for _ in range(3):
        for window, question in zip(both, questions, strict=True):
            window.ask(question)
        for window in both:
            window.until(lambda window=window: window.value("status") == "done", "the answer")
    for window, name, question in zip(both, ("a.mp4", "b.mp4"), questions, strict=True):
        assert window.value("answer0") == model.answer(videos / name, question, max_new_tokens=4)
