"""What is asked about a clip: the text rows that a stage sees.

``sample`` is the sample's JSON, ``times`` the seconds of the frames that were sampled, ``rng`` a generator seeded from
(seed, epoch, sample key) alone, ``n`` how many texts to draw: None means all of them, in the order of the file.
Only texts whose evidence the sampled frames show are asked; with none left a view returns [].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hvlm.data.sampling import is_shown
from hvlm.prompts import LETTERS, lettered_prompt


class Row(NamedTuple):
    """One exchange. ``meta``: plain values for logging and scoring (sample key, domain, task, question id, ...)."""

    prompt: str
    answer: str
    meta: dict[str, Any]


def captions(sample: dict, times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
    meta = _meta(sample) | {"task": "caption"}
    return [
        Row(text["prompt"], text["text"], meta | {"answer": text["text"]})
        for text in _draw(sample.get("captions", []), times, rng, n)
    ]


def questions(sample: dict, times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
    """The vnbench set is asked as its benchmark asks: with the options of one of the tries, for the letter."""
    rows = []
    for q in _draw(sample.get("questions", []), times, rng, n):
        prompt, answer, _ = _wording(sample, q, int(rng.integers(len(q["tries"]))) if "tries" in q else 0)
        rows.append(Row(prompt, answer, _question_meta(sample, q) | {"answer": answer}))
    return rows


def pairs(sample: dict, times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
    """Chosen and rejected answer of each question, one after the other; ``meta["pair"]`` ties them together."""
    rows = []
    for q in _draw([q for q in sample.get("questions", []) if "rejected" in q], times, rng, n):
        prompt, answer, rejected = _wording(sample, q, 0)  # always the same: the reference's log-probs may be stored
        meta = _question_meta(sample, q) | {"pair": f"{sample['key']}/{q['id']}", "answer": answer}
        rows.append(Row(prompt, answer, meta | {"role": "chosen"}))
        rows.append(Row(prompt, rejected, meta | {"role": "rejected"}))
    return rows


def _wording(sample: dict, q: dict, attempt: int) -> tuple[str, str, str | None]:
    """(prompt, answer, rejected answer or None), with the letters of a try where the benchmark asks for letters."""
    if sample.get("set") != "vnbench":
        return q["question"], q["answer"], q.get("rejected")
    options, right = q["tries"][attempt]["options"], q["tries"][attempt]["gold"]
    rejected = LETTERS[options.index(q["rejected"])] if q.get("rejected") in options else None
    return lettered_prompt(q["question"], options), LETTERS[right], rejected


VIEWS = {"captions": captions, "questions": questions, "pairs": pairs}


def chats(sample: dict) -> list[Row]:
    """The first exchange of a text-only chat."""
    turns = {}
    for message in sample["messages"]:
        turns.setdefault(message["role"], message["content"])
    answer = turns["assistant"]
    return [Row(turns["user"], answer, {"key": sample["key"], "task": "chat", "answer": answer})]


def _draw(texts: list[dict], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[dict]:
    shown = [text for text in texts if is_shown(text.get("evidence", []), times)]
    if n is None:
        return shown
    return [shown[i] for i in rng.permutation(len(shown))[:n]]


def _meta(sample: dict) -> dict[str, Any]:
    return {name: sample[name] for name in ("key", "domain", "set", "outline") if name in sample}


def _question_meta(sample: dict, q: dict) -> dict[str, Any]:
    meta = _meta(sample) | {"task": q.get("task", "question"), "question_id": q["id"], "answer": q["answer"]}
    return meta | ({"tries": q["tries"]} if "tries" in q else {})
