"""Watching a video frame by frame gives what autoregressive reading of the whole clip gives."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from _tiny import ASKED, Case, Variant, batch_of, chat, clip, model, side
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

import eval as evaluation
from hvlm.connector import foveated as foveated_reading
from hvlm.data.decode import decode, frames_of
from hvlm.data.video import VideoDecodeError
from hvlm.errors import UserError
from hvlm.evaluation import offline as offline_reading
from hvlm.evaluation import streaming as stream_reading
from hvlm.evaluation.generate import generate, write
from hvlm.evaluation.offline import answer_offline
from hvlm.evaluation.sampling import Sampling
from hvlm.evaluation.streaming import StreamingReader
from hvlm.evaluation.watch import why_in_one_piece
from hvlm.io.head_patterns import write_pattern
from hvlm.kvcache.duo import Duo
from hvlm.kvcache.streaming import Streaming
from hvlm.model import VLM
from hvlm.rebuild import Loaded
from hvlm.text import chat as chatting
from hvlm.types import InputSpec
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


@pytest.mark.parametrize("prefill", ["mask", "chunk"])
def test_a_cache_that_forgets_watches_in_bounded_memory_and_asking_leaves_no_trace(prefill: str) -> None:
    vlm = foveated("video_first")
    vlm.kvcache = Streaming(sink=1, recent=2, prefill=prefill, **vlm.language.cache_sizes)
    asked, silent = StreamingReader(vlm, chat()), StreamingReader(vlm, chat())
    memory = []
    for frame in pixels(vlm):
        asked.read_frame(frame)
        silent.read_frame(frame)
        memory.append(asked.cache.nbytes)
        asked.answer(ASKED[0][0], WORDS)
    assert asked.answer(ASKED[1][0], WORDS) == silent.answer(ASKED[1][0], WORDS)
    assert torch.equal(asked.query, silent.query) and asked.cache.get_seq_length() == 6
    assert memory[2:] == [vlm.kvcache.bytes(100)] * 4, "full after three frames, and never more"


@torch.inference_mode()
def test_a_question_is_read_token_by_token_where_pieces_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of one token each, and so the same as what sees sink and recent at every token."""
    vlm, newest = foveated("video_first"), []

    def writing(vlm: VLM, chat: Any, cache: Any, state: torch.Tensor, *how: Any) -> torch.Tensor:
        newest.append(state)
        return write(vlm, chat, cache, state, *how)

    monkeypatch.setattr(stream_reading, "write", writing)
    ids, at = chat().encode_prompt(ASKED[0][0], vlm.order)
    for prefill in ("mask", "chunk"):
        vlm.kvcache = Streaming(sink=1, recent=2, prefill=prefill, **vlm.language.cache_sizes)
        watcher = StreamingReader(vlm, chat())
        for frame in pixels(vlm):
            watcher.read_frame(frame)
        watcher.answer(ASKED[0][0], WORDS)
    torch.testing.assert_close(newest[1], newest[0], rtol=0, atol=1e-5)
    at_once = watcher._read(ids[at:], watcher.cache.copy())[:, -1]
    assert (at_once - newest[1]).abs().max() > 1e-3, "or the pieces do not matter here"


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("order", ["video_first", "question_first"])
@pytest.mark.parametrize("connector", ["mean", "patches", "coarse", "foveated"])
def test_a_stream_answers_as_the_whole_clip_read_through_the_same_cache(
    connector: str, order: str, begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the cache keeps: half of the heads everything, or none. begins: a token begins each text."""
    if begins:
        monkeypatch.setattr(chatting, "_visual_at", lambda laid, order: laid.after_question if order[0] == "q" else 1)
    rooms = (Variant("connector", connector),) if connector in ("mean", "patches") else ()
    vlm = model(Case(order, rooms)) if rooms else foveated(order, "coarse" if connector == "coarse" else "coarse_fine")
    frames, states = pixels(vlm), {}
    for share in (0.0, 0.5, 1.0):
        vlm.kvcache = Duo(retrieval=share, sink=2, recent=3, **vlm.language.cache_sizes)
        # A look is steered by what the cache keeps, in a stream; offline by all, so there it is given the same.
        monkeypatch.setattr(foveated_reading, "PastKV", vlm.kvcache.new)
        for question in [row[0] for row in ASKED[:2]]:
            watcher = StreamingReader(vlm, chat(), question if order == "question_first" else None)
            for i, frame in enumerate(frames, 1):
                watcher.read_frame(frame)
                if i not in COMPARED:
                    continue
                found = next_word(watcher, question)
                states[share, question, i] = found
                if connector == "foveated" and begins and order == "video_first":
                    continue  # offline the first look knows of no text
                expected, words = offline_word(vlm, i, question)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
                assert watcher.answer(None if watcher.question else question, WORDS) == words
    for (share, question, i), state in states.items():  # what is compared depends on what was kept
        assert i < 6 or share == 1.0 or not torch.allclose(state, states[1.0, question, i], atol=1e-2)


@torch.inference_mode()
def next_word(watcher: StreamingReader, question: str) -> torch.Tensor:
    """Logits of the answer's first word."""
    ids, at = watcher.chat.encode_prompt(question, watcher.model.order)
    return watcher.model.head.logits(watcher._read(ids[at:], watcher.cache.copy())[:, -1])


@torch.inference_mode()
def offline_word(vlm: VLM, frames: int, question: str) -> tuple[torch.Tensor, str]:
    """The same of the whole clip, and the answer."""
    batch = batch_of(clip(5, 6, [(question, "")], vlm.order, side(vlm)), size=side(vlm))
    cut = batch._replace(
        frames_BTCHW=batch.frames_BTCHW[:, :frames], frame_time_BT=batch.frame_time_BT[:, :frames],
        frame_mask_BT=batch.frame_mask_BT[:, :frames],
    )  # fmt: skip
    prompt = cut.attention_mask_KS & (cut.loss_mask_KS.cumsum(1) == 0)
    with vlm.connector.using("autoregressive") if vlm.connector.steers else contextlib.nullcontext():
        sequence = vlm.sequence(cut._replace(attention_mask_KS=prompt, loss_mask_KS=prompt & False))
        state = vlm.hidden(sequence, vlm.kvcache.new())[:, int(sequence.mask_KL.sum()) - 1]
        return vlm.head.logits(state), generate(vlm, chat(), cut, WORDS)[0]


def test_hours_are_watched_in_the_memory_of_the_window(caplog: pytest.LogCaptureFixture) -> None:
    """Of a streaming head nothing is kept that grows, not even masks; of the frames themselves nothing at all."""
    vlm = model(Case("video_first", (Variant("connector", "mean"),)))
    frame, held = pixels(vlm)[0], {}
    vlm.language.max_positions = 60
    for share in (0.0, 0.5):
        vlm.kvcache = Duo(retrieval=share, sink=2, recent=6, **vlm.language.cache_sizes)
        watcher, sizes, kv = StreamingReader(vlm, chat()), [], []
        for i in range(100):
            watcher.read_frame(frame + i % 7)
            if i % 20 == 19:
                sizes.append(sum(t.untyped_storage().nbytes() for t in tensors_of(watcher)))
                kv.append(watcher.cache.nbytes)
        held[share] = sizes
        assert kv == [vlm.kvcache.bytes(n) for n in range(20, 101, 20)]
    assert len(set(held[0.0])) == 1 and held[0.5][-1] > held[0.5][0]
    said = [r.message for r in caplog.records if "made for 60 positions" in r.message]
    assert len(said) == 2 and said[0].startswith("frame 61:"), "once for each watcher"


def tensors_of(watcher: StreamingReader) -> list[torch.Tensor]:
    """Those that a watcher leads to, each storage once; not the model's own."""
    own = {t.untyped_storage().data_ptr() for t in [*watcher.model.parameters(), *watcher.model.buffers()]}
    found, seen, todo = {}, set(), [watcher.query, watcher.cache]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, torch.nn.Module):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            if one.untyped_storage().data_ptr() not in own:
                found[one.untyped_storage().data_ptr()] = one
        elif isinstance(one, dict):
            todo += one.values()
        elif isinstance(one, list | tuple | set):
            todo += one
        elif hasattr(one, "__dict__"):
            todo += vars(one).values()
    return list(found.values())


