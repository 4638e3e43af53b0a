"""The JSON of a sample: what is clearly meant is accepted, the rest is one line that names the field."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import random

import numpy as np
import pytest
from _clips import FakeChat, sample

from hvlm.data import samples
from hvlm.data.cache import Clip
from hvlm.data.quarantine import SampleError
from hvlm.data.reader import SampleSpec
from hvlm.data.sample_json import MAX_BYTES
from hvlm.data.views import Captions, Pairs, PatchLabels, Questions, chat_row
from hvlm.dataset._needles_labels import patch_labels
from hvlm.prompts import Prompt, context
from hvlm.types import InputSpec

TIMES = np.arange(16) / 8
FRAMES = np.zeros((16, 3, 64, 64), np.uint8)


def parse(value, key: str = "k", **more) -> dict:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return samples.parse({"json": data}, key, "general", **more)


@pytest.mark.fault(67)
def test_the_tars_key_wins_over_what_the_json_says():
    found = parse({"key": "../../evil", "uid": "x", "id": "../y", "caption": "a"}, uid="train/a/k")
    assert (found["key"], found["uid"]) == ("k", "train/a/k")


@pytest.mark.fault(72, 96)
@pytest.mark.parametrize(
    ("fps", "rate"), [(25, 25.0), ("30000/1001", 30000 / 1001), ("25", 25.0), (29.97, 29.97), (None, None)]
)
def test_a_rate_is_a_number_or_a_fraction_and_null_is_absent(fps, rate):
    assert parse({"caption": "x", "fps": fps}).get("fps") == rate


@pytest.mark.fault(72, 96)
@pytest.mark.parametrize(
    "fps", [0, -1, float("nan"), float("inf"), "0/0", "1/0", "fast", "1e999999999", True, [25], 10**400, {}]
)
def test_a_rate_that_is_none_is_named(fps):
    with pytest.raises(SampleError, match=r"^k: json: fps is .*, expected"):
        parse({"caption": "x", "fps": fps})


@pytest.mark.fault(72, 96)
def test_captions_may_be_texts_objects_or_one_of_them():
    assert parse({"captions": "one"})["captions"] == [{"prompt": "Describe this.", "text": "one", "evidence": []}]
    both = parse({"captions": ["one", {"prompt": "say", "text": "two", "evidence": [[0, 1]]}]})["captions"]
    assert [(c["prompt"], c["text"]) for c in both] == [("Describe this.", "one"), ("say", "two")]
    assert both[1]["evidence"] == [[0.0, 1.0]]
    assert parse({"captions": None, "caption": "x"})["captions"][0]["text"] == "x"
    assert parse({"caption": 3})["captions"][0]["text"] == "3"
    rows = Captions().rows(parse({"captions": ["one", "two"]}), TIMES, np.random.default_rng(0), None)
    assert [row.answer for row in rows] == ["one", "two"]


@pytest.mark.fault(72, 96)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"caption": None}, "no text to learn from in it: it has nothing; expected captions, questions, messages, con"),
        ({"Frage": 1, "clip": "x"}, "it has Frage, clip; expected captions"),
        ({"question": "q"}, "it has question; expected .*question and answer"),
        ({"question": "q", "answer": [1]}, "answer is a list of 1, expected text"),
        ({"question": "q", "answer": "no", "options": ["x", "y"]}, "answer is 'no', expected exactly one of the opt"),
        ({"messages": []}, "messages: no user among its 0 turns"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\]\.role is 'tool', expected one of user"),
        (
            {"conversations": [{"from": "gpt", "value": "x"}]},
            r"conversations\[0\] is of the assistant, expected of the",
        ),
        ({"conversations": [{"from": "human", "value": "x"}] * 2}, r"conversations\[1\] is of the user, expected of"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt"}]}, r"conversations\[1\]\.content is null"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"messages\[0\]\.content\[0\]\.text is null"),
        ({"caption": " "}, "caption is ' ', expected text"),
        ({"caption": ["x"]}, "caption is a list of 1, expected text"),
        ({"captions": 4}, "captions is 4, expected a list"),
        ({"captions": [{"text": None}]}, r"captions\[0\]\.text is null, expected text"),
        ({"captions": [{"text": "x", "evidence": [[0, 1, 2]]}]}, r"captions\[0\]\.evidence\[0\] is a list of 3"),
        ({"caption": "half a \ud83d smile"}, "caption holds half a character"),
        ({"user": "q", "assistant": {}}, "assistant is an object of 0, expected text"),
        ({"questions": [{"question": "q"}]}, r"questions\[0\]\.answer is null"),
        ({"questions": ["q"]}, r"questions\[0\] is 'q', expected an object"),
        ({"questions": [{"question": "q", "answer": "a", "tries": [{"options": ["a", "b"], "gold": 2}]}]}, "gold is 2"),
        ({"questions": [{"question": "q", "answer": "a", "lettered": True}]}, "tries is missing"),
        ({"questions": [{"id": "a", "question": "q", "answer": "a"}] * 2}, "two have the id 'a'"),
        ({"messages": [{"role": "user", "content": "q"}]}, "messages: no assistant among its 1 turns"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content is null"),
        (b"[1]", "it is a list of 1, expected an object"),
        (b'{"caption": "x", "m": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "stand in each other too deeply"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x" * (MAX_BYTES + 1), "at most"),
    ],
)
def test_what_cannot_be_meant_names_its_field(value, said):
    with pytest.raises(SampleError, match=f"^k: json: .*{said}") as caught:
        parse(value)
    assert "\n" not in str(caught.value)


@pytest.mark.fault(96)
def test_a_mark_in_front_of_the_text_is_none_of_it():
    assert parse(b"\xef\xbb\xbf" + b'{"caption": "x"}')["captions"][0]["text"] == "x"
    found = samples.parse({"txt": b"\xef\xbb\xbfhello\n"}, "k", "general")
    assert found["captions"][0]["text"] == "hello"


@pytest.mark.fault(96)
def test_messages_beside_a_video_are_asked_about_it():
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    found = parse({"messages": turns}, uid="train/a/k")
    (row,) = Questions().rows(found, TIMES, np.random.default_rng(0), None)
    asked = Prompt("q", system="s")
    assert row[:2] == (asked, "a") and row.meta["uid"] == "train/a/k"
    assert Captions().rows(found, TIMES, np.random.default_rng(0), 1)[0][:2] == (asked, "a")
    assert chat_row(found)[:2] == (asked, "a")


LLAVA = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "A ring."},
    {"from": "human", "value": "Its color?\n<video>"},
    {"from": "gpt", "value": "Red."},
    {"from": "human", "value": "And then?"},
]
OPENAI = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "video_url", "video_url": {}}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "A ring."},
    {"role": "user", "content": "Its color?"},
    {"role": "assistant", "content": "Red."},
]


@pytest.mark.fault(108)
@pytest.mark.parametrize(
    ("value", "system"),
    [
        ({"conversations": LLAVA}, None),
        ({"conversations": LLAVA, "system": "Be brief."}, "Be brief."),
        ({"messages": OPENAI}, "Be brief."),
        ({"conversations": [{"from": "system", "value": "Be brief."}, *LLAVA]}, "Be brief."),
    ],
)
def test_a_conversation_keeps_its_turns(value, system):
    found = parse(value | {"rejected_assistant": "Blue."}, uid="train/a/k")
    rows = [view.rows(found, TIMES, np.random.default_rng(0), None)[0] for view in (Captions(), Questions(), Pairs())]
    for row in [*rows, chat_row(found)]:
        assert str(row.prompt) == "Its color?" and row.answer == "Red."
        assert context(row.prompt) == {"before": (("What is it?", "A ring."),)} | ({"system": system} if system else {})
    assert Pairs().rows(found, TIMES, np.random.default_rng(0), None)[1].answer == "Blue."
    assert "conversations" not in found and "messages" not in found


@pytest.mark.fault(108)
def test_several_conversations_may_stand_beside_captions_and_questions():
    alone = parse({"conversations": [LLAVA, OPENAI]})
    assert [(q["id"], q["question"], len(q["turns"])) for q in alone["questions"]] == [
        ("q0", "Its color?", 1), ("q1", "Its color?", 1),
    ]  # fmt: skip
    assert [c.get("system") for c in alone["captions"]] == [None, "Be brief."]
    beside = {"captions": ["a ring"], "questions": [{"id": "q1", "question": "q", "answer": "a"}]}
    found = parse(beside | {"conversations": [LLAVA, OPENAI], "source": "talk"})
    assert [(q["id"], q["task"]) for q in found["questions"]] == [("q1", "question"), ("q2", "talk"), ("q3", "talk")]
    assert len(found["captions"]) == 1 and "turns" not in found["captions"][0]
    rows = Questions().rows(found, TIMES, np.random.default_rng(0), None)
    assert [context(row.prompt).get("before", ()) for row in rows] == [(), *([(("What is it?", "A ring."),)] * 2)]
    asked = {"messages": OPENAI, "options": ["Blue.", "Red."]}
    (q,) = parse({"questions": [asked]})["questions"]
    assert (q["question"], q["tries"]) == ("Its color?", [{"options": ["Blue.", "Red."], "gold": 1}])
    assert (q["turns"], q["system"]) == ((("What is it?", "A ring."),), "Be brief.")
    with pytest.raises(SampleError, match=r"questions\[0\]\.messages\[0\] is of the assistant"):
        parse({"questions": [{"messages": OPENAI[2:]}]})
    with pytest.raises(SampleError, match=r"conversations\[1\]\[0\] is of the assistant"):
        parse(beside | {"conversations": [LLAVA, LLAVA[1:]]})


@pytest.mark.fault(108)
def test_a_marker_of_the_video_is_no_text_and_a_question_without_words_asks_for_a_description():
    turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "A <image> of a ring."}]
    (row,) = Questions().rows(parse({"conversations": turns}), TIMES, np.random.default_rng(0), None)
    assert row[:2] == ("Describe this.", "A <image> of a ring.")


@pytest.mark.fault(108)
def test_a_question_and_its_answer_need_no_list():
    value = {"question": "What?", "answer": "red", "options": ["red", "blue"], "id": 7}
    found = parse(value)
    assert found["questions"] == parse({"questions": [value | {"id": "q0"}]})["questions"]
    assert found["captions"] == [{"prompt": "What?", "text": "red", "evidence": []}]


def test_a_question_in_a_conversation_is_equal_only_to_one_in_the_same():
    one = Prompt("And then?", [("What?", "A ring.")])
    same = pickle.loads(pickle.dumps(one))
    assert same == one and hash(same) == hash(one) and context(same) == {"before": (("What?", "A ring."),)}
    others = [Prompt("And then?", [("What?", "A dot.")]), Prompt("And then?", one.before, "Be brief."), "And then?"]
    assert all(other != one and one != other for other in others) and len({one, same, *others}) == 4
    assert Prompt("a") == "a" and context("a") == context(Prompt("a")) == {}


def test_a_sample_says_itself_that_letters_are_asked_for():
    tries = [{"options": ["red", "blue"], "gold": 1.0}]
    question = {"question": "what ?", "answer": "blue", "rejected": "red", "tries": tries}
    for value in ({"questions": [question | {"lettered": True}]}, {"set": "vnbench", "questions": [question]}):
        (row,) = Questions().rows(parse(value), TIMES, np.random.default_rng(0), None)
        assert row.answer == "B" and "A. red\nB. blue" in row.prompt
        assert [r.answer for r in Pairs().rows(parse(value), TIMES, np.random.default_rng(0), 1)] == ["B", "A"]
    (row,) = Questions().rows(parse({"questions": [question]}), TIMES, np.random.default_rng(0), None)
    assert row[:2] == ("what ?", "blue")
    elsewhere = question | {"lettered": True, "rejected": "green"}
    assert Pairs().rows(parse({"questions": [elsewhere]}), TIMES, np.random.default_rng(0), 1) == []


VALUES = [
    None, 0, -1, 1.5, float("nan"), float("inf"), 10**30, True, "", " ", "x", "\ud800", "30000/1001", [], [None], [[]],
    [[0, "x"]], [[1, 0]], {}, {"role": 3}, [{"text": []}], [{"track": [[1]]}], {"a": {"b": [1, {"c": None}]}}, "\0",
    "é",
]  # fmt: skip
START = [
    sample("k"),
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"user": "q", "chosen_assistant": "a", "rejected_assistant": "b", "source": "s", "fps": "30000/1001"},
    {"conversations": LLAVA, "system": "s"},
    {"messages": OPENAI},
    {"captions": ["a", {"text": "b"}], "set": "vnbench", "outline": False},
]


def mutated(rng: random.Random):
    """A sample with a few values, somewhere in it, replaced, removed or wrapped."""
    value = copy.deepcopy(rng.choice(START))
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = []

        def walk(node, places=places):
            for name in node if isinstance(node, dict) else range(len(node)):
                places.append((node, name))
                if isinstance(node[name], (dict, list)):
                    walk(node[name])

        walk(value)
        if not places:
            break
        node, name = rng.choice(places)
        kind = rng.random()
        if kind < 0.2 and isinstance(node, dict):
            del node[name]
        elif kind < 0.3:
            node[name] = [node[name]]
        else:
            node[name] = copy.deepcopy(rng.choice(VALUES))
    return value


@pytest.mark.fault(72, 96)
def test_whatever_the_json_holds_it_is_read_or_refused_by_name():
    rng, read, refused, labelled = random.Random(0), 0, 0, 0
    spec = SampleSpec(FakeChat(), Captions(), None, "answer", InputSpec("question_first", 16, 64), None, 0)
    for _ in range(800):
        data = json.dumps(mutated(rng)).encode()
        if rng.random() < 0.1:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        try:
            found = samples.parse({"json": data}, "k", "general")
            for view in (Captions(), Questions(), Pairs()):
                shown = dataclasses.replace(spec, view=view, rows_per_clip=rng.choice([None, 2]))
                shown.clip(Clip(found, FRAMES, TIMES), None, 0)
                for row in view.rows(found, TIMES, np.random.default_rng(0), None):
                    assert row.prompt.encode() and row.answer.encode(), "what a tokenizer takes"
            read += 1
            spec.text({"json": data}, "k", "text/a/k")
            labels = dataclasses.replace(spec, view=PatchLabels(), grid=(4, 4), patch_labels=patch_labels)
            labels.clip(Clip(found, FRAMES, TIMES), None, 0)
            labelled += 1
        except SampleError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
            refused += 1
    assert read > 100 and refused > 200 and labelled > 5
