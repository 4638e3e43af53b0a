"""The JSON of a sample: which fields there are, what each may hold, and one form for whatever reads it.

What is clearly meant is accepted (a caption that is just a string, ``"30000/1001"`` for a rate, ``2.0`` for 2); null is
the same as an absent field; everything else is a ``SampleError`` that names the field, so that a bad sample is counted
and written down, and never ends a run. docs/data.md lists the fields for those who write shards.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from hvlm.data.conversation import Conversation, conversation
from hvlm.data.options import gold_of
from hvlm.data.quarantine import SampleError
from hvlm.data.sample_fields import (
    FieldError,
    as_evidence,
    as_flag,
    as_list,
    as_object,
    as_rate,
    as_text,
    as_whole,
    shown,
)
from hvlm.data.sample_targets import as_event, as_pair, as_published, as_weights
from hvlm.prompts import DESCRIBE

MAX_BYTES = 16 << 20  # of the JSON or text of one sample
_LETTERED_SETS = ("vnbench",)  # whose published samples do not say themselves that they ask for letters
_ANSWERS = ("assistant", "chosen_assistant")
_CONVERSATIONS = ("messages", "conversations")
_ASKED = (
    "question",
    "answer",
    "answers",
    "options",
    "gold",
    "rejected",
    "evidence",
    "task",
    "lettered",
    "tries",
    "context",
)
_FORMS = "captions, questions, messages, conversations, caption, question and answer, user and assistant"


def parse(members: Mapping[str, Any], key: str, domain: str, uid: str | None = None) -> dict[str, Any]:
    """The sample's JSON (or its ``txt``, a caption) in one form.

    Args:
        members: field -> bytes; only those of the text are looked at.
        key: the tar's name of the sample; what the JSON says of ``key`` and ``id`` does not count.
        domain: of samples that name none.
        uid: the sample's one name within its data (``ShardSplit.uid``), by default the key.

    Returns:
        ``key``, ``uid``, ``domain``, ``captions`` [{prompt, text, evidence, and where given references}], ``questions``
        [{id, task, question, answer, lettered, evidence, and where given answers (all that count as right), their
        weights, people (what each of them answered), published, rejected and tries [{options, gold}]}], where given
        ``events`` [{start, end, label}], ``pairs`` [{text, negatives}], ``fps`` (above 0), ``section`` [start, stop],
        ``cluster``, ``set`` and ``outline``, and
        whatever other fields the JSON has, as they are. Of a conversation the caption and the question are its last
        exchange, with ``turns`` [(question, answer)], the earlier ones, and ``system``, where it has them. A question's
        ``context`` stands before the first question, which begins with ``context_chars`` characters of it.

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
    sample = {name: field for name, field in value.items() if name not in ("captions", "questions", *_CONVERSATIONS)}
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
    sample |= {
        name: [read(item, f"{name}[{i}]") for i, item in enumerate(as_list(value[name], name))]
        for name, read in (("events", as_event), ("pairs", as_pair))
        if name in value
    }
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
    talks = _conversations(value)
    names += [talk.name for talk in talks if talk.name]
    if len(set(names)) < len(names):
        raise FieldError(f"conversations: two have the id {next(n for n in names if names.count(n) > 1)!r}")
    numbers = (f"q{i}" for i in itertools.count(len(sample["questions"])) if f"q{i}" not in names)
    if {"captions", "questions", "objects", "events", "pairs"} & set(value):
        sample["questions"] += [_of_talk(talk, talk.name or next(numbers), value) for talk in talks]
        return sample
    if not talks and "question" in value and any(name in value for name in ("answer", "answers", "gold")):
        q = _lone_question({name: value[name] for name in _ASKED if name in value}, lettered)
        sample["captions"] = [{"prompt": q["question"], "text": q["answer"], "evidence": q["evidence"]}]
        sample["questions"] = [q]
        return sample
    talks = talks or [_exchange(value)]
    for talk in talks:
        caption = {
            "prompt": talk.prompt,
            "text": talk.answer,
            "evidence": [],
            "turns": talk.turns,
            "system": talk.system,
        }
        sample["captions"].append({name: field for name, field in caption.items() if field or name == "evidence"})
        if "caption" not in value:
            sample["questions"].append(_of_talk(talk, talk.name or next(numbers), value))
    return sample


