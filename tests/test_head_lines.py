"""Lines of heads: what one wrote is scored again, what none can have written is one line."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from _tiny import Case, Variant

from hvlm.checks.heads import read, samples
from hvlm.checks.models import shared_model
from hvlm.commands.eval import score
from hvlm.config.compose import compose
from hvlm.errors import UserError
from hvlm.evaluation.heads import score_lines
from hvlm.evaluation.results import Label

FOUND = {"start": 3, "end": 4, "score": 1, "label": "star"}


def written(word: str) -> tuple[Any, list[dict[str, Any]]]:
    vlm = shared_model(Case("question_first", (Variant("head", word),)))
    batch = read(vlm, *samples(vlm))
    with torch.no_grad():
        return vlm.head, vlm.head.predict(vlm.output(batch), batch)


@pytest.mark.parametrize("word", ["classify", "retrieve", "detect", "several"])
def test_lines_that_a_head_wrote_are_scored(word: str, tmp_path: Path) -> None:
    head, lines = written(word)
    file = tmp_path / "head.jsonl"
    file.write_text("\n\n".join(map(json.dumps, lines)))
    assert score_lines(file, head, Label("q", "v", 1), tmp_path / "out")


@pytest.mark.parametrize(
    "word, wrong, said",
    [
        ("classify", {"answer": "purple"}, "line 1: answer: label 'purple' is none of the 7"),
        ("classify", {"answer": 3}, "line 1: answer: label '3' is none"),
        ("classify", {"weights": None}, "line 1: weights is null, expected an object"),
        ("classify", {"weights": {"red": 7}}, "line 1: weights.red is 7, expected a weight above 0 and at most 1"),
        ("classify", {"people": "red"}, "line 1: people is 'red', expected a list"),
        ("classify", {"question_id": None}, "line 1: question_id is null, expected text"),
        ("detect", {"segments": None}, "line 1: segments is null, expected a list"),
        (
            "detect",
            {"segments": [FOUND | {"end": 1}]},
            r"segments\[0\] ends at 1, bef",
        ),
        (
            "detect",
            {"segments": [FOUND | {"score": math.nan}]},
            "score is NaN, expected a f",
        ),
        ("detect", {"segments": [FOUND | {"label": "sta"}]}, "label 'sta' is .* mean 'star'"),
        (
            "detect",
            {"events": [FOUND | {"end": 1}]},
            r"events\[0\] ends at 1, not after its start",
        ),
        ("detect", {"uid": "", "key": None}, "line 1: uid is null, expected text"),
        ("retrieve", {"texts": []}, "line 1: texts are 0 and embeddings 2"),
        ("retrieve", {"video": "x"}, "line 1: video is 'x', expected a list of numbers"),
        ("retrieve", {"video": [1.0]}, r"line 1: embeddings\[0\] is a list of \d+, expected a list of 1 numbers"),
        ("several", {"head": "detekt"}, "line 1: head is 'detekt', expected one of detect, retrieve, classify"),
        ("several", {"segments": 3, "texts": 3, "weights": 3}, "line 1: .* is 3, expected"),
    ],
)
def test_lines_that_no_head_wrote_are_one_line(word: str, wrong: dict[str, Any], said: str, tmp_path: Path) -> None:
    head, lines = written(word)
    file = tmp_path / "head.jsonl"
    file.write_text("\n".join(map(json.dumps, [lines[0] | wrong, *lines[1:]])))
    with pytest.raises(UserError, match=f"^predictions={file}: .*{said}") as error:
        score_lines(file, head, Label("q", "v", 1), tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("word", ["classify", "detect"])
def test_a_line_that_stands_twice_is_said_unless_it_is_a_control(word: str, tmp_path: Path) -> None:
    head, (first, *_) = written(word)
    file = tmp_path / "head.jsonl"
    file.write_text("\n".join(json.dumps(first | {"variant": variant}) for variant in ("a", "blind")))
    assert score_lines(file, head, Label("q", "v", 1), tmp_path / "out")
    file.write_text("\n".join([json.dumps(first)] * 2))
    with pytest.raises(UserError, match="line 2: is about '.*', as line 1 is"):
        score_lines(file, head, Label("q", "v", 1), tmp_path / "out")


def test_lines_of_a_head_that_nobody_names_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "head.jsonl").write_text("{}")
    with pytest.raises(UserError, match="head.jsonl: lines of a head that writes no text; name it and its labels"):
        score(compose(["task=score", f"predictions={tmp_path}/head.jsonl"]))


def test_a_head_that_checks_no_lines_fails_in_one(tmp_path: Path) -> None:
    file = tmp_path / "head.jsonl"
    file.write_text('{"a": 1}')
    head, _ = written("detect")
    head = copy.copy(head)
    head.check_lines = lambda lines, path: None
    with pytest.raises(UserError, match=r"predictions=.*: head=detect cannot score these lines \(KeyError: '"):
        score_lines(file, head, Label("q", "v", 1), tmp_path / "out")


@torch.no_grad()
def test_scores_that_are_no_numbers_choose_no_label() -> None:
    vlm = shared_model(Case("question_first", (Variant("head", "classify"),)))
    batch = read(vlm, *samples(vlm))
    lines = vlm.head.predict(vlm.output(batch) * torch.nan, batch)
    assert {(line["answer"], line["score"]) for line in lines} == {(None, None)}
    json.dumps(lines, allow_nan=False)
    found = {row["metric"]: row["value"] for row in vlm.head.score([one | {"people": ["the"] * 3} for one in lines])}
    assert found["accuracy"] == 0 and found["answerable"] == 1
    assert found["vqa_official"] == found["vqa_always_normalised"] == 0
