"""Watching a video frame by frame gives what autoregressive reading of the whole clip gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from _tiny import ASKED, Case, Variant, batch_of, chat, clip, model, side

import eval as evaluation
from hvlm.data.decode import decode, frames_of
from hvlm.data.video import VideoDecodeError
from hvlm.errors import UserError
from hvlm.evaluation.generate import generate
from hvlm.evaluation.streaming import StreamingReader
from hvlm.model import VLM
from hvlm.viz.media import write_mp4

WORDS = 6  # of an answer
COMPARED = (1, 3, 6)  # frames after which answers are compared


def foveated(order: str, mode: str = "coarse_fine") -> VLM:
    return model(Case(order, (Variant("vision", "dinov2_tiny"), Variant("connector", "foveated", (("mode", mode),)))))


def offline(vlm: VLM, frames: int, row: tuple[str, str]) -> str:
    batch = batch_of(clip(5, 6, [row], vlm.order, side(vlm)), size=side(vlm))
    cut = batch._replace(
        frames_BTCHW=batch.frames_BTCHW[:, :frames], frame_time_BT=batch.frame_time_BT[:, :frames],
        frame_mask_BT=batch.frame_mask_BT[:, :frames],
    )  # fmt: skip
    with vlm.connector.using("autoregressive"):
        return generate(vlm, chat(), cut, WORDS)[0]


def pixels(vlm: VLM) -> torch.Tensor:
    return batch_of(clip(5, 6, ASKED[:1], vlm.order, side(vlm)), size=side(vlm)).frames_BTCHW[0]


def test_with_the_video_first_anything_may_be_asked_at_any_moment() -> None:
    vlm = foveated("video_first")
    watcher = StreamingReader(vlm, chat())
    with pytest.raises(UserError, match="nothing was seen yet"):
        watcher.answer(ASKED[0][0])
    answers = set()
    for i, frame in enumerate(pixels(vlm), 1):
        watcher.read_frame(frame)
        assert watcher.cache.get_seq_length() == i, "one position a frame, and none for questions"
        for row in ASKED[: 1 + i % 2] if i in COMPARED else ():
            said = watcher.answer(row[0], WORDS)
            answers.add(said)
            assert said == offline(vlm, i, row)
            assert watcher.answer(row[0], WORDS) == said, "asking leaves no trace"
    assert len(answers) > 2, "the answers must differ, or this sees nothing"


def test_with_the_question_first_its_answer_may_be_had_at_any_moment() -> None:
    vlm = foveated("question_first")
    answers = set()
    for row in ASKED:
        watcher = StreamingReader(vlm, chat(), row[0])
        for i, frame in enumerate(pixels(vlm), 1):
            watcher.read_frame(frame)
            if i in COMPARED:
                said = watcher.answer(max_new_tokens=WORDS)
                answers.add(said)
                assert said == offline(vlm, i, row)
    assert len(answers) > 2
    with pytest.raises(UserError, match="order=question_first: it was asked"):
        watcher.answer("what ?")


def test_what_cannot_watch_is_refused() -> None:
    vlm = foveated("question_first")
    with pytest.raises(UserError, match="question is needed before the first frame"):
        StreamingReader(vlm, chat())
    for vlm in (foveated("video_first", "coarse"), model(Case("video_first", (Variant("connector", "mean"),)))):
        with pytest.raises(UserError, match="needs a model with connector=foveated"):
            StreamingReader(vlm, chat())


def test_frames_of_a_stream_are_those_of_the_sampler(tmp_path: Path) -> None:
    """Both look at the middles of equal spans of time: the stream at fps, the sampler at as many frames as fit."""
    rng = np.random.default_rng(0)
    video = np.kron(rng.integers(0, 256, (20, 3, 4, 4), np.uint8), np.ones((1, 1, 8, 8), np.uint8))
    path = write_mp4(video, tmp_path / "v.mp4", fps=10.0, scale=1)
    stream = list(frames_of(path, 5.0, (32, 32)))
    whole, _ = decode(path.read_bytes(), 10, name="v", size=(32, 32))
    assert [seconds for _, seconds in stream] == pytest.approx([0.1 + 0.2 * i for i in range(10)])
    # The sampler takes the nearest frame, the stream the one that is shown: here each shows the same or the one before.
    before, _ = decode(path.read_bytes(), 20, name="v", size=(32, 32))
    for i, (frame, _) in enumerate(stream):
        assert any(np.array_equal(frame, other) for other in before[2 * i : 2 * i + 2])
    assert len(whole) == len(stream)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(VideoDecodeError, match="bad.mp4"):
        next(frames_of(tmp_path / "bad.mp4", 1.0, (32, 32)))


def test_from_the_command_line(
    trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, overrides = trained
    monkeypatch.chdir(folder)
    haystack = next(o.split("=", 1)[1] for o in overrides if o.startswith("dataset.haystack="))
    common = ["task=ask", "checkpoint=runs/tiny", f"out={tmp_path}", f"ask.video={haystack}/a.mp4"]
    lines = evaluation.evaluate([*common, "ask.question=what color is the object ?", "ask.at=[1,2.5]", "ask.fps=2"])
    assert [(line["seconds"], line["frames"]) for line in lines] == [(1.0, 2), (2.5, 5)]
    written = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    assert [w["answer"] for w in written] == [line["answer"] for line in lines]
    (end,) = evaluation.evaluate([*common, "ask.question=what shape is the object ?"])
    assert end["frames"] == 24  # 6 s at 4 frames a second
    for missing, words in ((["task=ask", "checkpoint=runs/tiny"], "ask.video"), (common, "ask.question")):
        with pytest.raises(UserError, match=f"task=ask needs {words}"):
            evaluation.evaluate(missing)
