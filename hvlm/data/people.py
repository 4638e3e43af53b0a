"""What many people answered, as VQAv2, VizWiz and TextVQA have it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hvlm.data.sample_fields import FieldError, as_list, as_text, shown

ENOUGH = 3  # people who must agree for an answer to be wholly right


def soft(answers: Sequence[str]) -> dict[str, float]:
    """{answer: how right it is} of what many people said: a third for each who said it, at most 1 (VQA's rule for
    learning). Of fewer than three people each answer counts as right. Nothing said is no answer."""
    counts = Counter(answer for answer in answers if answer.strip())
    if len(answers) < ENOUGH:
        return dict.fromkeys(counts, 1.0)
    return {answer: min(1.0, count / ENOUGH) for answer, count in counts.most_common()}


def people(value: Any, where: str) -> list[str]:
    """What each person said: texts, or objects {answer}. Some say nothing, which the published files hold as ""; where
    nobody says anything it is a FieldError."""
    said = [one.get("answer") if isinstance(one, dict) else one for one in as_list(value, where)]
    if not said:
        raise FieldError(f"{where} is {shown(value)}, expected what people answered")
    some = any(isinstance(one, str) and one.strip() for one in said)
    return ["" if some and one == "" else as_text(one, f"{where}[{i}]") for i, one in enumerate(said)]


def weighed(question: Mapping[str, Any]) -> dict[str, Any]:
    """A question whose ``answers`` are what enough people said, with the weights of each; what one or two say is all
    right, and has no accuracy of ten."""
    said = question.get("answers")
    if not isinstance(said, list) or len(said) < ENOUGH:
        return dict(question)
    return {**question, "answers": soft(said), "people": said}


def question(name: str, text: str, said: list[str], of: dict[str, Any], answer: Any = None) -> dict[str, Any]:
    """A question as in a sample's JSON. of: what its set's scoring needs (``published``), perhaps nothing. answer: what
    is learned to be written; None: what most people say."""
    best = answer if isinstance(answer, str) and answer.strip() else next(iter(soft(said)))
    found = weighed({"id": name, "question": text, "answer": best, "answers": said})
    return found | ({"published": of} if of else {})
