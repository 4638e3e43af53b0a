"""Texts that are longer than ``dataset.max_tokens``, and words that the vocabulary does not have."""

from __future__ import annotations

import logging
import multiprocessing
import pickle

import numpy as np
import pytest
from _clips import FakeChat
from _tiny import chat as tiny_chat

from hvlm.benchmark.open import Open
from hvlm.data.cache import Clip
from hvlm.data.notes import Notes
from hvlm.data.quarantine import SampleError
from hvlm.data.reader import SampleSpec
from hvlm.data.views import Captions, Pairs, Questions
from hvlm.errors import UserError
from hvlm.evaluation.asking import Asked
from hvlm.evaluation.likelihood import check_lengths
from hvlm.evaluation.scores import Question, Try
from hvlm.prompts import Prompt
from hvlm.text.unknown import warn_of_answers, warn_of_question
from hvlm.types import InputSpec

TIMES, FRAMES = np.arange(4) / 4, np.zeros((4, 3, 8, 8), np.uint8)


def spec(view, too_long: str, max_tokens: int, loss: str = "answer", chat=None) -> SampleSpec:
    inputs = InputSpec("question_first", 4, 8)
    return SampleSpec(chat or tiny_chat(), view, None, loss, inputs, None, 0, max_tokens=max_tokens, too_long=too_long)


def sample(**fields) -> dict:
    question = {"id": "q0", "task": "t", "question": "how many ?", "answer": "two", "evidence": [], "lettered": False}
    return {"key": "k", "uid": "train/a/k", "domain": "general", "captions": [], "questions": [question | fields]}


def rows(shown: SampleSpec, **fields) -> list:
    item = shown.clip(Clip(sample(**fields), FRAMES, TIMES), None, 0)
    return [] if item is None else item.rows


TURNS = (("what color ?", "red"), ("what shape ?", "ring"))


def test_what_is_too_long_is_refused_unless_it_may_be_cut():
    chat, answer = tiny_chat(), "one two three red blue green"
    whole = chat.encode("how many ?", answer)
    for size in (len(whole.ids), len(whole.ids) + 1):  # what fits is never touched
        for too_long in ("refuse", "cut"):
            shown = spec(Questions(), too_long, size)
            assert rows(shown, answer=answer)[0][:4] == tuple(whole) and shown.notes.cut.count == 0
    with pytest.raises(SampleError, match="a text of 12 tokens .* dataset.max_tokens=8; set dataset.too_long=cut, or"):
        rows(spec(Questions(), "refuse", 8), answer=answer)
    for loss in ("answer", "all"):
        shown = spec(Questions(), "cut", 8, loss)
        ((ids, mask, at, _, meta),) = rows(shown, answer=answer)
        assert (ids, mask, at) == (whole.ids[:8], chat.encode("how many ?", answer, loss).loss_mask[:8], 4)
        assert chat.end_id not in ids, "nobody said that the answer ends there"
        assert meta["answer_tokens"] == 3 and shown.notes.cut.examples == ["k"]
    with pytest.raises(SampleError, match="max_tokens=5; shorten it, or raise"):
        rows(spec(Questions(), "cut", 5), answer=answer)  # no room for a single token of the answer


def test_the_oldest_exchanges_are_cut_first():
    chat = tiny_chat()
    sizes = [len(chat.encode("how many ?", "two", before=TURNS[n:]).ids) for n in range(3)]
    for turns, size in enumerate(sizes):
        shown = spec(Questions(), "cut", size)
        (row,) = rows(shown, turns=TURNS)
        assert row[:4] == tuple(chat.encode("how many ?", "two", before=TURNS[turns:]))
        assert shown.notes.cut.count == (turns > 0)
    (row,) = rows(spec(Questions(), "cut", sizes[2] - 1), turns=TURNS)
    assert row[0] == chat.encode("how many ?", "two").ids[:-1]


def test_both_answers_of_a_pair_follow_the_same_exchanges():
    chat, rejected = tiny_chat(), "three red blue green circle star ring one two"
    size = len(chat.encode("how many ?", rejected, before=TURNS[1:]).ids)
    assert len(chat.encode("how many ?", "two", before=TURNS).ids) <= size, "alone, the chosen one would fit"
    chosen, other = rows(spec(Pairs(), "cut", size), turns=TURNS, rejected=rejected)
    assert chosen[0] == chat.encode("how many ?", "two", before=TURNS[1:]).ids
    assert other[0] == chat.encode("how many ?", rejected, before=TURNS[1:]).ids
    for (ids, mask, *_), answer in ((chosen, "two"), (other, rejected)):
        assert mask == chat.encode("how many ?", answer, "last", before=TURNS[1:]).loss_mask
        assert sum(mask) == len(answer.split()) + 1 and len(ids) == len(mask)


