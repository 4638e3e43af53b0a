"""What a sample's JSON says for heads that write no text: events, pairs of video and text, weights of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvlm.data.sample_fields import FieldError, as_flag, as_list, as_number, as_object, as_text


def as_event(value: Any, where: str) -> dict[str, Any]:
    """{start, end, label}: seconds, the end after the start, and a name."""
    value = as_object(value, where)
    start, end = (as_number(value.get(name), f"{where}.{name}") for name in ("start", "end"))
    if start < 0:
        raise FieldError(f"{where} starts at {start:g}, before the video; expected seconds from 0 on")
    if end <= start:
        raise FieldError(f"{where} ends at {end:g}, not after its start at {start:g}")
    return {**value, "start": start, "end": end, "label": as_text(value.get("label"), f"{where}.label")}


def as_pair(value: Any, where: str) -> dict[str, Any]:
    """{text, negatives}: what is said of the video, and texts that are like it and wrong."""
    value = value if isinstance(value, dict) else {"text": value}
    text = as_text(value.get("text"), f"{where}.text")
    negatives = as_list(value.get("negatives") or [], f"{where}.negatives")
    negatives = [as_text(one, f"{where}.negatives[{i}]") for i, one in enumerate(negatives)]
    if text in negatives:
        raise FieldError(f"{where}.negatives[{negatives.index(text)}] is the text itself, expected one that is wrong")
    return {**value, "text": text, "negatives": negatives}


def as_weights(value: Mapping[str, Any], where: str) -> dict[str, float]:
    """{answer: how right it is, above 0 and at most 1}, the best first."""
    found = {}
    for answer, weight in value.items():
        found[as_text(answer, where)] = number = as_number(weight, f"{where}.{answer}")
        if not 0 < number <= 1:
            raise FieldError(f"{where}.{answer} is {number:g}, expected a weight above 0 and at most 1")
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def as_published(value: Any, where: str) -> dict[str, Any]:
    """{set, and where given kind, balanced, answerable, entailed}: by whose rules the answer is scored, and what they
    need (``hvlm.metrics.published``)."""
    value = as_object(value, where)
    found: dict[str, Any] = {"set": as_text(value.get("set"), f"{where}.set")}
    for name, read in (("kind", as_text), ("balanced", as_flag), ("answerable", as_flag)):
        if value.get(name) is not None:
            found[name] = read(value[name], f"{where}.{name}")
    others = as_list(value.get("entailed") or [], f"{where}.entailed")
    return found | ({"entailed": [as_text(one, f"{where}.entailed") for one in others]} if others else {})
