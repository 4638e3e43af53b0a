"""Fuzz: texts as ids and back, chat templates and stored tokenizers of others, and what a written answer means."""

from __future__ import annotations

import functools
import json
from typing import Any

import _templates
from _fuzz import target
from _fuzz_files import broken
from _fuzz_values import changed, dumped, texts
from _tiny import chat
from hypothesis import strategies as st

from hvlm.benchmark._parsers import PARSERS
from hvlm.benchmark._vnbench_lines import PARSERS as VNBENCH
from hvlm.benchmark._vnbench_lines import parse as vnbench_parse
from hvlm.evaluation.answers import read_answer, read_number, same
from hvlm.evaluation.open_scores import exact, normalised
from hvlm.metrics.vqa import vqa_accuracy
from hvlm.text.chat import LOSSES, ORDERS, Chat

FAMILIES = [name for name in dir(_templates) if name.isupper() and isinstance(getattr(_templates, name), str)]
words = st.one_of(texts, st.text(max_size=60), st.lists(texts, max_size=8).map("".join))


@functools.cache
def _own() -> Any:
    return _templates.byte_level(
        ("<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]"), eos_token="<|im_end|>", bos_token="<s>"
    )


@functools.cache
def _chat(template: str) -> Chat:
    return chat() if template == "tiny" else Chat(_own(), template, "be brief" if template != "plain" else None)


@target(
    ci=40,
    template=st.sampled_from(("tiny", "chatml", "vicuna", "plain")),
    prompt=words,
    answer=words,
    before=st.lists(st.tuples(words, words).map(list), max_size=3),
    system=st.one_of(st.none(), words),
    loss=st.sampled_from(LOSSES),
    order=st.sampled_from(ORDERS),
    context=st.integers(0, 80),
)
def test_chat(
    template: str, prompt: str, answer: str, before: list[Any], system: str | None, loss: str, order: str, context: int
) -> None:
    # What a text may hold is checked where it is read (``as_text``): no half characters come here.
    prompt, answer = whole(prompt), whole(answer)
    turns = [(whole(q), whole(a)) for q, a in before]
    system = None if system is None else whole(system)
    one = _chat(template)
    encoded = one.encode(prompt, answer, loss, order, turns, system, min(context, len(prompt)))
    assert len(encoded.ids) == len(encoded.loss_mask) and 0 <= encoded.visual_at <= len(encoded.ids)
    assert 0 <= encoded.context <= len(encoded.ids) and all(0 <= i < one.vocab_size for i in encoded.ids)
    ids, visual_at = one.encode_prompt(prompt, order, turns, system)
    assert 0 <= visual_at <= len(ids)
    one.decode(encoded.ids)
    one.unknown(prompt, answer)


def whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


PIECES = (
    "{{ messages }}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{{ m['content'] }}",
    "{{ m.content }}",
    "{{ bos_token }}",
    "{% if add_generation_prompt %}",
    "{% endif %}",
    "{{ 9**9**9 }}",
    "{{ 'a' * 10**9 }}",
    "{{ raise_exception('no') }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ range(10**9)|list }}",
    "{{ strftime_now('%d') }}",
    "{{ x.y.z }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ 'a'.format(1) }}",
    "{{ messages[5] }}",
    "{{ messages|tojson(indent=10**6) }}",
    "{% break %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ '%0999999999d' % 1 }}",
    "{{ 1/0 }}",
    "{{ 'x'.center(10**9) }}",
    "{{ ('a' * 10000)|replace('a', 'a' * 100000) }}",
    "{% set a = 'b' * 9999999 %}{{ a * 99999 }}",
    "{{ '{:>999999999}'.format('a') }}",
    "{{ messages|map(attribute='content')|join('x' * 10**8) }}",
    "{% generation %}",
    "{#",
    "{{ lipsum(10**7) }}",
    "{{ 'a'|indent(10**9) }}",
    "{{ [0] * 10**9 }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 2|pow(10**9) }}",
    "{{ 10|round(10**9) }}",
    "{{ namespace(a=1) }}",
    "{{ messages|batch(10**9)|list }}",
    "{{ 'a'.zfill(10**10) }}",
)


@st.composite
def templates(draw: Any) -> str:
    base = getattr(_templates, draw(st.sampled_from(FAMILIES)))
    for _ in range(draw(st.integers(1, 3))):
        at, size = draw(st.integers(0, len(base))), draw(st.sampled_from((0, 0, 1, 5, 40)))
        new = draw(st.one_of(st.sampled_from(PIECES), texts, st.just("")))
        base = base[:at] + new + base[at + size :]
    return draw(st.sampled_from((base, base, base, new)))


@target(ci=15, source=templates(), prompt=words, answer=words)
def test_chat_template(source: str, prompt: str, answer: str) -> None:
    one = Chat(_own(), "own", chat_template=source)
    encoded = one.encode(whole(prompt), whole(answer), before=[("q", "a")])
    one.decode(encoded.ids)
    assert Chat.from_json(one.to_json()) == one


def _stored() -> dict[str, Any]:
    fields = json.loads(chat().to_json())
    return fields | {"tokenizer": json.loads(fields["tokenizer"])}


STORED = _stored()


@target(
    ci=20, fields=st.one_of(changed(STORED, 2).map(dumped), broken(chat().to_json().encode()), st.binary(max_size=20))
)
def test_stored_tokenizer(fields: bytes) -> None:
    text = fields.decode("utf-8", "replace")
    try:
        whole_of = json.loads(text)
        if isinstance(whole_of, dict) and isinstance(whole_of.get("tokenizer"), dict):
            text = json.dumps(whole_of | {"tokenizer": json.dumps(whole_of["tokenizer"])})
    except (ValueError, RecursionError):
        pass
    one = Chat.from_json(text)
    one.encode("what is it?", "a square")
    one.to_json()


options = st.lists(words, min_size=1, max_size=8)
said = st.one_of(
    words,
    st.tuples(words, words, words).map("".join),
    st.sampled_from("ABCDEFG").map(lambda a: f"The answer is ({a})."),
    st.tuples(
        st.sampled_from(
            ("<think>", "\\boxed{", "<answer>", "answer: ", "Option ", "(", "**", "final " * 400, "*" * 4000)
        ),
        words,
    ).map("".join),
    st.integers(0, 4000).map(lambda n: "the best " * n),
    st.integers(0, 9000).map(lambda n: "_" * n + "a"),
    st.integers(0, 3000).map(lambda n: "\\boxed{" * n),
    st.integers(0, 3000).map(lambda n: "<answer>" * n),
    st.integers(0, 3000).map(lambda n: "answer " * n),
    st.integers(0, 3000).map(lambda n: "<think>" * n),
)


@target(ci=60, written=said, offered=options, letters=st.booleans(), number=st.one_of(st.integers(), st.floats()))
def test_answers(written: str, offered: list[str], letters: bool, number: float) -> None:
    reading = read_answer(written, offered, letters)
    assert (reading.index is None) == bool(reading.problem) and (
        reading.index is None or 0 <= reading.index < len(offered)
    )
    for parser in PARSERS.values():
        reading = parser(written, offered)
        assert (reading.index is None) == bool(reading.problem) and (
            reading.index is None or reading.index < len(offered)
        )
    for name in VNBENCH:
        vnbench_parse(written, tuple(offered), name)
    same(written, offered[0])
    exact(written, offered)
    normalised(written, offered)
    vqa_accuracy(written, offered)
    try:
        read_number(number, offered)
    except (ValueError, OverflowError):  # no index, as it says
        pass
