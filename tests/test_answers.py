"""Which option a written answer means, and predictions files as other programs write them."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import pytest

import eval as evaluation
from hvlm.errors import UserError
from hvlm.evaluation.answers import AMBIGUOUS, MISSING, UNREAD, plain, read_answer, same
from hvlm.evaluation.evaluate import score_predictions
from hvlm.evaluation.predictions import read_predictions, write_predictions
from hvlm.evaluation.results import Label
from hvlm.evaluation.scores import Prediction, score

OPTIONS = ["a red ball", "a blue cube", "a dog", "nothing"]
RIGHT = [
    "B", "b", "B.", "B)", "(B)", "( b )", "[B]", "B:", "b)", '"B"', "'B'", "**B**", "*B*", "`B`", "B\n", "Ｂ",
    "\ufeffB",
    r"\boxed{B}", r"$\boxed{\text{B}}$", "<answer>B</answer>", "<think>A. or (C)?</think> B",
    "a blue cube", "A blue cube.", "  a  blue\ncube ", "“a blue cube”", "B. a blue cube", "B.a blue cube",
    "(B) a blue cube",
    "(b) a blue cube", "B) A blue cube.", "B: a blue cube", "B - a blue cube", "B. **a blue cube**",
    "B. The cube is blue.", "B.\nThe cube is blue, not red.", "Answer: B", "Answer: b", "answer is B",
    "The answer is B.",
    "The correct answer is (B).", "The correct option is B: a blue cube", "Final answer: B",
    "The best answer is: B",
    "Best option: (B)", "Option B", "option b", "**Answer:** B", "Answer: **B**", "Answer: B. a blue cube",
    "Answer: (B) a blue cube", "Answer: a blue cube", "Answer: A blue cube", "the answer is a blue cube.",
    "C is wrong. Answer: B",
]  # fmt: skip
NOT_READ = [
    "Because", "I see a blue cube", "A blue", "b or c", "A or B", "A, B", "a - b", "the answer is a cube", "Answer:",
    "The answer is not B", "E", "Answer: E", "none", "<think>B", "Apple", "It is not a dog", "No option fits",
    r"\boxed{A} or \boxed{B}",
]  # fmt: skip
TWO = [
    "B. a dog",
    "(B) or (C)",
    "A. a red ball B. a blue cube",
    "Answer is A. No, the answer is B.",
    "Answer: B. a dog",
]


@pytest.mark.fault(89)
@pytest.mark.parametrize("written", RIGHT)
def test_the_usual_forms_of_an_answer_are_read(written: str) -> None:
    assert read_answer(written, OPTIONS) == (1, "")


@pytest.mark.fault(89)
@pytest.mark.parametrize("written", NOT_READ)
def test_other_texts_are_unread_and_never_guessed(written: str) -> None:
    assert read_answer(written, OPTIONS) == (None, UNREAD)


@pytest.mark.fault(89)
@pytest.mark.parametrize("written", TWO)
def test_what_could_mean_two_options_is_ambiguous(written: str) -> None:
    assert read_answer(written, OPTIONS) == (None, AMBIGUOUS)


@pytest.mark.parametrize("said", ["answer " * 2765, "the best " * 4000, "<answer>" * 3000, "final " * 4000])
def test_a_text_of_nothing_but_phrases_is_unread_and_takes_no_time(said: str) -> None:
    began = time.process_time()
    assert read_answer(said, ["red", "blue"]).problem == "unread"
    assert time.process_time() - began < 3


def test_options_that_are_letters_or_alike() -> None:
    assert read_answer("B", ["B", "D", "A", "C"]) == (None, AMBIGUOUS), "the first option, or the second letter"
    assert read_answer("B", ["B", "D", "A", "C"], letters=False) == (0, ""), "the prompt showed no letters"
    assert read_answer("D", ["red", "blue"]) == (None, UNREAD)
    assert read_answer("b", ["red", "blue"], letters=False) == (None, UNREAD)
    assert read_answer("yes", ["yes", "Yes."]) == (None, AMBIGUOUS)
    assert read_answer("a", ["a", "b"]) == (0, ""), "both readings agree"
    assert read_answer(" \n", OPTIONS) == (None, MISSING)
    assert read_answer("3.5", ["3.5", "3"]) == (0, "")


def test_open_answers_are_compared_word_for_word() -> None:
    assert same("A Red  ring.", "a red ring") and same("<think>hm</think>red", "red")
    assert not same("a red ring on a table", "a red ring") and not same(None, "red") and not same("", "red")
    assert plain("**two**\u200b") == "two"


# -------------------------------------------------------------------------------------------- files of other programs


def lines(pred, n: int = 40, options=OPTIONS, gold: int = 1) -> str:
    return "".join(
        json.dumps(
            {
                "question_id": f"q{i}", "key": f"v{i}", "task": "direction", "try": 0, "options": options,
                "gold": gold, "pred": pred,
            },
            ensure_ascii=False,
        ) + "\n"
        for i in range(n)
    )  # fmt: skip


def scored(tmp_path: Path, text: str, encoding: str = "utf-8") -> dict[str, float]:
    (tmp_path / "p.jsonl").write_bytes(text.encode(encoding))
    return {r["metric"]: r["value"] for r in score_predictions(tmp_path / "p.jsonl", Label("q", "v", 0), tmp_path)}


@pytest.mark.fault(89)
@pytest.mark.parametrize("pred", ["(B)", "B)", "b", "Answer: B", "B. a blue cube", 1.0, 1, ["B"], "A blue cube."])
def test_forty_right_answers_are_forty_right_answers(tmp_path: Path, pred) -> None:
    assert scored(tmp_path, lines(pred))["accuracy_mean"] == 1.0


@pytest.mark.fault(89)
def test_answers_that_match_no_option_are_counted_in_the_results_and_named_in_a_warning(tmp_path, caplog) -> None:
    text = lines("(B)", 30) + lines("a blue box", 6).replace('"q', '"x') + lines("B. a dog", 3).replace('"q', '"y')
    text += lines(None, 1).replace('"q', '"z')
    with caplog.at_level(logging.WARNING):
        found = scored(tmp_path, text.replace('"xuestion', '"question').replace('"yuestion', '"question')
                       .replace('"zuestion', '"question'))  # fmt: skip
    assert found["accuracy_mean"] == 30 / 40
    assert (found["answers_unread"], found["answers_ambiguous"], found["answers_missing"]) == (6, 3, 1)
    assert "6 of 40 answers are none of the options" in caplog.text and "'a blue box' (question x0)" in caplog.text
    assert "3 of 40 answers could mean two options" in caplog.text and "'B. a dog'" in caplog.text
    assert not any("answers_" in name for name in scored(tmp_path, lines("B")))


@pytest.mark.fault(89)
def test_a_number_that_is_an_index_and_another_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: pred is 1, which as an index means '2', but '1' is an option, too"):
        scored(tmp_path, lines(1, options=["3", "2", "1", "0"], gold=2))
    assert scored(tmp_path, lines("1", options=["3", "2", "1", "0"], gold=2))["accuracy_mean"] == 1.0
    assert scored(tmp_path, lines("C", options=["3", "2", "1", "0"], gold=2))["accuracy_mean"] == 1.0
    with pytest.raises(UserError, match=r"pred is 1\.5"):
        scored(tmp_path, lines(1.5))
    with pytest.raises(UserError, match="pred is True"):
        scored(tmp_path, lines(True))


@pytest.mark.fault(86, 101)
@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\u0085", "\x0b", "\x1c"])
def test_unusual_line_ends_inside_texts_and_a_byte_order_mark(tmp_path: Path, end: str) -> None:
    options = ["x", f"two{end}lines"]
    text = lines(options[1], options=options)
    assert scored(tmp_path, text)["accuracy_mean"] == 1.0
    assert scored(tmp_path, text.replace("\n", "\r\n"), "utf-8-sig")["accuracy_mean"] == 1.0
    made = [Prediction(f"q{end}", "k", "t", 0, tuple(options), 1, 1, None, "v", text=f"a{end}b")]
    write_predictions(tmp_path / "own.jsonl", made)
    assert read_predictions(tmp_path / "own.jsonl") == made
    assert len((tmp_path / "own.jsonl").read_text().splitlines()) == 1, "whoever reads it finds one line"


def test_files_that_cannot_be_read_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not UTF-8"):
        scored(tmp_path, lines("é"), "latin-1")
    with pytest.raises(UserError, match="not valid JSON"):
        scored(tmp_path, "[" * 100_000)
    with pytest.raises(UserError, match="scores is"):
        scored(tmp_path, lines("B").replace('"pred"', '"scores": "high", "pred"'))


def test_open_questions_have_a_text_and_a_right_one(tmp_path: Path) -> None:
    line = {"question_id": "q", "key": "v", "task": "describe", "try": 0, "answer": "a red ring", "text": "A red ring."}
    other = line | {"question_id": "r", "text": "a star"}
    silent = line | {"question_id": "s", "text": None}
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(x) + "\n" for x in (line, other, silent)))
    found = read_predictions(tmp_path / "p.jsonl")
    assert [p.right for p in found] == [True, False, False] and found[2].problem == MISSING
    rows = {row["metric"]: row for row in score(found)}
    assert rows["accuracy/describe"]["value"] == pytest.approx(1 / 3) and rows["accuracy/describe"]["chance"] is None
    write_predictions(tmp_path / "again.jsonl", found)
    assert [p.right for p in read_predictions(tmp_path / "again.jsonl")] == [True, False, False]
    with pytest.raises(UserError, match="line 1: text missing; a line needs"):
        scored(tmp_path, json.dumps({k: v for k, v in line.items() if k != "text"}))


def test_what_was_written_and_why_it_was_no_choice_stay_in_the_file(tmp_path: Path) -> None:
    made = [
        Prediction("q", "k", "t", 0, ("B", "A"), 0, 0, None, "v", text="B"),
        Prediction("q", "k", "t", 1, ("B", "A"), 0, None, None, "v", text="maybe", problem=UNREAD),
        Prediction("r", "k", "t", 0, ("1", "0"), 0, 1, (-1.0, -0.5), "v"),
        Prediction("s", "k", "t", 0, ("1", "0"), 0, None, (math.nan, -0.5), "v", problem=MISSING),
    ]
    write_predictions(tmp_path / "p.jsonl", made)
    back = read_predictions(tmp_path / "p.jsonl")
    assert back[:3] == made[:3] and back[3].problem == MISSING


def test_score_on_the_command_line_takes_the_benchmarks_rule(tmp_path: Path) -> None:
    """What benchmark=needles leaves out of its mean stands in the record; benchmark.apart=[] leaves out nothing."""
    text = lines("B", 3) + lines("A", 1).replace('"q0"', '"s"').replace("direction", "shape")
    (tmp_path / "p.jsonl").write_text(text)
    given = ["task=score", f"predictions={tmp_path / 'p.jsonl'}", f"out={tmp_path / 'out'}"]
    (mean,) = [r for r in evaluation.evaluate(given) if r["metric"] == "accuracy_mean"]
    assert mean["value"] == 0.0 and mean["left_out"] == "direction"
    (mean,) = [r for r in evaluation.evaluate([*given, "benchmark.apart=[]"]) if r["metric"] == "accuracy_mean"]
    assert mean["value"] == 0.5 and "left_out" not in mean
