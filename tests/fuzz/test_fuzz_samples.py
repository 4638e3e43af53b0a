"""Fuzz: the JSON of a sample, and what benchmarks and stages make of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from _fuzz import target
from _fuzz_files import json_files
from _fuzz_values import changed, dumped, texts
from hypothesis import strategies as st

from hvlm.benchmark.captions import Captions
from hvlm.benchmark.choices import Choices
from hvlm.benchmark.needles import Needles
from hvlm.benchmark.open import Open
from hvlm.data.sample_json import parse
from hvlm.data.samples import natural
from hvlm.data.views import Captions as CaptionRows
from hvlm.data.views import Questions as QuestionRows

ASKED = {"id": "q", "question": "what is it?", "options": ["red", "blue", "green"], "answer": "B", "task": "colour"}
WHOLE = {
    "key": "k",
    "domain": "d",
    "fps": "30000/1001",
    "section": [0.5, 2],
    "cluster": "c",
    "set": "easy",
    "outline": True,
    "captions": ["one", {"prompt": "say", "text": "two", "evidence": [[0, 1]], "references": ["a", "b"]}],
    "questions": [
        ASKED,
        {"question": "who?", "answers": {"he": 1.0, "she": 0.3}, "people": ["he", "she", ""]},
        {
            "question": "which?",
            "tries": [{"options": ["a", "b"], "gold": 1}],
            "lettered": True,
            "context": "said before",
        },
        {
            "question": "why?",
            "answer": "so",
            "rejected": "not so",
            "evidence": [[0.0, 1.5], [2, 3]],
            "published": {"set": "vqav2", "kind": "other"},
        },
    ],
    "events": [{"start": 0, "end": 1, "label": "run"}],
    "pairs": [{"text": "a dog", "negatives": ["a cat"]}],
}
TALK = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "a dog"},
        {"from": "human", "value": "<image>\nand?"},
        {"from": "gpt", "value": "a cat"},
    ],
    "rejected_assistant": "a cow",
    "source": "s",
}
TALKS = {
    "conversations": [{"id": "1", "task": "t", "messages": TALK["messages"]}, TALK["messages"]],
    "system": "be kind",
}
LONE = {"question": "what?", "answer": "B", "options": {"A": "x", "B": "y"}, "task": "t", "lettered": False}
PLAIN = {"caption": "a dog", "user": "say", "fps": 2.0}


def made_of_it(sample: dict[str, Any]) -> None:
    for benchmark in (Choices(), Choices(scoring="pmi"), Choices(scoring="generate"), Open(), Captions(), Needles()):
        try:
            benchmark.questions(sample, True)
        except (ValueError, LookupError, TypeError):  # as ``all_questions`` says: the sample is named and counted
            continue
    for view in (CaptionRows(), QuestionRows()):
        view.rows(sample, np.arange(4.0), np.random.default_rng(0), 2)
    json.dumps(sample)


@target(ci=80, data=st.one_of(*map(json_files, (WHOLE, WHOLE, TALK, TALKS, LONE, PLAIN))))
def test_sample_json(data: bytes) -> None:
    made_of_it(parse({"json": data}, "k", "general", "train/s/k"))


@target(
    ci=15, data=st.one_of(st.binary(max_size=40), texts.map(lambda t: t.encode("utf-8", "surrogatepass"))), name=texts
)
def test_sample_text(data: bytes, name: str) -> None:
    natural(name)
    made_of_it(parse({"txt": data}, name, "general"))


@target(ci=15, data=changed(ASKED, 2).map(lambda q: dumped({"questions": [q, q] if isinstance(q, str) else [q]})))
def test_sample_question(data: bytes) -> None:
    made_of_it(parse({"json": data}, "k", "general"))
