"""benchmark=choices: forms of questions, scores by hand, and a tiny model that is asked about a folder of videos."""

from __future__ import annotations

import csv
import json
import logging
import math
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from _tiny import USUAL, Case, chat, model
from PIL import Image

from hvlm.benchmark.choices import Choices
from hvlm.benchmark.open import Open
from hvlm.data import samples
from hvlm.data.options import gold_of
from hvlm.data.question_file import read_questions
from hvlm.data.shard_index import write_shard
from hvlm.errors import UserError
from hvlm.evaluation.evaluate import evaluate, score_predictions
from hvlm.evaluation.results import Label
from hvlm.evaluation.scores import Likelihood, Prediction, score_choices
from hvlm.prompts import bare_options, context, lettered_prompt
from hvlm.rebuild import Loaded
from hvlm.tasks import asked_for
from hvlm.types import InputSpec
from hvlm.viz.media import write_mp4

LABEL = Label("own", "tiny", 0)


class Data:
    """A dataset whose split nobody asks about; how it is read counts."""

    access, max_tokens, too_long, decoder, decode_timeout, text_only = "index", 100, "refuse", "pyav", 60.0, False


@cache
def loaded() -> Loaded:
    vlm = model(Case("question_first", ()))
    config = {"trainer": {"num_workers": 0, "cache_mb": 0}, "domain": {"mixture": None}, "seed": 0, "connector": USUAL}
    size = vlm.vision.image_size
    return Loaded(vlm, chat(), Data(), InputSpec("question_first", 2, size), "32-true", config)


def ask(benchmark: Any, out: Path) -> tuple[dict[tuple[str, str], dict], list[dict]]:
    """({(variant, metric): record}, lines of the predictions file)."""
    records = evaluate(loaded(), benchmark, LABEL, out)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return {(r["variant"], r["metric"]): r for r in records}, lines


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """a.mp4 and sub/b.mp4 of two brightnesses, a still, and a folder of stills."""
    folder = tmp_path / "videos"
    for name, value in (("a", 40), ("sub/b", 200)):
        frames = np.full((8, 3, 32, 32), value, np.uint8)
        write_mp4(frames, folder / f"{name}.mp4", fps=4.0, scale=1)
    (folder / "stills").mkdir()
    for i, path in enumerate((folder / "c.png", folder / "stills/0.png", folder / "stills/1.png")):
        Image.fromarray(np.full((32, 32, 3), 30 * i, np.uint8)).save(path)
    return folder


def row(video: str, **changes: Any) -> dict:
    asked = {"question": "what color is the ring ?", "options": ["red", "blue", "green"], "answer": "blue"}
    return {"video": video, **asked, **changes}


# ------------------------------------------------------------------------------------------------ which option is meant


@pytest.mark.parametrize(
    ("answer", "options", "place"),
    [
        ("blue", ["red", "blue"], 1),
        (" Blue", ["red", "blue"], 1),
        ("B", ["red", "blue"], 1),
        ("(b)", ["red", "blue"], 1),
        ("B.", ["red", "blue"], 1),
        ("Z", [str(i) for i in range(26)], 25),
        (1, ["red", "blue"], 1),
        ("1", ["red", "blue"], 1),
        (2, [1, 2, 3], 1),  # a number among numbers is a text
        ("2", ["1", "2", "3"], 1),
        ("B", ["B", "A"], 0),  # the text of an option comes first
        (1, ["2", "1"], 1),  # both readings agree
        ("B. blue", ["A. red", "B. blue"], 1),
        ("B", ["A. red", "B. blue"], 1),
    ],
)
def test_an_answer_is_a_text_a_letter_or_a_place(answer: Any, options: list, place: int) -> None:
    assert gold_of(answer, options) == place


