"""benchmark=mvbench, videomme, scienceqa: files as published, parsers by hand, a tiny model asked."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from _tiny import USUAL, Case, chat, model
from PIL import Image

from hvlm.benchmark._base import PREMISE
from hvlm.benchmark._parsers import PARSERS
from hvlm.benchmark._subtitles import read_subtitles, shown_at
from hvlm.benchmark.choices import Choices
from hvlm.benchmark.mvbench import TASKS, MVBench
from hvlm.benchmark.published import Published
from hvlm.data import samples
from hvlm.errors import UserError
from hvlm.evaluation.evaluate import evaluate, score_predictions
from hvlm.evaluation.results import Label
from hvlm.evaluation.scores import Likelihood, Question, Try
from hvlm.rebuild import Loaded
from hvlm.types import InputSpec
from hvlm.viz.media import write_mp4

CONF = Path(__file__).parent.parent / "conf" / "benchmark"
LABEL = Label("public", "tiny", 0)
OPTIONS = ("red", "blue", "green", "black")


class Data:
    access, max_tokens, too_long, decoder, decode_timeout, text_only = "index", 4000, "refuse", "pyav", 60.0, False


@cache
def loaded() -> Loaded:
    vlm = model(Case("question_first", ()))
    config = {"trainer": {"num_workers": 0, "cache_mb": 0}, "domain": {"mixture": None}, "seed": 0, "connector": USUAL}
    return Loaded(vlm, chat(), Data(), InputSpec("question_first", 2, vlm.vision.image_size), "32-true", config)


def made(name: str, **changes: Any) -> Any:
    """The benchmark of a YAML."""
    settings = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    kinds = {kind.__name__: kind for kind in (MVBench, Published)}
    return kinds[settings.pop("_target_").rpartition(".")[2]](**settings | changes)


def video(path: Path, seconds: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(np.zeros((4 * seconds, 3, 32, 32), np.uint8), path, fps=4)


def asked(benchmark: Any, **more: Any) -> list[Question]:
    """Every question of the source."""
    clips = benchmark.source(None)
    out = []
    for i in range(len(clips)):
        sample = samples.parse(clips.read(i), clips.keys[i], clips.domains[i], clips.uid(i))
        out += benchmark.questions(sample | more)
    return out


def ask(benchmark: Any, out: Path) -> tuple[dict[str, dict], list[dict]]:
    records = evaluate(loaded(), benchmark, LABEL, out)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return {r["metric"]: r for r in records if r["variant"] == "tiny"}, lines


# ------------------------------------------------------------------------------------------------------------ parsers


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # strict, letter_priority, first_letter, first_word, starts_with_letter, first_capital
        ("B", (1, 1, 1, 1, 1, 1)),
        ("b", (1, None, 1, 1, 1, None)),
        ("B. blue", (1, 1, 1, 1, 1, 1)),
        ("(B) blue", (1, 1, 1, 1, None, 1)),
        ("a dog", (None, None, 0, 0, None, None)),  # the article
        ("", (None, None, None, None, None, None)),
        (")", (None, None, None, None, None, None)),
        ("The answer is C.", (2, 2, 2, None, None, 2)),
        ("I saw (B) and then D", (None, 3, 1, None, None, 1)),  # at the end beats brackets
        ("Best option: (D", (3, 3, 3, None, None, 3)),  # "Best" has a B
        ("E", (None, None, None, None, None, None)),  # not offered
    ],
)
def test_parsers_by_hand(text: str, expected: tuple) -> None:
    found = tuple(parse(text, OPTIONS).index for parse in PARSERS.values())
    assert found == expected
    assert all(bool(p(text, OPTIONS).problem) == (i is None) for p, i in zip(PARSERS.values(), found, strict=True))


# ---------------------------------------------------------------------------------------------------------------- pmi


def test_pmi_takes_the_option_that_the_question_makes_likelier() -> None:
    tries = (Try("Q", ("red", "blue"), ("red", "blue"), 1), Try(PREMISE, ("red", "blue"), ("red", "blue"), 1))
    question = Question("c/q", "c", "t", tries, ())
    values = {("Q", "red"): -1.0, ("Q", "blue"): -2.0, (PREMISE, "red"): -1.5, (PREMISE, "blue"): -4.0}
    known = {key: Likelihood(value, 2) for key, value in values.items()}
    for kind in (Choices(scoring="pmi"), made("videomme", scoring="pmi")):
        (found,) = kind.predict(question, known, "m")
        assert found.scores == (0.5, 2.0)
        assert found.pred == 1
    assert Choices(scoring="loglik_sum").predict(question, known, "m")[0].pred == 0


# ------------------------------------------------------------------------------------------------------------ mvbench


def mvbench(folder: Path, precut: bool = False) -> Path:
    """Two questions of every task in the published layout; all but the videos of fine_grained_pose."""
    (folder / "json").mkdir(parents=True)
    for name, task in TASKS.items():
        place = folder / "video" / (task.precut if precut and task.precut else task.folder)
        bound = name in (
            "action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning"
        )  # fmt: skip
        stem = f"{name}.webm" if name == "action_antonym" else f"{name}.mp4"
        if task.frames and not precut:
            stem = name
            for i in range(1, 7):
                file = place / stem / f"{i:05d}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32)).save(file)
        elif name == "action_count":
            stem = "cup.gif"
            place.mkdir(parents=True, exist_ok=True)
            frames = [Image.new("RGB", (32, 32), (40 * i, 0, 0)) for i in range(4)]
            frames[0].save(place / stem, save_all=True, append_images=frames[1:], duration=250)
        elif name != "fine_grained_pose":
            video((place / stem).with_suffix(".mp4"))
            (place / stem).with_suffix(".mp4").rename(place / stem)
        rows = []
        for i, candidates in enumerate((["Yes", "No"], ["0", "1", "2", "3", "4"])):
            row: dict[str, Any] = {"video": stem, "question": f"What of {name} {i}?", "candidates": candidates}
            row |= {"answer": candidates[1], "fps": 30, "subtitles": "ignored"}
            rows.append(row | ({"start": 0.5, "end": 1.5} if bound else {}))
        (folder / "json" / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("clips", ["cut", "whole", "precut"])
def test_mvbench_is_read_in_both_layouts(tmp_path: Path, clips: str) -> None:
    benchmark = made("mvbench", path=str(mvbench(tmp_path, clips == "precut")), clips=clips)
    source = benchmark.source(None)
    sections = [json.loads(source.read(i)["json"]).get("section") for i in range(len(source))]
    assert sections.count([0.5, 1.5]) == (5 if clips == "cut" else 0)
    assert sum(benchmark.missing(source).values()) == 2
    frames = [i for i, key in enumerate(source.keys) if "frames_fps3_hq" in key]
    assert len(frames) == (0 if clips == "precut" else 1)
    assert all(json.loads(source.read(i)["json"])["fps"] == 3.0 and len(source.sources(i)) == 7 for i in frames)
    questions = asked(benchmark)
    assert len(questions) == 38
    assert {len(q.tries[0].options) for q in questions} == {2, 5}


def test_mvbench_is_asked_and_says_19_of_20_tasks(tmp_path: Path) -> None:
    path = mvbench(tmp_path / "MVBench")
    rows = json.loads((path / "json" / "action_sequence.json").read_text())
    (path / "json" / "action_sequence.json").write_text(json.dumps([*rows, rows[0] | {"start": 9.0, "end": 2.0}]))
    benchmark = made("mvbench", path=str(path), parser="strict", max_new_tokens=2)
    found, lines = ask(benchmark, tmp_path / "out")
    assert (found["tasks_asked"]["value"], found["tasks_asked"]["n"]) == (19.0, 20)
    assert found["questions_without_video"]["value"] == 3
    assert found["accuracy_macro"]["n"] == 38
    assert found["accuracy_macro"]["chance"] == pytest.approx((1 / 2 + 1 / 5) / 2)
    assert len(lines) == 2 * 38
    quarantine = (tmp_path / "out" / "quarantine.jsonl").read_text()
    (row,) = [line for line in map(json.loads, quarantine.splitlines()) if "row" in line["key"]]
    assert (row["key"], row["error"]) == ("json/action_sequence.json row 3", "starts at 9 s and ends at 2 s")
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())
    assert (protocol["clips"], protocol["num_frames"], protocol["reader"]) == ("cut", 2, "pyav")
    assert "Only give the best option." in protocol["prompt"]
    assert all(
        r["protocol"].startswith("scoring=generate; clips=cut; num_frames=2; reader=pyav") for r in found.values()
    )


def test_mvbench_finds_clips_of_the_release_below_data0613(tmp_path: Path) -> None:
    path = mvbench(tmp_path)
    (tmp_path / "video" / "data0613").mkdir()
    (tmp_path / "video" / "clevrer").rename(tmp_path / "video" / "data0613" / "clevrer")
    benchmark = made("mvbench", path=str(path))
    source = benchmark.source(None)
    assert sum(benchmark.missing(source).values()) == 2
    assert sum(key.startswith("data0613/clevrer/video_validation/") for key in source.keys) == 5


def test_mvbench_prompt_is_videochat2s(tmp_path: Path) -> None:
    (first, _) = asked(made("mvbench", path=str(mvbench(tmp_path)), tasks=["action_count"]))
    prompt = first.tries[0].prompt
    assert str(prompt) == "Question: What of action_count 0?\nOptions:\n(A) Yes\n(B) No\nOnly give the best option."
    assert prompt.system.startswith("Carefully watch the video")  # type: ignore[attr-defined]


# ----------------------------------------------------------------------------------------------------------- videomme

SRT = """1
00:00:00,000 --> 00:00:01,000
<font color="white" size=".72c">Hello there.</font>

