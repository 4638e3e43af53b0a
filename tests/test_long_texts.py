"""Texts of 100,000 characters that are made to hold up the patterns which read them are answered at once.

In each of them a pattern that tries every division of a run, or begins again at every place, takes minutes.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from hvlm.benchmark._parsers import PARSERS
from hvlm.benchmark._subtitles import _plain, _srt
from hvlm.benchmark._table import place_of
from hvlm.benchmark._vnbench_annotations import source_of
from hvlm.benchmark._vnbench_lines import PARSERS as VNBENCH
from hvlm.benchmark._vnbench_lines import _offered, parse
from hvlm.config.words import _literal
from hvlm.data.conversation import conversation
from hvlm.data.options import gold_of
from hvlm.data.sample_json import parse as parse_sample
from hvlm.errors import UserError
from hvlm.evaluation.answers import plain, read_answer, same
from hvlm.evaluation.open_scores import normal
from hvlm.metrics.vqa import normalised
from hvlm.metrics.words import words
from hvlm.prepare.options import fitting, options_of
from hvlm.prepare.problems import Problem
from hvlm.prompts import bare_options
from hvlm.text.jinja import without_clock

N = 100_000
LIMIT = 2.0  # seconds
OPTIONS = ("red cube", "blue cube", "green", "x")
SPACES, TABS, LINES = " " * N, " \t" * (N // 2), "\n" * N
ANSWERS = {
    "a letter, spaces": f"A{SPACES}x", "a bracket, spaces": f"({SPACES}x", "lines": f"A{LINES}x", "only spaces": SPACES,
    "answer, spaces": f"answer{SPACES}x", "answer is, spaces": f"answer is{SPACES}x",
    "answer: A, spaces": f"answer: A{SPACES}x", "answers": "answer" * (N // 6),
    "many answers": "answer: (A) " * (N // 12), "answers together": "answer:(A)" * (N // 10),
    "the the": "the " * (N // 4), "the, spaces": f"the{SPACES}x", "quotes": "answer: (A) " * 10 + "'" * N,
    "<answer>": "<answer>" * (N // 8), "boxed": "\\boxed{" * (N // 7),
    "<answer> and boxed": "<answer>\\boxed{" * (N // 15),
    "thoughts": "<think>" * (N // 7), "stars": "*" * N, "brackets": "(" * N,
}  # fmt: skip
ALONE = {
    "gold_of, spaces": lambda: gold_of(f"{SPACES}1", OPTIONS),
    "gold_of, a letter": lambda: gold_of(f"A{SPACES}1", OPTIONS),
    "conversation, spaces": lambda: _conversation(f"{SPACES}x"),
    "conversation, tabs": lambda: _conversation(f"{TABS}<image>{SPACES}x"),
    "conversation, markers": lambda: _conversation(" <image>\n" * (N // 9) + "x"),
    "sample": lambda: parse_sample({"json": json.dumps({"messages": _turns(f"{SPACES}x")}).encode()}, "k", "d"),
    "_offered, spaces": lambda: _offered(f"A. x{SPACES}y"),
    "_offered, tabs": lambda: _offered(f"A. x{TABS}\x0b"),
    "_offered, lines": lambda: _offered(f"A.{LINES}"),
    "_offered, letters": lambda: _offered("A. " * (N // 3)),
    "_offered, lines of letters": lambda: _offered("A.\n" * (N // 3)),
    "place_of": lambda: place_of(f"Option{SPACES}1{SPACES}x", OPTIONS),
    "source_of": lambda: source_of("a" + "_ret_edit" * (N // 9)),
    "fitting": lambda: fitting(f"a{SPACES}x", OPTIONS),
    "options_of": lambda: options_of([f"A.{SPACES}1", f"{SPACES}2"]),
    "bare_options": lambda: bare_options([f"A.{SPACES}"]),
    "_srt": lambda: _srt(f"\n{SPACES}x" + f"00:00:00,000{SPACES}"),
    "_plain, <": lambda: _plain("<" * N),
    "_plain, {": lambda: _plain("{\\" * (N // 2)),
    "normal": lambda: normal("1," * (N // 2)),
    "normalised": lambda: normalised("1," * (N // 2)),
    "words, digits": lambda: words("1" * N),
    "words, points": lambda: words("1." * (N // 2)),
    "words, hyphens": lambda: words("a-" * (N // 2)),
    "_literal": lambda: _literal("\\" * N),
    "without_clock": lambda: without_clock("strftime_now( 'x )" * (N // 18)),
}


@pytest.mark.parametrize("written", ANSWERS.values(), ids=ANSWERS)
def test_a_long_answer_is_read_at_once_by_every_parser(written: str) -> None:
    with _at_once():
        read_answer(written, OPTIONS)
        plain(written)
        same(written, "red cube")
    for parser in PARSERS.values():
        with _at_once():
            parser(written, OPTIONS)
    for name in VNBENCH:
        with _at_once():
            parse(written, OPTIONS, name)


@pytest.mark.parametrize("call", ALONE.values(), ids=ALONE)
def test_a_long_text_of_data_is_read_at_once(call: Callable[[], object]) -> None:
    with _at_once():
        try:
            call()
        except (ValueError, Problem, UserError):  # what is said of it does not matter here
            pass


def test_what_is_found_in_long_texts_is_right() -> None:
    """Looking less often finds no less."""
    with _at_once():
        many = "answer: (A) " * (N // 12)
        assert read_answer(many, OPTIONS) == (0, "")
        assert read_answer(f"{many}answer: (B)", OPTIONS) == (None, "ambiguous")
        assert read_answer(f"{many}red cube", OPTIONS) == (0, "")
        assert read_answer(f"{many}blue cube", OPTIONS) == (None, "ambiguous")
        assert read_answer(f"A{SPACES})", OPTIONS) == (0, "")
        assert plain("<answer>" * (N // 8) + "\\boxed{B}") == "B"
        assert gold_of(f"{SPACES}({SPACES}b{SPACES}){SPACES}", OPTIONS) == 1
        assert _conversation(f"one{SPACES}\n<video>{SPACES}two") == "one\ntwo"
        question, options = _offered("".join(f"\n{letter}. {letter * 2}{SPACES}" for letter in "ABCD"))
        assert (question, options) == ("A. AA", ("AA", "BB", "CC", "DD"))


@contextmanager
def _at_once() -> Iterator[None]:
    """Fails after ``LIMIT``, also where a pattern would go on for hours."""

    def too_long(*_: object) -> None:
        raise AssertionError(f"takes longer than {LIMIT:g} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    began = time.perf_counter()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.perf_counter() - began < LIMIT


def _turns(asked: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": "y"}]


def _conversation(asked: str) -> str:
    return conversation(_turns(asked), "messages").prompt
