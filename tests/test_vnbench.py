"""benchmark=vnbench: the parsers and the 4-of-4 rule by hand, published line formats, annotation files at fault."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvlm.benchmark._vnbench_annotations import FIELDS, TASKS, read_annotations, source_of, stem_of
from hvlm.benchmark._vnbench_lines import is_published, parse, read_published
from hvlm.benchmark.vnbench import VNBench
from hvlm.commands.eval import evaluate as eval_script
from hvlm.errors import UserError
from hvlm.evaluation.answers import MISSING, UNREAD
from hvlm.evaluation.evaluate import score_predictions
from hvlm.evaluation.needle_map import needle_map, write_needle_map
from hvlm.evaluation.predictions import read_predictions, write_predictions
from hvlm.evaluation.results import Label
from hvlm.evaluation.scores import Prediction
from hvlm.viz.media import write_mp4

NAMES = ("Alice", "Bob", "Mary", "Kate")
Lines = list[dict[str, Any]]


def annotation(name: str = "video0_ret_edit1", task: str = "ret_edit1", **changes: Any) -> Lines:
    """The four rows of a video; the right one is Bob, at B, A, D, C."""
    rows = []
    for attempt, gold in enumerate((1, 0, 3, 2)):
        options = [n for n in NAMES if n != "Bob"]
        options.insert(gold, "Bob")
        row = {
            "video": f"./VNBench/{name}.mp4", "question": "What is the secret word?", "options": options, "gt": "Bob",
            "gt_option": "ABCD"[gold], "needle_time": [12.0], "length": 37.5, "type": task, "try": attempt,
        }  # fmt: skip
        rows.append(row | changes)
    return rows


def by_path(name: str, task: str, answers: Iterable[str | None], gold: str = "BADC") -> Lines:
    return [
        {"video_path": f"./VNBench/{name}.mp4", "prompt": "Q\nA. a\nB. b\nC. c\nD. d", "pred": answer, "gt": right,
         "task_type": task, "try": i, "model_id": "m"}
        for i, (answer, right) in enumerate(zip(answers, gold, strict=False))
    ]  # fmt: skip


def by_id(name: str, task: str, answers: Iterable[str | None], gold: Iterable[str | int] = "BADC") -> Lines:
    return [
        {"question_id": f"{name}_{i}", "pred": answer, "gt": right, "type": task, "try": i, "prompt": "Q"}
        for i, (answer, right) in enumerate(zip(answers, gold, strict=False))
    ]


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def scored(path: Path, **settings: Any) -> dict[str, dict]:
    benchmark = VNBench(**settings)
    found = benchmark.predictions(path, "m")
    assert found is not None
    return {r["metric"]: r for r in benchmark.score(found)}


# ------------------------------------------------------------------------------------------------------------ parsers


@pytest.mark.parametrize(
    ("written", "official", "first", "strict"),
    [
        ("B", 1, 1, 1),
        ("B. Bob", 1, 1, 1),
        ("Answer: B", 0, 0, 1),  # the A of Answer
        ("The answer is B.", 1, None, 1),
        ("Option B", 1, None, 1),
        ("bird", None, None, None),  # no capital letter
        ("Cat", 2, 2, None),  # a letter inside a word
        ("I see Dogs", 3, None, None),
        ("D or C", 2, 3, None),  # in the order A, B, C, D, not in that of the text
        ("It is the second. B", None, None, None),  # after the first full stop
        (" B", 1, None, 1),
        ("Bob", 1, 1, 1),
        ("E", None, None, None),
    ],
)
def test_three_parsers_by_hand(written: str, official: int | None, first: int | None, strict: int | None) -> None:
    for parser, index in (("official", official), ("first", first), ("strict", strict)):
        reading = parse(written, NAMES, parser)
        assert reading.index == index, parser
        assert reading.problem == ("" if index is not None else UNREAD)


@pytest.mark.parametrize("parser", ["official", "first", "strict"])
def test_null_and_empty_are_no_answer_in_every_parser(parser: str) -> None:
    assert {parse(nothing, NAMES, parser).problem for nothing in (None, "", "  ")} == {MISSING}


def test_letters_that_were_not_offered_are_none() -> None:
    assert parse("D", ("a", "b", "c"), "official").index is None


# -------------------------------------------------------------------------------------------------------- 4 of 4 rule


@pytest.mark.parametrize("form", [by_id, by_path])
def test_the_rule_by_hand(tmp_path: Path, form: Any, caplog: pytest.LogCaptureFixture) -> None:
    lines = form("video0_ret_edit1", "ret_edit1", "BADC")  # four right
    lines += form("video1_ret_edit1", "ret_edit1", ["B", "A", "D", None])  # three right, one null
    lines += form("video2_ret_edit1", "ret_edit1", ["B", "A", "D", ""])
    lines += form("video0_ord_edit1", "ord_edit1", ["Answer: B", "A", "D", "C"])  # strict: right
    lines += form("video1_ord_edit1", "ord_edit1", "BADC")
    with caplog.at_level(logging.INFO):
        rows = scored(write_lines(tmp_path / "p.jsonl", lines))
    assert "20 predictions, 2 of them null (null or empty ones count as wrong)" in caplog.text
    assert rows["accuracy_4of4/ret_edit1"]["value"] == pytest.approx(1 / 3)
    assert rows["accuracy/ret_edit1"]["value"] == pytest.approx(10 / 12)
    assert rows["accuracy_4of4/ord_edit1"]["value"] == pytest.approx(1 / 2)
    assert rows["accuracy_4of4"]["value"] == pytest.approx((1 / 3 + 1 / 2) / 2), "every type weighs the same"
    assert rows["accuracy_4of4"]["chance"] == pytest.approx(0.25**4)
    assert rows["accuracy_4of4"]["n"] == 5 and rows["accuracy_4of4"]["videos"] == 3, "clustered by the haystack"
    assert rows["strict_accuracy_4of4/ord_edit1"]["value"] == 1
    assert rows["predictions_null"]["value"] == 2 and rows["predictions_null"]["n"] == 20
    assert "tries_absent" not in rows and "accuracy_4of4/ret" not in rows


def test_groups_are_means_over_their_tasks(tmp_path: Path) -> None:
    lines = by_path("a_ret_edit1", "ret_edit1", "BADC") + by_path("b_ret_edit1", "ret_edit1", "AAAA")
    lines += by_path("a_ret_insert1", "ret_insert2", "BADC") + by_path("a_cnt_edit1", "cnt_edit1", "AAAA")
    rows = scored(write_lines(tmp_path / "p.jsonl", lines))
    assert rows["accuracy_4of4/ret"]["value"] == pytest.approx((1 / 2 + 1) / 2)
    assert rows["accuracy_4of4"]["value"] == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_one_letter_for_everything_scores_nothing(tmp_path: Path) -> None:
    rows = scored(write_lines(tmp_path / "p.jsonl", by_path("a_ret_edit1", "ret_edit1", "AAAA")))
    assert rows["accuracy_4of4"]["value"] == 0 and rows["accuracy_mean"]["value"] == 0.25


@pytest.mark.parametrize("form", [by_id, by_path])
def test_swapped_type_and_name_are_grouped_by_path_and_scored_by_type(tmp_path: Path, form: Any) -> None:
    """Two files of one haystack whose types are swapped against the ends of their names, as in the release."""
    lines = form("video0_ret_insert2", "ret_insert1", "BADC")
    lines += form("video0_ret_insert1", "ret_insert2", "AAAA")
    for order in (lines, lines[::2] + lines[1::2], lines[::-1]):
        rows = scored(write_lines(tmp_path / "p.jsonl", order))
        assert rows["accuracy_4of4/ret_insert1"]["value"] == 1 and rows["accuracy_4of4/ret_insert2"]["value"] == 0
        assert rows["accuracy_4of4"]["n"] == 2


def test_tries_that_are_absent_are_named_and_cost_the_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = by_path("a_ret_edit1", "ret_edit1", "BADC") + by_path("b_ret_edit1", "ret_edit1", "BADC")
    del lines[6:], lines[1]
    with caplog.at_level(logging.WARNING):
        rows = scored(write_lines(tmp_path / "p.jsonl", lines))
    assert "2 videos lack tries and count as wrong: ./VNBench/a_ret_edit1.mp4: try 1; " in caplog.text
    assert "./VNBench/b_ret_edit1.mp4: try 2, 3" in caplog.text
    assert rows["accuracy_4of4"]["value"] == 0 and rows["accuracy_mean"]["value"] == pytest.approx(5 / 8)
    assert rows["tries_absent"]["value"] == 3 and rows["predictions_null"]["value"] == 0


def test_the_right_letter_may_be_an_index_or_a_text(tmp_path: Path) -> None:
    lines = by_id("a_ret_edit1", "ret_edit1", "BADC", (1, 0, 3, 2))
    assert scored(write_lines(tmp_path / "p.jsonl", lines))["accuracy_4of4"]["value"] == 1
    prompt = "What?\nA. 7\nB. 9\nC. 4\nD. 5\nAnswer with the option's letter from the given choices directly."
    lines = [line | {"prompt": prompt, "gt": gt} for line, gt in zip(lines, ("9", "7", "5", "4"), strict=True)]
    found = read_published(write_lines(tmp_path / "p.jsonl", lines), "m", "official")
    assert [p.gold for p in found] == [1, 0, 3, 2] and found[0].options == ("7", "9", "4", "5")
    assert all(p.right for p in found) and found[0].question == "What?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "{'question_id': 'a', 'prompt': 'it\\'s'}",
            r"line 3: not valid JSON .* expected one object a line, with double",
        ),
        ("[1]", r"line 3: holds \[1\], expected an object"),
        ('{"video_path": "a", "pred": "A"}', "line 3: gt, task_type, try missing"),
        ('{"question_id": "a_0", "pred": 3, "gt": "A", "type": "ret_edit1", "try": 0}', "line 3: pred is 3"),
        ('{"question_id": "a_0", "pred": "A", "gt": "F", "type": "ret_edit1", "try": 0}', "line 3: gt is 'F'"),
        ('{"question_id": "a_0", "pred": "A", "gt": "A", "type": "ret_edit1", "try": 4}', "line 3: try is 4"),
        (json.dumps(by_id("v", "ret_edit1", "B")[0]), "line 3: try 0 of v stands here twice"),
        (json.dumps(by_id("v", "cnt_edit1", "BA")[1]), "line 3: v is of type 'cnt_edit1', and of 'ret_edit1' above"),
    ],
)
def test_lines_at_fault_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(by_id("v", "ret_edit1", "B")[0]) + "\n\n" + line + "\n")
    with pytest.raises(UserError, match=f"p.jsonl, {message}"):
        scored(path)


def test_the_script_scores_without_a_model_and_writes_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_lines(tmp_path / "p.jsonl", by_path("a_ret_edit1", "ret_edit1", ["B", "A", "D", None]))
    out = tmp_path / "made" / "scores.json"
    words = ["benchmark=vnbench", f"predictions={path}", f"out={out}"]
    with caplog.at_level(logging.INFO):
        records = eval_script(words)
    assert json.loads(out.read_text()) == records and list(out.parent.iterdir()) == [out]
    assert {r["metric"]: r["value"] for r in records}["accuracy_mean"] == 0.75
    assert "1 of them null" in caplog.text and "accuracy/ret_edit1" in caplog.text
    again = score_predictions(path, Label("p", "m", 0), tmp_path / "folder", VNBench(parser="strict"))
    assert (tmp_path / "folder" / "results.json").exists()
    assert {r["metric"] for r in again} >= {"official_accuracy_4of4"}


def test_annotations_add_places_and_say_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "VNBench-main-4try.json"
    rows = annotation("video0_ret_insert2", "ret_insert1") + annotation("video0_ret_insert1", "ret_insert2")
    file.write_text(json.dumps(rows + annotation("video9_ret_edit1")))
    for form, name in ((by_path, "video0_ret_insert2"), (by_id, "video0_ret_insert1")):
        path = write_lines(tmp_path / "p.jsonl", form(name, "ret_insert1", "BADC"))
        with caplog.at_level(logging.WARNING):
            (first, *_) = VNBench(annotations=str(file)).predictions(path, "m")
        assert first.depth == pytest.approx(12 / 37.5) and first.length == 37.5
        assert first.options == ("Alice", "Bob", "Mary", "Kate") and first.key == "video0"
        assert "nothing about 2 of the 3 annotated videos (ret_edit1 1, ret_insert2 1;" in caplog.text
        caplog.clear()
    path = write_lines(tmp_path / "p.jsonl", by_path("video9_ret_edit1", "ret_edit1", "B", gold="C"))
    with pytest.raises(UserError, match="line 1: gt is C, and the annotations say B for try 0"):
        VNBench(annotations=str(file)).predictions(path, "m")


# -------------------------------------------------------------------------------------------------------- annotations


def test_annotations_are_grouped_by_path_whatever_the_type(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = annotation("v_x.y_ret_insert2", "ret_insert1") + annotation("v_x.y_ret_insert1", "ret_insert2")
    path.write_text(json.dumps(rows[::2] + rows[1::2]))
    first, second = read_annotations(path)
    assert (first.task, first.stem, len(first.tries)) == ("ret_insert1", "v_x.y_ret_insert2", 4)
    assert first.tries[2] == (("Alice", "Mary", "Kate", "Bob"), 3)
    assert first.depth == pytest.approx(0.32) and {source_of(v.stem) for v in (first, second)} == {"v_x.y"}
    assert tuple(rows[0]) == FIELDS and len(TASKS) == 9


def test_names_of_sources() -> None:
    assert stem_of("./VNBench_new/video7_cnt_insert.mp4") == "video7_cnt_insert"
    assert source_of("video7_cnt_insert") == source_of("video7_cnt_edit1_cnt_edit1") == "video7"
    assert source_of("bikes+0012_ret_edit1") == "bikes"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": 1}, "holds dict"),
        ([], "holds an empty list"),
        ([3], "row 1 is 3; expected an object with video, question"),
        ([{"video": "a"}], "row 1 lacks question, options, type, try; it has video"),
        (annotation(gt="Eve"), "row 1 has gt 'Eve', which is none of its options.*and 1 rows more"),
        (annotation()[:1] + annotation()[:1], "row 2 is try 0 of .* which stands there already"),
        ([annotation()[0] | {"gt_option": "C"}], "row 1 has gt_option C, which is 'Mary', and gt 'Bob'"),
        ([annotation()[0] | {"gt_option": "AB", "gt": None}], "row 1 has gt_option 'AB', expected a letter up to D"),
        ([annotation()[0] | {"try": 9}], "row 1 has try 9, expected 0 to 3"),
        ([annotation()[0] | {"options": ["Bob", "Bob"], "gt_option": None}], "two of its options, and no gt_option"),
        ([annotation()[0] | {"options": ["Bob"]}], "expected 2 to 26"),
        ([annotation()[0] | {"needle_time": "x"}], r"row 1 has needle_time \['x'\]"),
        ([annotation()[0], annotation(task="cnt_edit1")[1]], "row 2 has type 'cnt_edit1' for"),
    ],
)
def test_annotations_at_fault_are_one_line(tmp_path: Path, rows: Any, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=message) as error:
        read_annotations(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"benchmark.annotations={path}: ")


def test_a_cut_annotation_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(annotation())[:-40])
    with pytest.raises(UserError, match=r"not valid JSON \(.*\), cut short or damaged; expected one list") as error:
        VNBench(annotations=str(path)).source(None)
    assert "\n" not in str(error.value)


def test_videos_are_found_beside_or_in_another_folder_and_absent_ones_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Data:
        access = "index"

    file = tmp_path / "VNBench-annotations.json"
    file.write_text(json.dumps(annotation("video0_ret_edit1") + annotation("video1_ret_edit1")[:3]))
    with pytest.raises(UserError, match="none of the 2 videos is there"):
        VNBench(annotations=str(file)).source(None)
    write_mp4(np.zeros((4, 3, 32, 32), np.uint8), tmp_path / "VNBench" / "video1_ret_edit1.mp4", scale=1)
    benchmark = VNBench(annotations=str(file))
    with caplog.at_level(logging.WARNING):
        (question,) = benchmark.check(Data())
    assert "1 videos are not there (video0_ret_edit1.mp4); their 1 questions will not be asked" in caplog.text
    assert "1 videos have fewer than four tries and count as wrong: ./VNBench/video1_ret_edit1.mp4" in caplog.text
    assert (question.task, question.key, question.depth) == ("ret_edit1", "video1", pytest.approx(0.32))
    assert question.tries[0].prompt == (
        "What is the secret word?\nA. Alice\nB. Bob\nC. Mary\nD. Kate\n"
        "Answer with the option's letter from the given choices directly."
    )
    moved = VNBench(annotations=str(file), videos=str(tmp_path / "VNBench")).source(None)
    assert moved.keys == ["video1_ret_edit1.mp4"] and moved.missing == {"video0_ret_edit1.mp4": 1}
    with pytest.raises(UserError, match="benchmark.annotations= is missing"):
        VNBench().source(None)


def test_what_a_model_writes_is_read_by_the_parser() -> None:
    tries = [{"options": row["options"], "gold": "ABCD".index(row["gt_option"])} for row in annotation()]
    sample = {
        "uid": "u", "key": "k", "needle_depth": 0.5, "needle_length": 10.0,
        "questions": [{"id": "q", "task": "ret_edit1", "question": "What?", "tries": tries, "evidence": []}],
    }  # fmt: skip
    for parser, right in (("official", [False, True, False, False]), ("strict", [True, False, False, False])):
        benchmark = VNBench(parser=parser)
        (question,) = benchmark.all_questions(sample)
        written = {one.prompt: "Answer: B" for one in question.tries}
        predictions = benchmark.read(question, written, "m")
        assert [p.right for p in predictions] == right
        assert {(p.depth, p.length, p.text) for p in predictions} == {(0.5, 10.0, "Answer: B")}


# ---------------------------------------------------------------------------------------------------------------- map


def one(depth: float | None, length: float | None, right: bool, number: int = 0, variant: str = "m") -> Prediction:
    pred = 0 if right else 1
    return Prediction(
        f"q{number}", "v", "ret_edit1", 0, NAMES, 0, pred, None, variant, depth=depth, length=length
    )  # fmt: skip


def test_the_map_counts_right_tries_by_depth_and_length(tmp_path: Path) -> None:
    made = [one(0.0, 10.0, True, 0), one(0.1, 10.2, False, 1), one(1.0, 60.0, True, 2), one(None, None, True, 3)]
    found = needle_map([*made, one(0.5, 10.0, True, 4, "blind")])
    assert found is not None and found.lengths == [(10.0, 10.2), (60.0, 60.0)]
    assert found.share_DL[0, 0] == 0.5 and found.share_DL[4, 1] == 1.0 and found.count_DL.sum() == 3
    assert np.isnan(found.share_DL[2]).all()
    path = tmp_path / "needles.png"
    assert write_needle_map(made, path) == path
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[0] > 150 and (pixels == (22, 78, 140)).all(-1).any(), "the darkest colour: all right"
    assert write_needle_map(made[3:], path) is None and not path.exists(), "no older picture stays"
    many = needle_map(one(0.5, float(10 + 3 * i), True, i) for i in range(40))
    assert many is not None and many.share_DL.shape == (5, 8) and many.count_DL.sum() == 40


def test_depth_and_length_travel_through_the_predictions_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write_predictions(path, [one(0.25, 30.0, True)])
    assert json.loads(path.read_text())["depth"] == 0.25
    (p,) = read_predictions(path)
    assert (p.depth, p.length) == (0.25, 30.0) and not is_published(path)
    path.write_text(path.read_text().replace("0.25", '"deep"'))
    with pytest.raises(UserError, match="line 1: depth is 'deep'"):
        read_predictions(path)