def test_a_question_of_a_benchmark_is_asked_whole_or_not_at_all():
    chat, benchmark = tiny_chat(), Open()
    asked = Asked(benchmark, open_questions=True)
    long = "how many circle star ring circle star ring ?"
    for too_long in ("refuse", "cut"):
        shown = spec(asked, too_long, 10)
        assert rows(shown, question=long) == [] and shown.notes.left_out.count == 1 and shown.notes.cut.count == 0
        assert shown.notes.left_out.examples == [f"k: {long}"]
    assert rows(spec(asked, "refuse", 10), turns=TURNS) == []
    shown = spec(asked, "cut", 15)
    ((ids, *_, meta),) = rows(shown, turns=TURNS)
    assert ids == chat.encode("how many ?", "two", before=TURNS[1:]).ids and shown.notes.cut.count == 1
    (one,) = meta["question"].tries
    assert one.prompt == Prompt("how many ?", TURNS[1:]), "what is put to the model is what was measured"
    question = Question("q", "k", "t", (Try("how many ?", (), ("two",), 0),), ())
    check_lengths(chat, [question], "question_first", 7)
    with pytest.raises(UserError, match="max_tokens=6: the shortest of 1 questions of the benchmark has 7 tokens"):
        check_lengths(chat, [question], "question_first", 6)


@pytest.mark.fault(110)
def test_words_outside_the_vocabulary_are_counted_with_examples(caplog):
    shown = spec(Captions(), "refuse", 100)
    assert tiny_chat().unknown("what zebra ?", "a gnu") == ["zebra", "a", "gnu"]
    assert tiny_chat().unknown(Prompt("what ?", [("Yak ?", "red")])) == ["Yak"]
    for text in ("red", "a zebra", "Zebra gnu"):
        value = sample() | {"captions": [{"prompt": "what ?", "text": text, "evidence": []}]}
        shown.clip(Clip(value, FRAMES, TIMES), None, 0)
    unknown = shown.notes.unknown
    assert (unknown.count, unknown.texts, unknown.examples) == (4, 2, ["a", "zebra", "Zebra", "gnu"])
    with caplog.at_level(logging.WARNING):
        shown.notes.say(100, tiny_chat().unknown_token)
    (line,) = caplog.messages
    assert line.startswith(
        "4 words in 2 texts are outside the vocabulary: 'a', 'zebra', 'Zebra', 'gnu'; the model reads"
    )
    assert "<|unk|> for each of them" in line and "language=" in line


@pytest.mark.fault(110)
def test_an_unknown_word_of_a_question_or_an_answer_is_said_at_once(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_question(tiny_chat(), "how many ?")
        warn_of_answers(tiny_chat(), ["red", "", None])
        warn_of_question(FakeChat(), "zebra")
        warn_of_answers(FakeChat(), ["<|unk|>"])
        assert caplog.messages == []
        warn_of_question(tiny_chat(), "how many gnu gnu ?")
        warn_of_answers(tiny_chat(), ["red", "a <|unk|> ring"])
    assert caplog.messages[0].startswith(
        "the question: 2 words in 1 texts are outside the vocabulary: 'gnu'; the model"
    )
    assert caplog.messages[1].startswith("1 of 2 answers contain <|unk|>, e.g. 'a <|unk|> ring'")


def _note(notes: Notes, word: str) -> None:
    notes.unknown.add([word])


def test_processes_count_together():
    notes, forked = Notes(), multiprocessing.get_context("fork")
    assert notes.unknown.add(["x" * 200]) and not notes.unknown.add(["x" * 200, "ü"])
    workers = [forked.Process(target=_note, args=(notes, word)) for word in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert notes.unknown.count == 5 and notes.unknown.texts == 4
    assert set(notes.unknown.examples) == {"x" * 60, "ü", "a", "b"}
    for i in range(20):
        notes.unknown.add([f"{i} " + "ü" * 100])
    assert len(notes.unknown.examples) == 6 and notes.unknown.count == 25
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(notes)