@pytest.mark.parametrize(
    ("answer", "options", "message"),
    [
        ("C", ["red", "blue"], "exactly one of"),
        (2, ["red", "blue"], "exactly one of"),
        (-1, ["red", "blue"], "exactly one of"),
        ("green", ["red", "blue"], "exactly one of"),
        ("red", ["red", "Red ", "red"], "exactly one of"),
        (True, ["red", "blue"], "exactly one of"),
        (None, ["red", "blue"], "exactly one of"),
        (2, ["1", "2", "3"], "its letter: 2 is the text of option B and the place of option C"),
    ],
)
def test_what_names_no_option_or_two_is_refused(answer: Any, options: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gold_of(answer, options)


def test_options_lose_their_own_letters_before_they_get_ours() -> None:
    assert bare_options(["A. red", "B. blue"]) == ("red", "blue")
    assert bare_options(["(A) red", "(B) blue"]) == ("red", "blue")
    assert bare_options(["A. red", "C. blue"]) == ("A. red", "C. blue"), "these are no letters in order"
    assert bare_options(["A lamp", "B flat"]) == ("A lamp", "B flat")


# ------------------------------------------------------------------------------------------------------- score by hand


def prediction(name: str, video: str, task: str, options: int, right: bool, variant: str = "m") -> Prediction:
    offered = tuple(map(str, range(options)))
    return Prediction(name, video, task, 0, offered, 1, 1 if right else 0, None, variant)


def test_means_and_chance_by_hand_for_mixed_numbers_of_options() -> None:
    made = [
        prediction("1", "v", "order", 2, True),
        prediction("2", "v", "order", 4, True),
        prediction("3", "w", "order", 26, False),
        prediction("4", "w", "count", 5, False),
    ]
    rows = {r["metric"]: r for r in score_choices(made)}
    assert list(rows) == ["accuracy_macro", "accuracy_micro", "accuracy/count", "accuracy/order"]
    assert rows["accuracy_macro"]["value"] == pytest.approx((2 / 3 + 0) / 2)
    assert rows["accuracy_micro"]["value"] == pytest.approx(2 / 4)
    order = (1 / 2 + 1 / 4 + 1 / 26) / 3
    assert rows["accuracy/order"]["chance"] == pytest.approx(order)
    assert rows["accuracy_macro"]["chance"] == pytest.approx((order + 1 / 5) / 2)
    assert rows["accuracy_micro"]["chance"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 26 + 1 / 5) / 4)
    # Residuals of the two videos: v has 1 - 1/2 twice, w has 0 - 1/2 twice; weights 1/4; G / (G - 1) = 2.
    assert rows["accuracy_micro"]["stderr"] == pytest.approx(math.sqrt(2 * (0.25**2 + 0.25**2)))
    assert (rows["accuracy_micro"]["n"], rows["accuracy_micro"]["videos"]) == (4, 2)


