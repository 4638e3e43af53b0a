"""The vnbench set is trained as it is asked: with lettered options, and a letter for an answer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from test_benchmark import sample_of

from hvlm.benchmark.needles import Needles
from hvlm.data import sample_json, views
from hvlm.dataset._needles_text import vocabulary
from hvlm.prompts import lettered_prompt
from hvlm.text.tokenizer import UNKNOWN, train_word_tokenizer

EVERY = np.arange(16) / 8


def parsed(sample: dict[str, Any]) -> dict[str, Any]:
    return sample_json.parse({"json": json.dumps(sample).encode()}, "k", "news")


def questions(kind: str, seed: int = 0) -> list[views.Row]:
    return views.Questions().rows(parsed(sample_of(kind=kind)), EVERY, np.random.default_rng(seed), None)


def test_training_and_benchmark_use_the_same_words() -> None:
    asked = {q.id.split("/")[-1]: q for q in Needles().questions(parsed(sample_of(kind="vnbench")))}
    seen = set()
    for seed in range(20):
        for row in questions("vnbench", seed):
            tries = asked[row.meta["question_id"]].tries
            assert (row.prompt, row.answer) in {(t.prompt, t.answers[t.gold]) for t in tries}
            seen.add((row.meta["question_id"], row.answer))
    assert ("q0", "A") in seen and ("q0", "B") in seen  # every try comes up: no letter can be learnt by heart
    assert [row.answer for row in questions("easy")] == ["red", "top left"]


def test_pairs_are_two_letters_of_one_prompt_and_always_the_same() -> None:
    sample = sample_of(kind="vnbench")
    for q in sample["questions"]:
        q["rejected"] = q["tries"][0]["options"][2]
    rows = [views.Pairs().rows(parsed(sample), EVERY, np.random.default_rng(seed), None) for seed in range(2)]
    assert {r[:2] for r in rows[0]} == {r[:2] for r in rows[1]}
    first = [r for r in rows[0] if r.meta["question_id"] == "q0"]
    assert [(r.answer, r.meta["role"]) for r in first] == [("A", "chosen"), ("C", "rejected")]
    assert first[0].prompt == first[1].prompt


def test_a_tokenizer_of_the_grammar_knows_every_word() -> None:
    tokenizer = train_word_tokenizer(vocabulary())
    prompt = lettered_prompt("what is in the inserted picture ?", ["red circle", "2", "ocean", "blue star"])
    assert UNKNOWN not in tokenizer.tokenize(prompt) and UNKNOWN in tokenizer.tokenize("zebra")
    assert all(tokenizer.tokenize(letter) == [letter.lower()] for letter in "ABCD")
