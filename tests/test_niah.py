"""``python -m hvlm.benchmark.niah``: what is drawn, a tiny benchmark made and asked about, and what it refuses."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _tiny import Case
from _videos import number_of, video
from test_benchmark_choices import LABEL, loaded

from hvlm import assembly
from hvlm.benchmark._vnbench_annotations import FIELDS, TASKS, read_annotations
from hvlm.benchmark.niah import command
from hvlm.benchmark.niah.make import haystack, overlay
from hvlm.benchmark.niah.pictures import KINDS, Pictures
from hvlm.benchmark.niah.plan import QUESTIONS, Planned, Segment, Source, plan_all, rows_of, templates
from hvlm.benchmark.niah.settings import Settings, read
from hvlm.benchmark.vnbench import VNBench
from hvlm.data.video import Video
from hvlm.dataset._haystack import Video as HaystackVideo
from hvlm.dataset._haystack import part_of
from hvlm.dataset._needles_scene import SETS
from hvlm.dataset._needles_text import templates as of_the_needles
from hvlm.dataset._needles_text import vocabulary
from hvlm.dataset.needles import Needles
from hvlm.errors import UserError
from hvlm.evaluation.evaluate import evaluate, score_predictions
from hvlm.text.chat import Chat
from hvlm.text.tokenizer import train_word_tokenizer

DRAWN = Pictures(None)
SOURCES = [Source(f"/videos/{n}.mp4", f"{n}.mp4", f"{n}.mp4", 1, s) for n, s in (("a", 8.0), ("b", 100.0), ("c", 30.0))]


def planned(**settings: Any) -> list[Planned]:
    return plan_all(Settings(out="x", **settings), SOURCES, DRAWN)


def seconds_of(one: Planned, fps: float) -> list[tuple[float, float]]:
    return [(n.first / fps, (n.last + 1) / fps) for n in one.needles]


# --------------------------------------------------------------------------------------------------------------- plan


def test_nine_tasks_over_a_grid_with_four_orders_of_the_same_options() -> None:
    made = planned(lengths=[12.0, 30.0], depths=[0.0, 1.0], per_cell=2)
    assert Counter(one.task for one in made) == dict.fromkeys(TASKS, 8)
    for one in made:
        rows = rows_of(one, 8.0)
        assert [tuple(row) for row in rows] == [FIELDS] * 4 and [row["try"] for row in rows] == [0, 1, 2, 3]
        assert len({frozenset(row["options"]) for row in rows}) == 1 and len({tuple(r["options"]) for r in rows}) == 4
        assert {row["gt_option"] for row in rows} == set("ABCD"), "no letter is right twice"
        assert all(row["options"]["ABCD".index(row["gt_option"])] == row["gt"] for row in rows)
        assert rows[0]["video"] == f"./VNBench/{one.name}" and one.name.endswith(f"_{one.task}.mp4")
        assert sum(segment.frames for segment in one.segments) == one.frames == round(one.length * 8)
        spans = seconds_of(one, 8.0)
        assert all(0 <= first < last <= one.length for first, last in spans)
        assert all(b[0] - a[1] >= 0.5 for a, b in zip(spans, spans[1:], strict=False)), "needles stand apart"
        if one.task.startswith("cnt"):
            assert rows[0]["gt"] == len(rows[0]["needle_time"]) and all(isinstance(o, int) for o in rows[0]["options"])
        if one.task.startswith("ord"):
            assert rows[0]["gt"] == ", ".join(n.text.split(" is ")[-1] for n in one.needles)
    one_needle = [one for one in made if one.task.startswith("ret")]
    assert {(one.depth, one.needles[0].first == 0) for one in one_needle} == {(0.0, True), (1.0, False)}
    assert all(one.needles[0].last == one.frames - 1 for one in one_needle if one.depth == 1.0)


def test_a_plan_is_a_function_of_the_settings_alone_and_differs_with_the_seed() -> None:
    assert planned() == planned() and planned(seed=1) != planned()
    few, many = planned(tasks=["ord_edit1"]), planned(tasks=["ord_edit1"], workers=3, max_bad=0.1)
    assert few == many


def test_clips_last_five_to_ten_seconds() -> None:
    spans = [s for one in planned(needle="clip") for s in seconds_of(one, 8.0)]
    assert min(b - a for a, b in spans) >= 4.9 and max(b - a for a, b in spans) <= 10.1


def test_answers_cannot_be_told_from_the_options() -> None:
    """Of counts the middle, the least and the greatest option are right equally often; so are all answers."""
    made = [planned(tasks=[task], lengths=[60.0], depths=[0.5], per_cell=400) for task in ("cnt_edit1", "cnt_edit2")]
    for of in made:
        ranks = Counter(sorted(options := one.tries[0][0]).index(options[one.tries[0][1]]) for one in of)
        assert all(60 <= ranks[rank] <= 140 for rank in range(4)), ranks
    answers = Counter(one.tries[0][0][one.tries[0][1]] for one in made[0])
    assert set(answers) == set(range(1, 7)) and min(answers.values()) > 40


def test_questions_are_vnbench_s_own() -> None:
    made = {one.task: one.question for one in planned(lengths=[60.0], depths=[0.5])}
    assert set(made) == set(QUESTIONS) == set(TASKS)
    assert made["ret_edit1"] == "What is the secret word?"
    assert made["cnt_insert1"].startswith("How many ") and made["cnt_insert1"].endswith(" appeared in the video?")
    assert "were inserted into 4 small sections of the video. How many" in made["cnt_edit2"]


# ------------------------------------------------------------------------------------------------------------- pixels


def frames(task: str, needle: str, fps: float = 8.0) -> list[np.ndarray]:
    """The frames that one needle of a task draws on, grey before."""
    settings = Settings(out="x", needle=needle, tasks=[task], lengths=[60.0], depths=[0.5])  # type: ignore[arg-type]
    (one,) = plan_all(settings, SOURCES, DRAWN)
    shown = one.needles[0]
    draw = overlay(shown, one, settings, DRAWN, 64, 96)
    out = []
    for number in range(shown.first, shown.last + 1):
        frame = np.full((64, 96, 3), 128, np.uint8)
        draw(frame, number)
        out.append(frame)
    return out


@pytest.mark.parametrize("task", ["ret_edit1", "ret_insert1", "cnt_edit2"])
def test_a_still_is_whole_in_every_frame_and_a_clip_in_none(task: str) -> None:
    still, clip = frames(task, "still"), frames(task, "clip")
    assert len(still) == 8 and all((frame == still[0]).all() for frame in still)
    assert len(clip) >= 40 and len({frame.tobytes() for frame in clip}) > 2
    assert (still[0] != 128).any()
    if task == "ret_edit1":
        assert not any((frame == still[0]).all() for frame in clip), "the word is never there as a whole"
    if task == "ret_insert1":
        assert all((frame == 96).all((0, 2)).sum() > 60 for frame in clip), "most of the picture is behind the wall"


def test_haystack_shows_the_frames_of_its_seconds(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(video(60, fps=10))
    segment = Segment(str(path), "v.mp4", 2.0, 10, "v.mp4")
    shown = [number_of(frame) for frame in haystack(segment, 5.0, 64, 96)]
    assert shown == [21 + 2 * i for i in range(10)]
    more = [number_of(frame) for frame in haystack(segment, 20.0, 64, 96)]
    assert more == [20, 20, 21, 21, 22, 22, 23, 23, 24, 24], "frames are repeated where more are wanted"


def test_every_drawing_can_be_told_from_every_other() -> None:
    for kind in KINDS:
        drawn = [np.asarray(DRAWN.sticker(kind, name, 24), int) for name in DRAWN.names(kind)]
        assert len(drawn) >= 10
        for i, a in enumerate(drawn):
            assert (a[..., 3] > 128).mean() > 0.05
            assert all(np.abs(a - b).mean() > 5 for b in drawn[:i])


def test_pictures_of_ones_own(tmp_path: Path) -> None:
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        for i in range(4):
            DRAWN.sticker("fruits", "apple", 30).resize((40, 20)).save(tmp_path / kind / f"old_thing{i}.png")
    own = Pictures(tmp_path)
    assert own.names("fruits") == [f"old thing{i}" for i in range(4)] and own.sticker(
        "fruits", "old thing1", 30
    ).size == (30, 15)
    (tmp_path / "landmarks" / "old_thing0.png").unlink()
    with pytest.raises(UserError, match=r"landmarks/ has 3 pictures .* expected 4 or more"):
        Pictures(tmp_path)


# ------------------------------------------------------------------------------------------------------- whole folder

WORDS = [
    "lengths=[6]",
    "depths=[0.5]",
    "size=64",
    "fps=4",
    "workers=1",
    "sources=test",
    "tasks=[ret_insert1,cnt_edit1]",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a haystack of two videos, and a damaged file, and a benchmark of one of them."""
    folder = tmp_path_factory.mktemp("niah")
    (folder / "haystack").mkdir()
    for i, name in enumerate(("one", "two", "three")):
        (folder / "haystack" / f"{name}.mp4").write_bytes(video(40, fps=10, first=100 * i))
    (folder / "haystack" / "zero.mp4").write_bytes(b"no video")
    command.write(read([f"haystack={folder / 'haystack'}", f"out={folder / 'bench'}", *WORDS]))
    return folder