@pytest.mark.fault(107)
def test_no_mean_leaves_out_a_task_unless_its_name_says_so() -> None:
    made = [prediction("1", "v", "shape", 2, True), prediction("2", "w", "direction", 2, False)]
    rows = {r["metric"]: r["value"] for r in Choices().score(made)}
    assert rows["accuracy_macro"] == rows["accuracy_micro"] == 0.5
    own = {r["metric"]: r["value"] for r in Choices(apart=["direction", "none"]).score(made)}
    assert own == {
        "accuracy_macro_without_direction": 1.0, "accuracy_micro_without_direction": 1.0, "accuracy/direction": 0.0,
        "accuracy/shape": 1.0,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- samples -> questions


def parsed(**question: Any) -> dict:
    sample = {"questions": [{"question": "what color ?"} | question]}
    return samples.parse({"json": json.dumps(sample).encode()}, "k", "general")


def test_scoring_decides_what_the_prompt_shows_and_what_is_scored() -> None:
    sample = parsed(options=["red", "blue"], answer="B")
    assert sample["questions"][0]["answer"] == "blue", "training is shown the option and not its letter"
    (plain,), (letter,) = (Choices(scoring=s).all_questions(sample) for s in ("loglik_mean", "loglik_letter"))
    assert plain.tries[0] == ("what color ?", ("red", "blue"), ("red", "blue"), 1)
    assert letter.tries[0] == (lettered_prompt("what color ?", ["red", "blue"]), ("red", "blue"), ("A", "B"), 1)
    found = {("what color ?", "red"): Likelihood(-1.0, 1), ("what color ?", "blue"): Likelihood(-1.5, 2)}
    assert Choices().predict(plain, found, "m")[0].pred == 1
    assert Choices(scoring="loglik_sum").predict(plain, found, "m")[0].pred == 0
    written = Choices(scoring="generate")
    assert written.writes and not Choices().writes
    (asked,) = written.all_questions(sample)
    said = {text: written.read(asked, {asked.tries[0].prompt: text}, "m")[0] for text in ("B", "A. red", "a ball")}
    assert [(p.pred, p.problem) for p in said.values()] == [(1, ""), (0, ""), (None, "unread")]
    assert said["B"].question == "what color ?"
    (always,) = Choices().all_questions(parsed(options=["red", "blue"], answer=0, lettered=True))
    assert always.tries[0].answers == ("A", "B"), "a question that says it asks for letters"


def test_clips_that_are_parts_of_one_video_share_its_errors() -> None:
    asked = [{"question": "what ?", "options": ["red", "blue"], "answer": "A"}]
    for field, key in (({}, "test/0/k"), ({"cluster": "film"}, "film")):
        text = json.dumps({"questions": asked} | field).encode()
        (question,) = Choices().all_questions(samples.parse({"json": text}, "k", "general", "test/0/k"))
        assert (question.key, question.id) == (key, "test/0/k/q0")


def test_the_last_question_of_a_conversation_is_asked_after_the_earlier_ones() -> None:
    said = [("user", "what shape ?"), ("assistant", "a ring"), ("user", "what color ?"), ("assistant", "blue")]
    messages = [{"role": role, "content": text} for role, text in said]
    sample = {"questions": [{"messages": messages, "options": ["red", "blue"]}]}
    read = samples.parse({"json": json.dumps(sample).encode()}, "k", "general")
    for benchmark in (Choices(), Choices(scoring="loglik_letter"), Open()):
        ((asked,), text) = next((q.tries, q.text) for q in benchmark.all_questions(read))
        assert context(asked.prompt) == {"before": (("what shape ?", "a ring"),)} and text == "what color ?"
        assert asked.answers[asked.gold] in ("blue", "B")
    ids = [chat().encode(q, "blue", **context(q)).ids for q in (asked.prompt, str(asked.prompt))]
    assert len(ids[0]) > len(ids[1])


def test_questions_without_a_choice_are_none() -> None:
    assert Choices().all_questions(parsed(answer="red")) == []
    with pytest.raises(ValueError, match="two or more"):
        Choices().all_questions(parsed(options=["red"], answer="red"))


# ------------------------------------------------------------------------------------------- the file beside the videos


def test_rows_of_every_form_are_the_same_questions(tmp_path: Path) -> None:
    rows = [row("a.mp4", id="x", task="color"), row("b", start=1, end=2.5, answer="C", options=["1", "2", "3"])]
    forms = [write_rows(tmp_path / "q.jsonl", rows), tmp_path / "q.json", tmp_path / "q.csv", tmp_path / "t.tsv"]
    forms[1].write_text(json.dumps({"name": "mine", "rows": rows}))
    for path, delimiter in ((forms[2], ","), (forms[3], "\t")):
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            names = ["video", "question", "id", "task", "start", "end", "answer", "options", "A", "B", "C"]
            writer = csv.DictWriter(file, names, delimiter=delimiter)
            writer.writeheader()
            one, two = ({k: v for k, v in r.items() if k != "options"} for r in rows)
            writer.writerow(one | {"options": "red|blue | green"})
            writer.writerow(two | dict(zip("ABC", rows[1]["options"], strict=True)))
    found = [[r._replace(number=0) for r in read_questions(path, "benchmark.questions", True)] for path in forms]
    for other in found:
        other[1].question.pop("id")  # the number of its line
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0][0].question == {
        "id": "x", "task": "color", "question": "what color is the ring ?", "options": ["red", "blue", "green"],
        "gold": 1,
    }  # fmt: skip
    assert (found[0][1].section, found[0][1].question["gold"]) == ((1.0, 2.5), 2)


