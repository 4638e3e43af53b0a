"""benchmark=open: what written answers are worth, by hand, and a tiny model that writes some."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_benchmark_choices import LABEL, ask, parsed, row, write_rows

from hvlm.benchmark.open import Open
from hvlm.errors import UserError
from hvlm.evaluation.evaluate import score_predictions
from hvlm.evaluation.open_scores import exact, f1, normal, normalised, score_open
from hvlm.evaluation.predictions import read_predictions, write_predictions
from hvlm.evaluation.scores import Prediction
from hvlm.viz.media import write_mp4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Red ball.", "red ball"),
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("1,000", "1000"),
        ("2.5 %", "2.5 %"),
        ("don't", "dont"),
        ("T-shirt, blue!", "t shirt blue"),
        ("12:30", "12:30"),
        ("Ｂ", "b"),
        ("A", "a"),  # an article alone is an answer
        ("?", "?"),
        ("a<b>", "b"),
        ("Straße", "strasse"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normal(text) == expected


def test_the_three_scores_by_hand() -> None:
    assert [exact(text, ["a red ball"]) for text in ("A red ball.", "red ball", "")] == [1, 0, 0]
    assert [normalised(text, ["a red ball"]) for text in ("The red, ball", "ball red", "")] == [1, 0, 0]
    assert f1("the red cube", ["a red ball"]) == pytest.approx(0.5), "red of two words each"
    assert f1("a big red ball", ["red ball"]) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert f1("red", ["a cube", "dark red"]) == pytest.approx(2 * 1 * 0.5 / 1.5), "the answer that fits best counts"
    assert f1("", ["a"]) == 0 and f1("  ", ["the"]) == 0, "nothing is not worth an article"
    assert exact("crimson", ["red", "crimson"]) == normalised("Crimson!", ["red", "crimson"]) == 1
    assert normalised("<think>is it red?</think> **red**", ["red"]) == 1


def written(name: str, video: str, task: str, text: str, *answers: str, variant: str = "m") -> Prediction:
    return Prediction(name, video, task, 0, (), None, None, None, variant, text, answers)


def test_means_errors_and_the_most_common_answer_by_hand() -> None:
    made = [
        written("1", "v", "color", "red", "red"),
        written("2", "v", "color", "blue", "Red", "crimson"),
        written("3", "w", "color", "blue", "blue"),
        written("4", "w", "count", "two", "3"),
    ]
    rows = {r["metric"]: r for r in score_open(made)}
    assert list(rows)[:4] == ["normalised_macro", "normalised_micro", "normalised/color", "normalised/count"]
    assert rows["normalised/color"]["value"] == pytest.approx(2 / 3)
    assert rows["normalised/color"]["chance"] == pytest.approx(2 / 3), "red is right twice, whoever says it"
    assert rows["normalised_macro"]["value"] == pytest.approx(1 / 3)
    assert rows["normalised_macro"]["chance"] == pytest.approx((2 / 3 + 1) / 2)
    assert rows["normalised_micro"]["value"] == pytest.approx(2 / 4)
    assert rows["f1_micro"]["chance"] == pytest.approx(3 / 4)
    # v: (1 - 1/2) + (0 - 1/2) = 0, w: the same.
    assert rows["exact_micro"]["stderr"] == 0 and rows["exact_micro"]["videos"] == 2
    assert rows["exact/color"]["stderr"] == pytest.approx(math.sqrt(2 * ((1 / 3 - 2 / 3) ** 2 + (1 / 3) ** 2) / 9))
    without = {r["metric"] for r in Open(apart=["count"]).score(made)}
    assert {"f1_macro_without_count", "f1_micro_without_count", "f1/count"} <= without and "f1_macro" not in without


def test_predictions_with_several_right_answers_go_through_the_file(tmp_path: Path) -> None:
    made = [
        written("1", "v", "color", "red", "red", "crimson")._replace(question="what color ?"),
        written("2", "v", "color", "", "blue")._replace(problem="missing"),
    ]
    write_predictions(tmp_path / "p.jsonl", made)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in lines] == [["red", "crimson"], "blue"] and lines[0]["question"] == "what color ?"
    assert read_predictions(tmp_path / "p.jsonl") == made
    records = score_predictions(tmp_path / "p.jsonl", LABEL, tmp_path, Open())
    assert {r["metric"]: r["value"] for r in records}["answers_missing"] == 1
    for wrong in ([], ["red", 1], " ", 3):
        (tmp_path / "p.jsonl").write_text(json.dumps(lines[0] | {"answer": wrong}) + "\n")
        with pytest.raises(UserError, match="line 1: answer is .*expected the right answer's text, or a list of such"):
            read_predictions(tmp_path / "p.jsonl")


def test_questions_are_asked_without_their_options() -> None:
    sample = parsed(options=["red", "blue"], answer="B")
    (question,) = Open(instruction="One word.").all_questions(sample)
    assert question.tries[0] == ("what color ?\nOne word.", (), ("blue",), 0) and question.text == "what color ?"
    assert Open(with_options=False).all_questions(sample) == []
    assert Open().all_questions(parsed(answers=["red", "crimson"]))[0].tries[0].answers == ("red", "crimson")


def test_a_file_of_open_questions_is_asked_whole(tmp_path: Path) -> None:
    for name in "ab":
        write_mp4(np.full((8, 3, 32, 32), 90, np.uint8), tmp_path / f"{name}.mp4", fps=4.0, scale=1)
    open_row: dict[str, Any] = {"question": "how many ?", "video": "a.mp4", "answers": ["2", "two"], "task": "count"}
    rows = [open_row, row("b.mp4"), {"question": "what shape ?", "video": "b.mp4", "answer": "star"}]
    benchmark = Open(questions=str(write_rows(tmp_path / "q.jsonl", rows)), max_new_tokens=3)
    assert {q.task for q in benchmark.check(None)} == {"count", "question"}
    records, lines = ask(benchmark, tmp_path / "out")
    assert [line["answer"] for line in lines] == [["2", "two"], "blue", "star"] * 2
    assert [line["question"] for line in lines[:3]] == ["how many ?", "what color is the ring ?", "what shape ?"]
    assert (
        all(len(line["text"].split()) <= 3 for line in lines)
        and [line["variant"] for line in lines[3:]] == ["blind"] * 3
    )
    for metric in ("normalised", "exact", "f1"):
        assert records["tiny", f"{metric}_micro"]["n"] == records["blind", f"{metric}_micro"]["n"] == 3
        assert records["tiny", f"{metric}/count"]["chance"] == 1
    with pytest.raises(UserError, match="row 1 lacks answer; it has video"):
        Open(questions=str(write_rows(tmp_path / "r.jsonl", [{"video": "a.mp4", "question": "what ?"}]))).check(None)
