"""``hvlm convert``: predictions of lmms-eval and VLMEvalKit, read and written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from hvlm import commands
from hvlm.errors import UserError
from hvlm.evaluation.predictions import read_predictions, write_predictions
from hvlm.evaluation.scores import Prediction
from hvlm.interop.convert import convert

HASH = "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b"
QUESTIONS: list[dict[str, Any]] = [
    {"question_id": "001-1", "videoID": "fFjv93ACGo8", "task_type": "Counting", "question": "How many?",
     "options": ["A. 1", "B. 2", "C. 10", "D. 3"], "answer": "C"},
    {"question_id": "001-2", "videoID": "fFjv93ACGo8", "task_type": "Colour", "question": "Which colour?",
     "options": ["A. red", "B. blue"], "answer": "A"},
    {"question_id": "002-1", "videoID": "N1cdUjctpG8", "task_type": "Colour", "question": "Is it red?",
     "options": ["A. yes", "B. no", "C. A or B"], "answer": "B"},
]  # fmt: skip


def sample(index: int, target: str, said: Any, question: str = "", **more: Any) -> dict[str, Any]:
    """A row as lmms-eval 0.7.3 writes it."""
    row = {"doc_id": index, "target": target, "filtered_resps": said, "token_counts": [None], "doc_hash": HASH}
    return {**row, "acc": 1.0, "input": question or QUESTIONS[index]["question"] + "\nA. ...", **more}


def losses(*values: float) -> list[list[str]]:
    return [[str(value), "False"] for value in values]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return lines(tmp_path / "questions.jsonl", QUESTIONS)


def test_samples_of_lmms_eval_are_joined_by_doc_id(tmp_path: Path, table: Path) -> None:
    rows = [sample(2, "B", "(B) no"), sample(0, "C", "C"), sample(1, "A", ["I see blue"])]  # in any order of lines
    path = lines(tmp_path / "x_samples_videomme.jsonl", rows)
    commands.run(["convert", str(path), f"annotations={table}", f"out={tmp_path / 'out.jsonl'}", "variant=theirs"])
    found = read_predictions(tmp_path / "out.jsonl")
    assert [(p.question_id, p.key, p.task, p.pred, p.gold, p.problem, p.variant) for p in found] == [
        ("001-1", "fFjv93ACGo8", "Counting", 2, 2, "", "theirs"),
        ("001-2", "fFjv93ACGo8", "Colour", None, 0, "unread", "theirs"),
        ("002-1", "N1cdUjctpG8", "Colour", 1, 1, "", "theirs"),
    ]
    assert found[0].options == ("1", "2", "10", "3") and found[2].text == "(B) no"


def test_the_smallest_loss_is_the_answer(tmp_path: Path, table: Path) -> None:
    said = [losses(3, 2, 0.5, 4), losses(2, 1), losses(1.5, float("nan"), 2)]
    path = lines(tmp_path / "s.jsonl", [sample(i, str([2, 0, 1][i]), one) for i, one in enumerate(said)])
    out, _ = convert(path, "hvlm", table)
    found = read_predictions(out)
    assert [p.pred for p in found] == [2, 1, None] and found[0].scores == (-3, -2, -0.5, -4)
    assert found[2].problem == "missing"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([sample(0, "C", "C"), sample(1, "A", "A")], r"its 2 doc_id go to 1, and annotations= has 3 questions"),
        ([sample(0, "C", "C"), sample(1, "A", "A"), sample(3, "B", "B", "?")], r"go to 3, and annotations= has 3"),
        ([sample(0, "C", "C"), sample(1, "A", "A"), sample(1, "B", "B")], r"line 3: doc_id 1 stands in line 2, too"),
        (
            [sample(0, "A", "C", "?"), sample(1, "C", "A"), sample(2, "B", "B")],
            r"doc_id 0 has target 'A' where annotations= says 'C. 10'",
        ),
        ([sample(0, "C", losses(1, 2)), sample(1, "A", "A"), sample(2, "B", "B")], r"\[loss, greedy\] for each of 4"),
        ([sample(0, "C", "C"), {"doc_id": 1, "target": "A"}], r"line 2: lacks filtered_resps"),
    ],
)
def test_samples_of_another_table_are_refused(tmp_path: Path, table: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        convert(lines(tmp_path / "s.jsonl", rows), "hvlm", table)
    assert not list(tmp_path.glob("*.predictions.jsonl"))


def test_samples_need_the_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the task's table of questions with annotations=FILE"):
        convert(lines(tmp_path / "s.jsonl", [sample(0, "C", "C")]), "hvlm")


VIDEO_MME = (
    "index\tvideo\tvideo_path\tduration\tdomain\tcandidates\tsub_category\ttask_type\tsubtitle_path\tquestion\tanswer"
    "\tprediction\n"
    '0\tfFjv93ACGo8\t./video/fFjv93ACGo8.mp4\tshort\tKnowledge\t"[\'A. 1.\', ""B. don\'t""]"\tHistory\tCounting\t'
    "./subtitle/x.srt\tHow many?\tB\tB. don't\n"
    "1\tfFjv93ACGo8\t./video/x.mp4\tshort\tKnowledge\t['A. a', 'B. b']\tHistory\tCounting\t\tWhich?\tA\t-1\n"
    "2\tN1cdUjctpG8\t./video/y.mp4\tlong\tArt\t['A. a', 'B. b']\tHistory\tOther\t\tWhich?\tA\t"
    "Failed to obtain answer via API.\n"
    "3\tN1cdUjctpG8\t./video/y.mp4\tlong\tArt\t['A. a', 'B. b']\tHistory\tOther\t\tWhich?\tA\t\"A\nas a boat\"\n"
)
MVBENCH = (
    "index\ttask_type\tprefix\tdata_type\tbound\tstart\tend\tvideo\tquestion\tanswer\tcandidates\tprediction\n"
    "0\tAction Count\tp/\tvideo\tFalse\t0.0\t0.0\tv.mp4\tHow often?\t3\t['4', '2', '3']\t(C)\n"
    "1\tState Change\tp/\tvideo\tTrue\t1.5\t9.0\tw.mp4\tWhat?\tNot sure\t['Yes', 'Not sure']\tAnswer: A\n"
)


def test_tables_of_vlmevalkit_are_read(tmp_path: Path) -> None:
    (tmp_path / "m_Video-MME_8frame.tsv").write_text(VIDEO_MME)
    commands.run(["convert", str(tmp_path / "m_Video-MME_8frame.tsv"), f"out={tmp_path / 'out.jsonl'}"])
    found = read_predictions(tmp_path / "out.jsonl")
    assert [(p.question_id, p.pred, p.gold, p.problem) for p in found[:3]] == [
        ("0", 1, 1, ""), ("1", None, 0, "missing"), ("2", None, 0, "missing"),
    ]  # fmt: skip
    assert found[0].options == ("1.", "don't") and found[0].key == "fFjv93ACGo8" and found[3].text == "A\nas a boat"
    (tmp_path / "m_MVBench.tsv").write_text(MVBENCH)
    out, count = convert(tmp_path / "m_MVBench.tsv")
    assert [(p.task, p.pred, p.gold) for p in read_predictions(out)] == [("Action Count", 2, 2), ("State Change", 0, 1)]
    rows = list(csv.DictReader(MVBENCH.splitlines(), delimiter="\t"))
    (tmp_path / "m.json").write_text(json.dumps(rows))
    assert convert(tmp_path / "m.json") == (tmp_path / "m.predictions.jsonl", count)
    assert read_predictions(tmp_path / "m.predictions.jsonl") == read_predictions(out)


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(MVBENCH.replace("Not sure\t[", "Maybe\t["))
    with pytest.raises(UserError, match="a.tsv: row 3 has answer 'Maybe', expected exactly one of the options"):
        convert(tmp_path / "a.tsv")
    letters = {"question": "?", "video": "v", "options": ["B", "A"], "answer": "A", "prediction": "A"}
    for row, said in (
        (letters, "has answer 'A', a letter and another option's text; give its place from 0 as gold"),
        ({**letters, "options": 5}, "has options 5, expected a list of texts"),
        ({**letters, "options": ["x", "x"]}, "has two equal options"),
        ({**letters, "options": ["x", "y"], "try": [1]}, "has try '\\[1\\]', expected 0, 1, 2"),
        ({"question": "?", "prediction": "A"}, "lacks answer"),
    ):
        (tmp_path / "d.json").write_text(json.dumps([row]))
        with pytest.raises(UserError, match=f"d.json: row 1 {said}"):
            convert(tmp_path / "d.json")
    (tmp_path / "b.tsv").write_text(MVBENCH.replace("prediction", "said"))
    with pytest.raises(UserError, match=r"b.tsv: has index, .*; expected rows of an evaluation"):
        convert(tmp_path / "b.tsv")
    (tmp_path / "c.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match="PRED_FORMAT=tsv"):
        convert(tmp_path / "c.xlsx")


def own(tmp_path: Path) -> tuple[Path, list[Prediction]]:
    """By likelihood, in words, without an answer; two tries of a question; an open one; the blind control."""
    two = ("B", "A")  # options that are letters
    found = [
        Prediction("test/v1/q1", "v1", "letters", 0, two, 0, 1, (-2.5, -1.25), "full", question="Which letter?"),
        Prediction("test/v1/q1", "v1", "letters", 1, ("x, 'y'", 'z"'), 1, 1, None, "full", 'z"', question="a\tb\nc"),
        Prediction("test/v0/q2", "v0", "words", 0, ("red", "blue"), 1, None, None, "full", "green", problem="unread",
                   question="Which?"),
        Prediction("test/v0/q3", "v0", "words", 0, ("1", "2", "0"), 1, None, None, "full", problem="missing",
                   question="How many?"),
        Prediction("test/v0/q4", "v0", "open", 0, (), None, None, None, "full", "a ball", ("a ball", "ball"),
                   question="What?"),
    ]  # fmt: skip
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [*found, *(p._replace(variant="blind") for p in found)])
    return path, found


def test_what_is_written_reads_the_same(tmp_path: Path) -> None:
    path, found = own(tmp_path)
    samples, count = convert(path, "lmms_eval")
    assert count == len(found)
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [row["doc_id"] for row in rows] == list(range(len(found))) and {row["doc_hash"] for row in rows} == {HASH}
    assert rows[0]["filtered_resps"] == losses(2.5, 1.25) and rows[0]["acc"] == 0.0 and rows[1]["exact_match"] == 1.0
    back, _ = convert(samples, "hvlm", path, variant="full")
    # An answer that is not there is an empty text of lmms-eval.
    assert [p._replace(text=p.text or None) for p in read_predictions(back)] == found
    table, _ = convert(path, "vlmevalkit")
    again = read_predictions(convert(table, "hvlm", variant="full")[0])
    assert [(p.question_id, p.attempt, p.key, p.task, p.options, p.gold, p.answers, p.question) for p in again] == [
        (p.question_id, p.attempt, p.key, p.task, p.options, p.gold, p.answers, p.question) for p in found
    ]
    assert [p.right for p in again] == [p.right for p in found]


def test_written_tables_are_the_published_ones_with_a_prediction(tmp_path: Path, table: Path) -> None:
    """In their order, found by what stands after the last slash of a question's name."""
    names = [("test/b/002-1", 1), ("test/a/001-2", 1), ("test/a/001-1", 2)]
    by_id = {q["question_id"]: q for q in QUESTIONS}
    found = []
    for name, pred in names:
        q = by_id[name.rpartition("/")[2]]
        options = tuple(option[3:] for option in q["options"])
        found.append(
            Prediction(name, name[5:6], "t", 0, options, "ABCD".index(q["answer"]), pred, None, "full", "ABCD"[pred])
        )
    write_predictions(tmp_path / "p.jsonl", found)
    out, _ = convert(tmp_path / "p.jsonl", "vlmevalkit", table)
    rows = list(csv.DictReader(out.open(newline=""), delimiter="\t"))
    assert [(row["question_id"], row["videoID"], row["prediction"]) for row in rows] == [
        ("001-1", "fFjv93ACGo8", "C"), ("001-2", "fFjv93ACGo8", "B"), ("002-1", "N1cdUjctpG8", "B"),
    ]  # fmt: skip
    assert [p.pred for p in read_predictions(convert(out, "hvlm")[0])] == [2, 1, 1]
    samples, _ = convert(tmp_path / "p.jsonl", "lmms_eval", table)
    assert [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()] == ["C", "B", "B"]
    write_predictions(tmp_path / "p.jsonl", [found[0]._replace(gold=0), *found[1:]])
    with pytest.raises(UserError, match="another right answer for question '002-1'"):
        convert(tmp_path / "p.jsonl", "lmms_eval", table)
    write_predictions(tmp_path / "p.jsonl", found[1:])
    with pytest.raises(UserError, match="no prediction for question '002-1'"):
        convert(tmp_path / "p.jsonl", "lmms_eval", table)


def test_what_cannot_be_converted_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, found = own(tmp_path)
    write_predictions(tmp_path / "two.jsonl", [*found, *(p._replace(variant="late") for p in found)])
    for words, said in (
        ([], "predictions= is missing: hvlm convert FILE to=lmms_eval names a file of predictions"),
        ([str(path), "to=xlsx"], "to=xlsx"),
        ([str(path)], "is in the format to=hvlm already"),
        ([str(path), "to=vlmevalkit", f"out={path}"], "is what is read; name another file"),
        ([str(path), "anotations=x"], "unknown key 'anotations'; did you mean 'annotations'?"),
        ([str(tmp_path / "two.jsonl"), "to=lmms_eval"], "holds the variants full, late; say with variant="),
        ([str(path), "to=lmms_eval", "variant=nope"], "holds the variants full, blind; say with variant="),
        ([str(tmp_path / "none.tsv")], "cannot be read"),
    ):
        with pytest.raises(SystemExit):
            commands.run(["convert", *words])
        shown = capsys.readouterr().err
        assert said in shown and shown.count("\n") == 1, shown