@pytest.mark.parametrize("mark", [",", ";"])
@pytest.mark.parametrize(
    "names", ["A B C", "option_1 option_2 option_3", "option_0 option_1 option_2", "option_a Option_b option_c"]
)
def test_a_spreadsheets_own_columns_are_options(tmp_path: Path, mark: str, names: str) -> None:
    path = tmp_path / "q.csv"

    def read(answer: str) -> list:
        lines = [
            ["video", "question", *names.split(), "answer"],
            ["a.mp4", "what, now ?", "red", "blue", "1,5 green", answer],
        ]
        with open(path, "w", newline="") as file:
            csv.writer(file, delimiter=mark).writerows(lines)
        return read_questions(path, "benchmark.questions", True)

    assert [read(answer)[0].question["gold"] for answer in ("B", "blue", "1,5 green")] == [1, 1, 2]
    assert read("B")[0].question["options"] == ["red", "blue", "1,5 green"]
    if names.startswith("option_1"):
        with pytest.raises(UserError, match="row 2 has answer 2 beside columns that count from 1"):
            read("2")
    else:
        assert read("2")[0].question["gold"] == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"q": "what ?", "video": "a"}], "row 1 lacks question, answer, options; it has q, video, expected question,"),
        ([row("a"), row("a", options=None)], "row 2 lacks options.*without options are asked by benchmark=open"),
        ([row("a", answer="D")], "row 1 has answer 'D', expected exactly one of the options, its letter or its place"),
        ([row("a", options=["red"])], "row 1 has 1 options, expected 2 to 26"),
        ([row("a", options=[str(i) for i in range(27)])], "row 1 has 27 options"),
        ([row("a", options=["red", "red"])], "two equal options"),
        ([row("a", id="x"), row("a", id="x")], "row 2 has the id 'x', as row 1"),
        ([row("a", start=3, end=2)], "row 1 ends at 2 s, before it starts at 3 s"),
        ([row("a", gold=3)], "row 1 has gold 3, expected the place of an option, 0 to 2"),
        ([row("")] * 5, r"row 1 has video ''.*; and 2 rows more"),
        ([], "holds no question"),
        ([["what ?"]], "row 1 is no object"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_asked_are_refused_by_their_number(tmp_path: Path, rows: list, message: str) -> None:
    path = write_rows(tmp_path / "q.jsonl", rows)
    with pytest.raises(UserError, match=message):
        Choices(questions=str(path)).check(None)


def test_files_and_folders_that_are_not_there_are_said(tmp_path: Path, videos: Path) -> None:
    good = write_rows(tmp_path / "q.jsonl", [row("z.mp4")])
    with pytest.raises(UserError, match="benchmark.questions=.*none.csv: cannot be read"):
        Choices(questions=str(tmp_path / "none.csv")).check(None)
    with pytest.raises(UserError, match="benchmark.videos=.*none: no such folder"):
        Choices(questions=str(good), videos=str(tmp_path / "none")).check(None)
    with pytest.raises(UserError, match=r"none of the 1 videos is there \(z.mp4"):
        Choices(questions=str(good)).check(None)
    with pytest.raises(UserError, match="q.txt: its ending says no form"):
        Choices(questions=str(good.rename(tmp_path / "q.txt"))).check(None)
    with pytest.raises(UserError, match="both say what is asked"):
        Choices(questions="q.jsonl", path="shards")
    with pytest.raises(UserError, match="needs the questions about them"):
        Choices(videos="videos")
    outside = write_rows(tmp_path / "out.jsonl", [row("../q.txt")])
    with pytest.raises(UserError, match=r"row 1 names '../q.txt', which does not lie in this folder"):
        Choices(questions=str(outside), videos=str(videos)).check(None)


# -------------------------------------------------------------------------------------------------- the whole of it


def test_questions_that_are_too_long_are_counted(tmp_path: Path, videos: Path) -> None:
    rows = [row("a.mp4"), row("a.mp4", question="what color " * 60), row("b", question="what color " * 60)]
    path = str(write_rows(tmp_path / "q.jsonl", rows))
    records, _ = ask(Choices(questions=path, videos=str(videos), blind=False), tmp_path / "out")
    assert records["tiny", "questions_too_long"]["value"] == 2 and records["tiny", "accuracy_micro"]["n"] == 1


@pytest.mark.fault(107)
def test_a_file_beside_a_folder_of_videos_is_asked_whole(tmp_path: Path, videos: Path, caplog: Any) -> None:
    rows = [
        row("a.mp4", task="color"),
        row("a.mp4", task="color", question="how many ?", options=["one", "two"], answer=1),
        row("a.mp4", start=1.0, end=2.0, task="direction"),
        row("b", task="shape", options=["circle", "star", "ring", "red"], answer="D"),  # by its name alone
        row("c.png", task="shape"),
        row("stills", task="shape", fps=2),
        row("gone.mp4", task="shape"),
        row("gone.mp4", task="shape", question="how many ?"),
    ]
    benchmark = Choices(questions=str(write_rows(tmp_path / "q.jsonl", rows)), videos=str(videos), batch_size=3)
    with caplog.at_level(logging.WARNING):
        benchmark.check(None)
    assert "1 videos are not there (gone.mp4); their 2 questions will not be asked" in caplog.text
    records, lines = ask(benchmark, tmp_path / "out")
    seen = [line for line in lines if line["variant"] == "tiny"]
    assert len(seen) == 6 and len(lines) == 12, "everything once more without frames"
    assert [line["key"] for line in seen] == ["a.mp4"] * 3 + ["sub/b.mp4", "c.png", "stills"]
    assert seen[1]["question"] == "how many ?" and seen[1]["options"] == ["one", "two"] and seen[1]["gold"] == 1
    mean = records["tiny", "accuracy_micro"]
    assert mean["value"] == pytest.approx(sum(x["pred"] == x["gold"] for x in seen) / 6)
    assert mean["n"] == 6 and mean["chance"] == pytest.approx((4 / 3 + 1 / 2 + 1 / 4) / 6)
    assert records["blind", "accuracy_micro"]["chance"] == mean["chance"]
    assert {m for v, m in records if v == "tiny" and "/" in m} == {
        f"accuracy/{t}" for t in ("color", "direction", "shape")
    }
    assert records["tiny", "questions_without_video"]["value"] == 2
    (bad,) = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert bad["key"] == "gone.mp4" and "2 questions" in bad["error"]
    shown = [json.loads(line) for line in (tmp_path / "out/clips/clips.jsonl").read_text().splitlines()]
    assert {line["question"] for line in shown} == {line["question"] for line in seen} and shown[0]["options"]
    wrong = {line["sheet"] for line in shown if not line["right"]}
    order = list(dict.fromkeys(line["sheet"] for line in shown))
    assert 0 < len(wrong) and set(order[: len(wrong)]) == wrong, "clips with wrong answers come first"
    again = score_predictions(tmp_path / "out/predictions.jsonl", Label("own", "x", 0), tmp_path / "again", benchmark)
    assert {(r["variant"], r["metric"]): r["value"] for r in again} == {
        name: r["value"] for name, r in records.items() if name[1] != "questions_without_video"
    }


def test_one_misspelt_task_among_others_is_refused_whoever_asks(tmp_path: Path, videos: Path) -> None:
    questions = write_rows(tmp_path / "q.jsonl", [row("a.mp4", task="color"), row("c.png", task="shape")])
    for names, words in ((["color", "shap"], "'shap' is none of them; did you mean 'shape'"), (["color"], None)):
        own = Choices(questions=str(questions), videos=str(videos), tasks=names)
        loaded: Any = SimpleNamespace(benchmark=lambda own=own: own, data=None)
        with pytest.raises(UserError, match=words) if words else nullcontext():
            assert asked_for(loaded) is own


def test_a_part_of_a_video_shows_its_own_frames(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(8, dtype=np.uint8) * 30, 4)[:, None, None, None] * np.ones((1, 3, 32, 32), np.uint8)
    write_mp4(frames.astype(np.uint8), tmp_path / "a.mp4", fps=4.0, scale=1)  # one brightness a second
    questions = write_rows(tmp_path / "q.jsonl", [row("a.mp4", start=2, end=4), row("a.mp4"), row("a.mp4", start=9)])
    clips = Choices(questions=str(questions)).source(None)
    found = []
    for i in range(2):
        sample = samples.parse(clips.read(i), clips.keys[i], "general", clips.uid(i))
        pixels, times = samples.frames(clips.sources(i), sample, 2, (32, 32))
        found.append(([round(float(p.mean()) / 30) for p in pixels], times.tolist()))
    assert found[0] == ([2, 3], [0.5, 1.5]) and found[1] == ([2, 6], [2.0, 6.0])
    late = samples.parse(clips.read(2), clips.keys[2], "general", clips.uid(2))
    with pytest.raises(UserError, match="ends at 8 s, the section begins at 9 s"):
        samples.frames(clips.sources(2), late, 2, (32, 32))


def test_other_shards_and_letters_and_words(tmp_path: Path, videos: Path) -> None:
    data = tmp_path / "shards"
    data.mkdir()
    asked = [{"question": "what color is the ring ?", "options": ["red", "blue"], "answer": "B"}]
    members = {"mp4": (videos / "a.mp4").read_bytes(), "json": json.dumps({"questions": asked}).encode()}
    write_shard(data / "dev-000000.tar", [("one", members), ("two", members)], "val", ["general"] * 2)
    with pytest.raises(UserError, match="benchmark.split=test: benchmark.path=.*shards has no such split, it has val"):
        Choices(path=str(data)).check(None)
    with pytest.raises(UserError, match="benchmark.path=.*none: no such folder"):
        Choices(path=str(tmp_path / "none")).check(None)
    records, lines = ask(Choices(path=str(data), split="val", scoring="generate", blind=False), tmp_path / "said")
    assert [line["question_id"] for line in lines] == ["val/dev-000000/one/q0", "val/dev-000000/two/q0"]
    assert all(isinstance(line["text"], str) for line in lines)
    assert records["tiny", "accuracy_macro"]["chance"] == 0.5