def _of_talk(talk: Conversation, name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A conversation as the question that it ends with, of its own task or the one that the sample's ``source``
    names."""
    task = talk.task or as_text(value.get("source", "question"), "source")
    more = {"turns": talk.turns, "system": talk.system, "rejected": talk.rejected}
    question = {"id": name, "task": task, "question": talk.prompt, "answer": talk.answer}
    return question | {"lettered": False, "evidence": []} | {name: field for name, field in more.items() if field}


def _conversations(value: dict[str, Any]) -> list[Conversation]:
    """Those of the fields ``messages`` and ``conversations``, each of which holds the turns of one, or several such
    lists or objects with ``messages``."""
    found = []
    for name in _CONVERSATIONS:
        if name not in value:
            continue
        items = as_list(value[name], name)
        if items and (isinstance(items[0], list) or (isinstance(items[0], dict) and "messages" in items[0])):
            found += [_conversation(item, f"{name}[{i}]") for i, item in enumerate(items)]
        else:
            found.append(conversation(items, name))
    if found and "system" in value:
        system = as_text(value["system"], "system")
        found = [talk._replace(system=talk.system or system) for talk in found]
    if len(found) == 1:
        found = [found[0]._replace(rejected=_rejected(value))]
    return found


def _conversation(item: Any, where: str) -> Conversation:
    """A list of turns, or an object that holds one as ``messages``, with ``id`` and ``task``."""
    if not isinstance(item, dict):
        return conversation(as_list(item, where), where)
    said = conversation(item.get("messages"), f"{where}.messages")
    own = {name: as_text(item[name], f"{where}.{name}") for name in ("id", "task") if item.get(name) is not None}
    return said._replace(name=own.get("id", ""), task=own.get("task", ""))


def _rejected(value: dict[str, Any]) -> str | None:
    rejected = value.get("rejected_assistant")
    return None if rejected is None else as_text(rejected, "rejected_assistant")


def _exchange(value: dict[str, Any]) -> Conversation:
    """The one exchange that a sample holds."""
    prompt = _prompt(value.get("user"), "user")
    if "caption" in value:
        return Conversation(prompt, as_text(value["caption"], "caption"))
    for name in _ANSWERS:
        if name in value:
            return Conversation(prompt, as_text(value[name], name), rejected=_rejected(value))
    found = ", ".join(sorted(map(_name, value))[:12]) or "nothing"
    raise FieldError(f"no text to learn from in it: it has {found}; expected {_FORMS}")


def _name(name: str) -> str:
    return name if name.isascii() and name.isprintable() and len(name) <= 40 else ascii(name[:40])


def _lone_question(value: dict[str, Any], lettered: bool) -> dict[str, Any]:
    """Of a sample that is itself a question."""
    try:
        return _question(value, 0, "", lettered)
    except FieldError as error:
        raise FieldError(str(error).removeprefix(".")) from error


def _prompt(value: Any, where: str) -> str:
    return DESCRIBE if value is None or value == "" else as_text(value, where)


def _caption(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        return {"prompt": DESCRIBE, "text": as_text(item, where), "evidence": []}
    caption = {
        "prompt": _prompt(item.get("prompt"), f"{where}.prompt"),
        "text": as_text(item.get("text"), f"{where}.text"),
        "evidence": as_evidence(item.get("evidence"), f"{where}.evidence"),
    }
    if item.get("references") is not None:
        others = as_list(item["references"], f"{where}.references")
        caption["references"] = [as_text(one, f"{where}.references[{i}]") for i, one in enumerate(others)]
    return caption


def _question(item: Any, number: int, where: str, lettered: bool) -> dict[str, Any]:
    item = {name: field for name, field in as_object(item, where).items() if field is not None}
    question: dict[str, Any] = {
        "id": as_text(item.get("id", f"q{number}"), f"{where}.id"),
        "task": as_text(item.get("task", "question"), f"{where}.task"),
        **_asked(item, where),
        "answer": "",
        "evidence": as_evidence(item.get("evidence"), f"{where}.evidence"),
        "lettered": as_flag(item.get("lettered", lettered), f"{where}.lettered"),
    }
    if "answers" in item:
        right = item["answers"]
        if isinstance(right, dict):
            question["weights"] = right = as_weights(right, f"{where}.answers")
            right = list(right)
        right = as_list(right, f"{where}.answers")
        question["answers"] = [as_text(one, f"{where}.answers[{i}]") for i, one in enumerate(right)]
        if not right:
            raise FieldError(f"{where}.answers is empty")
        item.setdefault("answer", right[0])
    if "people" in item:
        said = as_list(item["people"], f"{where}.people")
        question["people"] = ["" if one == "" else as_text(one, f"{where}.people[{i}]") for i, one in enumerate(said)]
    if "published" in item:
        question["published"] = as_published(item["published"], f"{where}.published")
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


def _asked(item: dict[str, Any], where: str) -> dict[str, Any]:
    """What is asked, after which text (``context``) and in which conversation; of ``messages`` the last exchange is the
    question and its answer."""
    context = as_text(item["context"], f"{where}.context") if "context" in item else ""
    more: dict[str, Any] = {}
    if "messages" not in item:
        prompt = as_text(item.get("question"), f"{where}.question")
    else:
        said = conversation(item["messages"], f"{where}.messages")
        prompt, item["answer"] = said.prompt, said.answer
        more = {"turns": said.turns, "system": said.system}
    if context:
        if more.get("turns"):
            (asked, answered), *rest = more["turns"]
            more["turns"] = ((f"{context}\n\n{asked}", answered), *rest)
        else:
            prompt = f"{context}\n\n{prompt}"
        more["context_chars"] = len(context)
    return {"question": prompt} | {name: field for name, field in more.items() if field}


def _only_try(item: dict[str, Any], where: str) -> dict[str, Any]:
    """Of a question with options in one order: ``gold`` or the answer says which is right."""
    if "gold" in item:
        return _try(item, where)
    one = _try({"options": item["options"], "gold": 0}, where)
    try:
        return one | {"gold": gold_of(item.get("answer"), as_list(item["options"], f"{where}.options"))}
    except ValueError as error:
        raise FieldError(f"{where}.answer is {shown(item.get('answer'))}, expected {error}") from None


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