2
00:00:01,200 --> 00:00:01,900
<font color="white" size=".72c">A red
ball &amp; it&#39;s round.</font>
"""


def videomme(folder: Path) -> dict[str, str]:
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = []
    for v, (duration, domain) in enumerate((("short", "Knowledge"), ("medium", "Sports"), ("long", "Knowledge"))):
        name = f"-aB{v}_x"
        if v < 2:
            video(folder / "data" / f"{name}.mp4")
        for q in range(3):
            rows.append(
                {
                    "video_id": f"{v:03d}", "duration": duration, "domain": domain, "sub_category": "Biology",
                    "url": "https://example.org", "videoID": name, "question_id": f"{v:03d}-{q + 1}",
                    "task_type": ("Counting Problem", "OCR Problems", "OCR Problems")[q], "question": f"What is {q}?",
                    "options": ["A. Red.", "B. Blue.", "C. Green.", "D. Black."], "answer": "ABCD"[q],
                }
            )  # fmt: skip
    (folder / "videomme").mkdir(parents=True)
    pq.write_table(pyarrow.Table.from_pylist(rows), folder / "videomme" / "test-00000-of-00001.parquet")
    (folder / "subtitle").mkdir()
    (folder / "subtitle" / "-aB0_x.srt").write_text(SRT)
    return {"path": str(folder)}


def test_videomme_is_asked_with_its_breakdowns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = videomme(tmp_path / "mme")
    found, lines = ask(made("videomme", **settings, max_new_tokens=2), tmp_path / "out")
    assert found["accuracy_micro"]["n"] == 6
    assert found["accuracy_micro"]["chance"] == 0.25
    assert found["questions_without_video"]["value"] == 3
    assert found["accuracy/duration=short"]["n"] == found["accuracy/domain=Sports"]["n"] == 3
    assert found["accuracy/sub_category=Biology"]["n"] == 6
    assert found["accuracy/OCR Problems"]["n"] == 4
    assert found["answers_unread"]["value"] + found.get("answers_missing", {"value": 0})["value"] <= 6
    # Another program's texts, scored by the parser of the benchmark, with the same breakdowns.
    own = [{**line, "text": "The answer is A", "pred": None} for line in lines if line["variant"] == "tiny"]
    path = tmp_path / "theirs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in own))
    again = {r["metric"]: r for r in score_predictions(path, LABEL, tmp_path / "s", made("videomme", **settings))}
    assert again["accuracy_micro"]["value"] == pytest.approx(1 / 3)
    assert again["accuracy/duration=medium"]["value"] == pytest.approx(1 / 3)
    assert "parser=letter_priority" in again["accuracy_micro"]["protocol"]
    # The breakdowns stand in the predictions themselves; of a file that does not say them, that is said.
    alone = score_predictions(path, LABEL, tmp_path / "a", made("videomme"))
    assert [(r["metric"], r["value"]) for r in alone] == [(name, r["value"]) for name, r in again.items()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "about"}) + "\n" for line in own))
    bare = score_predictions(path, LABEL, tmp_path / "b", made("videomme"))
    assert not any("=" in r["metric"] for r in bare)
    assert "no accuracy by duration, domain, sub_category" in caplog.text


def test_videomme_subtitles_are_those_of_the_frames(tmp_path: Path) -> None:
    settings = videomme(tmp_path)
    plain = asked(made("videomme", **settings))[0].tries[0].prompt
    assert plain.startswith("Select the best answer") and "\nA. Red.\nB. Blue.\n" in plain
    benchmark = made("videomme", **settings, subtitles=str(tmp_path / "subtitle"))
    first, other = (asked(benchmark, times=np.array([1.5, 1.95]))[i].tries[0].prompt for i in (0, 3))
    assert first == "This video's subtitles are listed below: \nA red ball & it's round.\n" + plain
    assert other == plain  # a video without a file
    lines = read_subtitles(tmp_path / "subtitle" / "-aB0_x.srt")
    assert shown_at(lines, None) == "Hello there.\nA red ball & it's round."
    assert shown_at(lines, [1.1]) == ""


def test_hours_of_a_subtitle_that_no_number_holds_are_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    spans = (f"{'9' * digits}:00:00,000 --> {'9' * digits}:00:01,000" for digits in (400, 5000))
    path.write_text("".join(f"1\n{span}\nnever\n\n" for span in spans) + "3\n00:00:01,000 --> 00:00:02,000\nonce\n")
    assert [line.text.splitlines()[-1] for line in read_subtitles(path)] == ["once"]


# ---------------------------------------------------------------------------------------------------------- scienceqa


def scienceqa(folder: Path) -> str:
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    held = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 90, 9)).save(held, "PNG")
    rows = []
    for i, (choices, answer, hint) in enumerate(
        ((["2", "1"], 1, "Look at it."), (["a", "b", "c", "d", "e"], 4, ""), (["x", "y"], 0, ""))
    ):
        image = None if i == 2 else {"bytes": held.getvalue(), "path": "image.png"}
        rows.append(
            {
                "image": image, "question": f"Which {i}?", "choices": choices, "answer": answer, "hint": hint,
                "task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "physics",
                "category": "Magnets", "skill": "s", "lecture": "", "solution": "",
            }
        )  # fmt: skip
    folder.mkdir(parents=True)
    pq.write_table(pyarrow.Table.from_pylist(rows), folder / "test-00000-of-00001-f0e719df791966ff.parquet")
    pq.write_table(pyarrow.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    return str(folder)


def test_scienceqa_asks_the_rows_with_a_picture(tmp_path: Path) -> None:
    path = scienceqa(tmp_path / "data")
    first, second = asked(made("scienceqa", path=path))
    assert first.tries[0].prompt == (
        "Context: Look at it.\nWhich 0?\nA. 2\nB. 1\nAnswer with the option's letter from the given choices directly."
    )
    assert (first.tries[0].gold, second.tries[0].gold) == (1, 4)  # places, whatever the options' texts
    found, _ = ask(made("scienceqa", path=path, max_new_tokens=2), tmp_path / "out")
    assert (found["accuracy_micro"]["n"], found["accuracy_micro"]["chance"]) == (2, pytest.approx((1 / 2 + 1 / 5) / 2))
    assert found["accuracy/grade=grade2"]["n"] == 2
    assert "questions_without_video" not in found


# ---------------------------------------------------------------------------------------------------------- any table


def test_a_table_with_options_in_columns(tmp_path: Path) -> None:
    video(tmp_path / "videos" / "7.mp4")
    (tmp_path / "val.csv").write_text("video,question,answer,qid,type,a0,a1,a2\n7,why is it red,2,5,CW,i,am,red\n")
    columns = {"video": "video", "question": "question", "options": "a0,a1,a2", "answer": "answer", "id": "qid"}
    settings = {"path": str(tmp_path / "val.csv"), "videos": str(tmp_path / "videos"), "answer": "index"}
    (one,) = asked(made("videomme", clips="cut", **settings, columns=columns | {"task": "type"}))
    assert (one.task, one.tries[0].options, one.tries[0].gold) == ("CW", ("i", "am", "red"), 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": None}, "benchmark.path= is missing"),
        ({"path": "nowhere.json"}, "no such folder or file"),
        ({"columns": {"question": "q", "options": "options", "answer": "answer", "video": "video"}}, "lacks q; it has"),
        ({"columns": {"questions": "q"}}, "benchmark.columns has questions"),
        ({"columns": None}, "benchmark.columns lacks question, answer, video"),
        ({"answer": "index"}, "no row can be asked"),
        ({"parser": "lottery"}, "benchmark.parser=lottery: expected one of strict"),
        ({"prompt": "{question}"}, "expected {question} and {options} in it"),
    ],
)
def test_bad_settings_are_one_line(tmp_path: Path, changes: dict, words: str) -> None:
    row = {"video": "7", "question": "q", "options": ["i", "am"], "answer": "B"}
    (tmp_path / "val.json").write_text(json.dumps([row]))
    usual = {"path": str(tmp_path / "val.json"), "columns": {name: name for name in row}}
    with pytest.raises(UserError) as e:
        made("videomme", clips="cut", **usual | changes).source(None)
    assert words in str(e.value)
    assert "\n" not in str(e.value)