def state(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def test_a_made_benchmark_is_read_and_asked(made: Path, tmp_path: Path) -> None:
    file = made / "bench" / "VNBench-main-4try.json"
    videos = read_annotations(file)
    assert [v.task for v in videos] == ["ret_insert1", "cnt_edit1"] and all(len(v.tries) == 4 for v in videos)
    for one in videos:
        with Video(file.parent / one.path) as opened:
            assert opened.duration == pytest.approx(one.length) and (opened.height, opened.width) == (64, 96)
    benchmark = VNBench(annotations=str(file), scoring="loglik_letter")
    lettered = Chat(train_word_tokenizer(vocabulary()), "tiny")  # the tests' usual one knows no letters
    vlm = assembly.model(Case("question_first", ()).config, lettered)
    records = evaluate(loaded()._replace(model=vlm, chat=lettered), benchmark, LABEL, tmp_path)
    found = {(r["variant"], r["metric"]): r for r in records}
    assert found["tiny", "accuracy_4of4"]["n"] == 2 and found["blind", "accuracy_4of4/ret_insert1"]["n"] == 1
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 16 and all(line["length"] == 6 and 0 <= line["depth"] <= 1 for line in lines)
    assert (tmp_path / "needles.png").stat().st_size > 500
    again = score_predictions(tmp_path / "predictions.jsonl", LABEL, tmp_path / "again.json", benchmark)
    means = {r["metric"]: r["value"] for r in again if r["variant"] == "tiny"}
    assert means["accuracy_4of4"] == found["tiny", "accuracy_4of4"]["value"]
    assert (tmp_path / "again.needles.png").exists()


def test_a_second_start_makes_what_is_missing_byte_for_byte(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = [f"haystack={made / 'haystack'}", f"out={made / 'bench'}", *WORDS]
    before = state(made / "bench")
    first = next((made / "bench" / "VNBench").glob("*.mp4"))
    first.unlink()
    (first.with_name(f"{first.name}.{os.getpid()}.part")).write_bytes(b"half")
    command.write(read(words))
    assert state(made / "bench") == before
    with pytest.raises(UserError, match=r"out=.*: holds a benchmark made with seed=0; name another folder"):
        command.write(read([*words, "seed=1"]))
    assert state(made / "bench") == before


def test_training_and_benchmark_share_no_source_and_no_sentence(made: Path, tmp_path: Path) -> None:
    """What dataset=needles with the other part of the same folder is made of, by the manifests of both."""
    dataset = Needles(
        root=str(tmp_path), haystack=str(made / "haystack"), haystack_part="train", set="easy", train_clips=2,
        val_clips=0, test_clips=0, text_chats=0, size=32, generate_workers=1,
    )  # fmt: skip
    dataset.prepare(progress=False)
    trained = json.loads((dataset.folder / "manifest.json").read_text())["spec"]
    asked = json.loads((made / "bench" / "manifest.json").read_text())
    files = [{source["name"] for source in of["sources"]} for of in (trained, asked)]
    assert all(files) and not files[0] & files[1]
    words = asked["templates"]
    assert trained["templates"] == of_the_needles("easy")
    assert not set(trained["templates"]) & set(words["questions"] + words["subtitle"])
    assert set(words["questions"]) == set(QUESTIONS.values()) and words == templates(DRAWN)
    # The same guard for a folder that was not divided: whoever was trained on is left out.
    with pytest.raises(UserError, match="avoid: all 2 videos of the haystack were used by these sets"):
        command.write(read([f"haystack={made / 'haystack'}", f"out={tmp_path / 'b'}", *WORDS[:-2], "sources=train",
                            f"avoid=[{dataset.folder}]"]))  # fmt: skip
    assert not (tmp_path / "b").exists()


def test_keys_that_gates_learn_from_share_nothing_with_any_benchmark(made: Path, tmp_path: Path) -> None:
    """By the manifests of all: every set's val and test clips of the same half, and benchmarks of the other half with
    stills and with clips."""
    words = [f"haystack={made / 'haystack'}", f"out={tmp_path / 'clips'}", "needle=clip", "lengths=[12]", *WORDS[1:-1]]
    command.write(read([*words, "tasks=[ret_edit1]"]))

    def of(name: str, wording: str, **counts: int) -> Needles:
        dataset = Needles(
            root=str(tmp_path), haystack=str(made / "haystack"), haystack_part="train", set=name, wording=wording,
            frames=8, num_frames=4, keys=2, text_chats=0, size=64, generate_workers=1, min_seconds=10, max_seconds=10,
            **counts,
        )  # fmt: skip
        dataset.prepare(progress=False)
        return dataset

    learnt = of("keys", "first", train_clips=8, val_clips=0, test_clips=0)
    spec = json.loads((learnt.folder / "manifest.json").read_text())["spec"]
    (question,) = (t for t in spec["templates"] if "{shape}" in t and "?" in t)
    sources = {source["name"] for source in spec["sources"]}
    for bench in ("bench", "clips"):
        folder = made / bench if bench == "bench" else tmp_path / bench
        asked = json.loads((folder / "manifest.json").read_text())
        used = {source["name"] for source in asked["sources"]}
        parts = {part["name"] for video in asked["videos"].values() for part in video["sources"]}
        assert used and not used & sources and parts <= used
        said = {text for texts in asked["templates"].values() for text in texts}
        assert said and not said & set(spec["templates"])
    segments = segments_of(learnt, "train")
    for name in SETS:
        wording = "second" if name == "keys" else "both"
        tested = of(name, wording, train_clips=0, val_clips=3, test_clips=3)
        assert question not in json.loads((tested.folder / "manifest.json").read_text())["spec"]["templates"], name
        for split in ("val", "test"):
            found = segments_of(tested, split)
            apart = [a != b or stop <= x or y <= start for a, start, stop in found for b, x, y in segments]
            assert found and all(apart), (name, split)


def segments_of(dataset: Needles, split: str) -> list[tuple[str, float, float]]:
    """(source, start, stop) of each clip, as its sample says."""
    clips = dataset.manifest().split(split)
    infos = [json.loads(clips.read(i)["json"]) for i in range(len(clips))]
    return [(info["source"], *info["segment"]) for info in infos]


def test_parts_of_a_haystack_follow_from_its_names() -> None:
    files = [HaystackVideo(Path(f"/h/{i}.mp4"), f"{i}.mp4", f"{i // 2}", 1) for i in range(10)]
    train, test = (part_of(files, part, "x") for part in ("train", "test"))
    assert len(test) == 4 and sorted(v.name for v in train + test) == [v.name for v in files]
    assert not {v.source for v in train} & {v.source for v in test}
    assert part_of(files[::-1], "test", "x") == test[::-1] and part_of(files, "all", "x") == files
    with pytest.raises(UserError, match="sources=test: the haystack has one source, 0"):
        part_of(files[:2], "test", "sources")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["haystack=x"], "out= is missing"),
        (["out=x", "tasks=[ret_edit]"], "tasks: ret_edit is none of .* did you mean 'ret_edit1'"),
        (
            ["out=x", "lengths=[10]", "needle=clip"],
            "10 s is too short for ord_edit1 with needle=clip, which takes 41.5 s",
        ),
        (["out=x", "size=65"], "size=65: H.264 needs an even size; use 66"),
        (["out=x", "needles=still"], "needles.*needle"),
        (["out=x", "depths=[1.5]"], "depths"),
        (["out=x", "depths=[0.5,0.5]"], "expected one or more, each once"),
        (["out=x", "out=y"], "out is given twice"),
        (["out=x", "bench"], "bench: expected setting=value"),
    ],
)
def test_settings_at_fault_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(words)
    assert "\n" not in str(error.value)


def test_a_haystack_that_cannot_be_read_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"haystack: 1 of 1 videos cannot be read \(more than max_bad=0.5 allows"):
        command.write(read([f"haystack={tmp_path / 'h'}", f"out={tmp_path / 'out'}", "workers=1"]))
    assert not list((tmp_path / "out" / "VNBench").iterdir()) and not (tmp_path / "out" / command.ANNOTATIONS).exists()
    with pytest.raises(UserError, match="haystack: no such folder"):
        command.write(read([f"haystack={tmp_path / 'nowhere'}", f"out={tmp_path / 'other'}"]))
    assert not (tmp_path / "other").exists()
