"""The JSON of a sample: which fields there are, what each may hold, and one form for whatever reads it.

What is clearly meant is accepted (a caption that is just a string, ``"30000/1001"`` for a rate, ``2.0`` for 2); null is
the same as an absent field; everything else is a ``SampleError`` that names the field, so that a bad sample is counted
and written down, and never ends a run. docs/data.md lists the fields for those who write shards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hvlm.data.options import gold_of
from hvlm.data.quarantine import SampleError

DESCRIBE = "Describe this."  # asked when a caption comes without a prompt
MAX_BYTES = 16 << 20  # of the JSON or text of one sample
_LETTERED_SETS = ("vnbench",)  # whose published samples do not say themselves that they ask for letters
_ANSWERS = ("assistant", "chosen_assistant")


_RATE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(?:/(\d{1,12}(?:\.\d{1,12})?))?")


class FieldError(ValueError):
    """A value that is not what its field may hold. The message begins with the field's path."""


def parse(members: Mapping[str, Any], key: str, domain: str, uid: str | None = None) -> dict[str, Any]:
    """The sample's JSON (or its ``txt``, a caption) in one form.

    Args:
        members: field -> bytes; only those of the text are looked at.
        key: the tar's name of the sample; what the JSON says of ``key`` and ``id`` does not count.
        domain: of samples that name none.
        uid: the sample's one name within its data (``ShardSplit.uid``), by default the key.

    Returns:
        ``key``, ``uid``, ``domain``, ``captions`` [{prompt, text, evidence}], ``questions`` [{id, task, question,
        answer, lettered, evidence, and where given answers (all that count as right), rejected and tries [{options,
        gold}]}], where given ``fps`` (above 0), ``section`` [start, stop], ``cluster``, ``set`` and ``outline``, and
        whatever other fields the JSON has, as they are.

    Raises:
        SampleError: names the member and the field.
    """
    uid = key if uid is None else uid
    if "json" not in members and "txt" not in members:
        raise SampleError(key, "json", f"missing; the sample has {', '.join(sorted(members)) or 'no members'}")
    member = "json" if "json" in members else "txt"
    text = _decoded(members[member], key, member)
    try:
        value = {"caption": text.strip()} if member == "txt" else _loaded(text)
        return _sample(value, key, domain, uid)
    except FieldError as error:
        raise SampleError(key, member, str(error)) from error


def _decoded(data: bytes, key: str, member: str) -> str:
    if len(data) > MAX_BYTES:
        raise SampleError(key, member, f"holds {len(data):,} bytes, at most {MAX_BYTES:,} are read")
    try:
        return data.decode("utf-8-sig")  # with or without the mark that Windows puts in front
    except UnicodeDecodeError as error:
        raise SampleError(key, member, f"not UTF-8 ({error})") from error