@pytest.mark.parametrize(
    "room, forgets, stream, reason",
    [
        ("foveated", False, None, None), ("mean", False, None, "ask.stream=true"), ("mean", True, None, None),
        ("mean", False, True, None), ("foveated", True, False, "ask.stream=false"),
        ("longvlm", True, None, "reads each frame alone"),
    ],
)  # fmt: skip
def test_who_watches_as_the_video_comes_in(room: str, forgets: bool, stream: bool | None, reason: str | None) -> None:
    vlm = model(Case("video_first", (Variant("connector", room),)))
    if forgets:
        vlm.kvcache = Streaming(**vlm.language.cache_sizes)
    found = why_in_one_piece(vlm, stream)
    assert (found is None) == (reason is None) and (reason or "") in (found or "")
    if room == "longvlm":
        with pytest.raises(UserError, match="ask.stream=true: connector= must be one that reads each frame alone"):
            why_in_one_piece(vlm, True)


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
    for room, words in (
        (("connector", "longvlm"), "reads each frame alone"), (("merger", "tome"), "merger= must be none"),
        (("attention", "full"), "attention= must be none"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            StreamingReader(model(Case("video_first", (Variant(*room),))), chat())


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


def lossless(frames_TCHW: np.ndarray, path: Path) -> Path:
    """Ten frames a second, each by itself: x264 looks ahead, and where its process has done other work before, it does
    not make the same frames of the same pixels every time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames_TCHW.shape[2:], "bgr0"
        for frame in frames_TCHW:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.transpose(1, 2, 0)), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


@pytest.mark.fault(111)
@pytest.mark.parametrize(
    "room",
    [("connector", "mean"), ("connector", "patches"), ("attention", "full"), ("merger", "tome"), ("merger", "motion")],
)
def test_what_cannot_watch_reads_what_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: tuple[str, str]
) -> None:
    """The answer at 1 s is that about the first second alone, whatever comes later."""
    read: list[torch.Tensor] = []

    def generating(vlm: VLM, chat: Any, batch: Any, *how: Any) -> list[str]:
        read.append(batch.frames_BTCHW)
        return generate(vlm, chat, batch, *how)

    monkeypatch.setattr(offline_reading, "generate", generating)
    vlm = model(Case("question_first", (Variant(*room),)))
    size, inputs = side(vlm), InputSpec("question_first", 4, side(vlm), (2, 2) if vlm.merger.wants_flow else None)
    reading = {"decoder": "pyav", "decode_timeout": None}
    loaded = Loaded(vlm, chat(), None, inputs, "32-true", {"dataset": reading})
    blocks = np.random.default_rng(3).integers(0, 256, (40, 3, 4, 4), np.uint8)
    whole = lossless(np.kron(blocks, np.ones((1, 1, size // 4, size // 4), np.uint8)), tmp_path / "a.mkv")
    blocks[15:] = 255 - blocks[15:]
    other = lossless(np.kron(blocks, np.ones((1, 1, size // 4, size // 4), np.uint8)), tmp_path / "b.mkv")

    said = [answer_offline(loaded, path, ASKED[0][0], at, WORDS) for at in (1.0, 4.0) for path in (whole, other)]
    assert said[0] == said[1] and {answer.frames for answer in said} == {4}
    assert torch.equal(read[0], read[1]) and not torch.equal(read[2], read[3])
    with pytest.raises(UserError, match="gone.mp4: cannot be read as a video"):
        answer_offline(loaded, tmp_path / "gone.mp4", "what ?", 1.0)


@pytest.mark.fault(111)
def test_words_by_chance_are_drawn_as_transformers_draws_them() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3
    for temperature, top_p in ((0.7, 0.8), (1.5, 0.3), (1.0, 1.0)):
        warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits.clone()))
        ours = Sampling(temperature, top_p).probabilities(logits)
        torch.testing.assert_close(ours / ours.sum(-1, keepdim=True), warped.softmax(-1))
    drawn = torch.stack([choose(logits) for choose in [Sampling(0.7, 0.8, seed=1)] for _ in range(400)])
    expected = Sampling(0.7, 0.8).probabilities(logits)
    expected = expected / expected.sum(-1, keepdim=True)
    shares = torch.stack([(drawn == token).float().mean(0) for token in range(40)], 1)
    assert (shares - expected).abs().max() < 0.1
    assert torch.equal(Sampling()(logits), logits.argmax(-1)), "greedy is what it was"
    with pytest.raises(UserError, match="ask.top_p=0.5: with ask.temperature=0"):
        Sampling(0.0, 0.5)


@pytest.mark.fault(111)
def test_a_seed_gives_the_same_words_again() -> None:
    vlm = foveated("video_first")
    watcher = StreamingReader(vlm, chat())
    watcher.read_frame(pixels(vlm)[0])
    drawn = [watcher.answer(ASKED[0][0], WORDS, Sampling(3.0, 0.9, seed)) for seed in (1, 2, 3, 1)]
    assert drawn[0] == drawn[3] and len(set(drawn)) == 3


@pytest.mark.fault(111)
def test_asking_a_model_that_cannot_watch_from_the_command_line(
    trained: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, overrides = trained
    monkeypatch.chdir(folder)
    haystack = next(o.split("=", 1)[1] for o in overrides if o.startswith("dataset.haystack="))
    common = ["task=ask", "checkpoint=runs/tiny", f"out={tmp_path}", f"ask.video={haystack}/a.mp4", "merger=tome",
              "ask.question=what color is the object ?"]  # fmt: skip
    with caplog.at_level("INFO"):
        lines = evaluation.evaluate([*common, "ask.at=[1,2.5]"])
    assert [(line["seconds"], line["frames"]) for line in lines] == [(1.0, 4), (2.5, 4)]
    assert "read in one piece before each answer, 4 frames at most (ask.fps is not used): merger= must be none" in (
        caplog.text
    )
    (end,) = evaluation.evaluate([*common, "ask.temperature=2", "ask.max_new_tokens=1", "seed=5"])
    assert end["seconds"] == pytest.approx(6.0, abs=0.1) and len(end["answer"].split()) <= 1
    with pytest.raises(UserError, match="ask.top_p=0.5: with ask.temperature=0"):
        evaluation.evaluate([*common, "ask.top_p=0.5"])


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
    write_pattern(tmp_path / "gates", torch.ones(1, 2), 2, 4)
    window = ["kvcache=duo", f"kvcache.pattern={tmp_path}/gates", "kvcache.retrieval=0", "kvcache.sink=2",
              "kvcache.recent=4", "ask.at=[1,2.5,6,6]"]  # fmt: skip
    lines = evaluation.evaluate([*common, "ask.question=what color is the object ?", "ask.fps=2", *window])
    assert [line["frames"] for line in lines] == [2, 5, 12, 12] and len({line["kv_bytes"] for line in lines}) == 1
    assert all(line["frame_ms"] > 0 and line["cpu_ms"] > 0 and line["resident_mb"] > 1 for line in lines[:3])
    assert lines[3]["frame_ms"] is None, "asked again, and nothing was read since"
    (piece,) = evaluation.evaluate([*common, "ask.question=what shape is the object ?", "ask.stream=false"])
    assert piece["frames"] == 4 and "kv_bytes" not in piece
    (end,) = evaluation.evaluate([*common, "ask.question=what shape is the object ?"])
    assert end["frames"] == 24  # 6 s at 4 frames a second
    for missing, words in ((["task=ask", "checkpoint=runs/tiny"], "ask.video"), (common, "ask.question")):
        with pytest.raises(UserError, match=f"task=ask needs {words}"):
            evaluation.evaluate(missing)