def _loaded(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise FieldError("lists or objects stand in each other too deeply") from error
    except ValueError as error:
        raise FieldError(f"not valid JSON ({error})") from error
    return as_object(value, "it")


def _sample(value: dict[str, Any], key: str, domain: str, uid: str) -> dict[str, Any]:
    value = {name: field for name, field in value.items() if field is not None}
    sample = {name: field for name, field in value.items() if name not in ("captions", "questions", "messages")}
    sample |= {"key": key, "uid": uid, "domain": as_text(value.get("domain", domain), "domain")}
    if "fps" in value:
        sample["fps"] = as_rate(value["fps"], "fps")
    if "section" in value:
        (sample["section"],) = as_evidence([value["section"]], "section")
        if sample["section"][0] < 0 or sample["section"][0] == sample["section"][1]:
            raise FieldError(
                f"section is {sample['section']}, expected [start, stop] from 0 on, the stop after the start"
            )
    if "cluster" in value:
        sample["cluster"] = as_text(value["cluster"], "cluster")
    if "set" in value:
        sample["set"] = as_text(value["set"], "set")
    if "outline" in value:
        sample["outline"] = as_flag(value["outline"], "outline")
    lettered = sample.get("set") in _LETTERED_SETS
    sample["captions"] = [
        _caption(item, f"captions[{i}]") for i, item in enumerate(as_list(value.get("captions", []), "captions"))
    ]
    sample["questions"] = [
        _question(item, i, f"questions[{i}]", lettered)
        for i, item in enumerate(as_list(value.get("questions", []), "questions"))
    ]
    names = [question["id"] for question in sample["questions"]]
    if len(set(names)) < len(names):
        raise FieldError(f"questions: two have the id {next(n for n in names if names.count(n) > 1)!r}")
    if "captions" in value or "questions" in value or "objects" in value:
        return sample
    prompt, answer, rejected = _exchange(value)
    sample["captions"] = [{"prompt": prompt, "text": answer, "evidence": []}]
    if "caption" not in value:
        question: dict[str, Any] = {
            "id": "q0",
            "task": as_text(value.get("source", "question"), "source"),
            "question": prompt,
        }
        question |= {"answer": answer, "lettered": False, "evidence": []}
        sample["questions"] = [question | ({} if rejected is None else {"rejected": rejected})]
    return sample


def _exchange(value: dict[str, Any]) -> tuple[str, str, str | None]:
    """(prompt, answer, rejected answer) of a sample that holds one exchange."""
    if "messages" in value:
        turns: dict[str, str] = {}
        for i, item in enumerate(as_list(value["messages"], "messages")):
            where = f"messages[{i}]"
            message = as_object(item, where)
            role = as_text(message.get("role"), f"{where}.role")
            turns.setdefault(role, as_text(message.get("content"), f"{where}.content"))
        for role in ("user", "assistant"):
            if role not in turns:
                raise FieldError(f"messages: no {role} among the roles {', '.join(turns) or '(none)'}")
        return turns["user"], turns["assistant"], None
    prompt = _prompt(value.get("user"), "user")
    if "caption" in value:
        return prompt, as_text(value["caption"], "caption"), None
    for name in _ANSWERS:
        if name in value:
            rejected = value.get("rejected_assistant")
            return (
                prompt,
                as_text(value[name], name),
                None if rejected is None else as_text(rejected, "rejected_assistant"),
            )
    found = ", ".join(sorted(value)[:12]) or "nothing"
    raise FieldError(f"no captions, questions, messages, caption or assistant in it; it has {found}")


def _prompt(value: Any, where: str) -> str:
    return DESCRIBE if value is None or value == "" else as_text(value, where)


def _caption(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        return {"prompt": DESCRIBE, "text": as_text(item, where), "evidence": []}
    return {
        "prompt": _prompt(item.get("prompt"), f"{where}.prompt"),
        "text": as_text(item.get("text"), f"{where}.text"),
        "evidence": as_evidence(item.get("evidence"), f"{where}.evidence"),
    }


def _question(item: Any, number: int, where: str, lettered: bool) -> dict[str, Any]:
    item = {name: field for name, field in as_object(item, where).items() if field is not None}
    question: dict[str, Any] = {
        "id": as_text(item.get("id", f"q{number}"), f"{where}.id"),
        "task": as_text(item.get("task", "question"), f"{where}.task"),
        "question": as_text(item.get("question"), f"{where}.question"),
        "answer": "",
        "evidence": as_evidence(item.get("evidence"), f"{where}.evidence"),
        "lettered": as_flag(item.get("lettered", lettered), f"{where}.lettered"),
    }
    if "answers" in item:
        right = as_list(item["answers"], f"{where}.answers")
        question["answers"] = [as_text(one, f"{where}.answers[{i}]") for i, one in enumerate(right)]
        if not right:
            raise FieldError(f"{where}.answers is empty")
        item.setdefault("answer", right[0])
    if "rejected" in item:
        question["rejected"] = as_text(item["rejected"], f"{where}.rejected")
    if "tries" in item:
        tries = as_list(item["tries"], f"{where}.tries")
        question["tries"] = [_try(one, f"{where}.tries[{i}]") for i, one in enumerate(tries)]
        if not tries:
            raise FieldError(f"{where}.tries is empty")
    elif "options" in item:
        question["tries"] = [_only_try(item, where)]
        item["answer"] = question["tries"][0]["options"][question["tries"][0]["gold"]]
    elif question["lettered"]:
        raise FieldError(f"{where}.tries is missing: a lettered question lists options")
    return question | {"answer": as_text(item.get("answer"), f"{where}.answer")}


def _only_try(item: dict[str, Any], where: str) -> dict[str, Any]:
    """Of a question with options in one order: ``gold`` or the answer says which is right."""
    if "gold" in item:
        return _try(item, where)
    one = _try({"options": item["options"], "gold": 0}, where)
    try:
        return one | {"gold": gold_of(item.get("answer"), as_list(item["options"], f"{where}.options"))}
    except ValueError as error:
        raise FieldError(f"{where}.answer is {_shown(item.get('answer'))}, expected {error}") from None


def _try(item: Any, where: str) -> dict[str, Any]:
    item = as_object(item, where)
    options = [
        as_text(o, f"{where}.options[{i}]") for i, o in enumerate(as_list(item.get("options"), f"{where}.options"))
    ]
    gold = as_whole(item.get("gold"), f"{where}.gold")
    if not 0 <= gold < len(options):
        raise FieldError(f"{where}.gold is {gold}, expected the place of one of {len(options)} options")
    if len(options) > 26:
        raise FieldError(f"{where}.options: {len(options)} options, at most 26 have letters")
    return {"options": options, "gold": gold}


# -- what a field may hold ---------------------------------------------------------------------------------------------


def as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FieldError(f"{where} is {_shown(value)}, expected an object")
    return value


def as_list(value: Any, where: str) -> list[Any]:
    """A list; a single text or object stands for a list of one."""
    if isinstance(value, (str, dict)):
        return [value]
    if not isinstance(value, list):
        raise FieldError(f"{where} is {_shown(value)}, expected a list")
    return value


def as_text(value: Any, where: str) -> str:
    """Text with something in it that can be encoded; a number is its digits."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15:
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise FieldError(f"{where} is {_shown(value)}, expected text")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise FieldError(f"{where} holds half a character (a lone surrogate)")
    return value


def as_flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise FieldError(f"{where} is {_shown(value)}, expected true or false")
    return value


def as_number(value: Any, where: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FieldError(f"{where} is {_shown(value)}, expected a number")
    if not abs(value) < 1e15:  # nor NaN
        raise FieldError(f"{where} is {_shown(value)}, expected a finite number")
    return float(value)


def as_whole(value: Any, where: str) -> int:
    number = as_number(value, where)
    if number != int(number):
        raise FieldError(f"{where} is {_shown(value)}, expected a whole number")
    return int(number)


def as_rate(value: Any, where: str) -> float:
    """Frames a second, above 0: a number, or text such as ``"25"`` and ``"30000/1001"``."""
    rate = value
    if isinstance(value, str):
        found = _RATE.fullmatch(value.strip())
        over, under = (float(part or 1) for part in found.groups()) if found else (0.0, 0.0)
        rate = over / under if under else 0.0
    rate = as_number(rate, where)
    if not 1e-6 <= rate <= 1e6:
        raise FieldError(f"{where} is {_shown(value)}, expected frames a second, above 0")
    return rate


def as_evidence(value: Any, where: str) -> list[list[float]]:
    """Intervals [[start, stop], ...] in seconds; null: none."""
    intervals = [] if value is None else as_list(value, where)
    out = []
    for i, interval in enumerate(intervals):
        if not isinstance(interval, list) or len(interval) != 2:
            raise FieldError(f"{where}[{i}] is {_shown(interval)}, expected [start, stop] in seconds")
        start, stop = (as_number(edge, f"{where}[{i}]") for edge in interval)
        if stop < start:
            raise FieldError(f"{where}[{i}] stops at {stop:g} before it starts at {start:g}")
        out.append([start, stop])
    return out


def _shown(value: Any) -> str:
    """The value in a few characters, without walking through what may be deep or long."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, str):
        return ascii(value[:40])
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a very large number"
    return "null" if value is None else json.dumps(value)
