"""Chat templates that make gigabytes of a line are refused, and others are rendered as transformers renders them."""

from __future__ import annotations

import copy
import resource
import sys
import time

import pytest
from _templates import FAMILIES, tokenizer_of
from transformers.utils.chat_template_utils import render_jinja_template

from hvlm.errors import UserError
from hvlm.text.chat import Chat
from hvlm.text.jinja import without_clock
from hvlm.text.sized import render

WRITES = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
GROWS = "{{% set ns = namespace(x={}) %}}{{% for i in range(40) %}}{{% set ns.x = {} %}}{{% endfor %}}{}"
LONG = [
    "{% set x = 'a' * 6000000000 %}",
    "{{ 'a' * 9000000000 }}",
    "{{ 9000000000 * 'a' }}",
    "{{ '%05000000000d' % 1 }}",
    "{{ '%*d' % (5000000000, 1) }}",
    "{{ '%s%s%s' % (('a' * 2000000,) * 3) }}",
    "{{ '%09000000000d'|format(1) }}",
    "{{ '{:>9000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 9000000000) }}",
    "{{ '{:>9000000000}'.format_map({}) }}",
    "{% set x = ('a' * 100000).replace('a', 'b' * 100000) %}",
    "{% set x = ('a' * 100000)|replace('a', 'b' * 100000) %}",
    "{% set x = ('a' * 100000)|replace('', 'b' * 100000) %}",
    "{% set x = [1] * 900000000 %}",
    "{% set x = [[1] * 900] * 900000 %}",
    "{{ 'a'.ljust(9000000000) }}",
    "{{ 'a'.rjust(9000000000) }}",
    "{{ 'a'.center(9000000000) }}",
    "{{ 'a'.zfill(9000000000) }}",
    "{{ ('a'|attr('zfill'))(9000000000) }}",
    "{{ ('\t' * 1000).expandtabs(9000000) }}",
    "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "{{ ('b' * 100000).join('a' * 100000) }}",
    "{{ ('a' * 100000)|join('b' * 100000) }}",
    "{{ range(99999)|map('string')|join('b' * 100000) }}",
    "{{ 'a'.encode().ljust(9000000000) }}",
    "{{ (1).to_bytes(9000000000, 'big') }}",
    "{{ 'a'|center(9000000000) }}",
    "{{ ['a']|map('center', 9000000000)|list }}",
    "{{ 'a\n\n'|indent(9000000000, true, true) }}",
    "{{ ('a\n' * 100000)|indent('b' * 100000) }}",
    "{{ [1]|batch(900000000, 'x')|list }}",
    "{{ [1]|slice(900000000)|list }}",
    "{{ ('a ' * 100000)|wordwrap(1, true, 'b' * 100000) }}",
    "{{ [1, [2]]|tojson(indent=9000000000) }}",
    "{{ 1|round(-900000000) }}",
    GROWS.format("'a'", "ns.x + ns.x", ""),
    GROWS.format("'a'", "ns.x ~ ns.x", ""),
    GROWS.format("'a'", "[ns.x, ns.x]", "{{ ns.x }}"),
    GROWS.format("'a'", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    GROWS.format("'a'", "{'a': ns.x, 'b': ns.x}", "{{ ns.x|tojson }}"),
    GROWS.format("'a'", "dict(a=ns.x, b=ns.x)", "{{ ns.x|string }}"),
    GROWS.format("'a'", "namespace(a=ns.x, b=ns.x)", "{{ ns.x }}"),
    GROWS.format("3", "ns.x * ns.x", ""),
    "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set t %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = t %}{% endfor %}",
    "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{{ f(f(f('a' * 900000))) }}",
    "{% for i in range(99999) %}" + 9999 * "a" + "{% endfor %}",
    "{% set y = 'a' * 3900000 %}" + "".join(f"{{% set x{i} = y[1:] %}}" for i in range(99)),
]


@pytest.mark.parametrize("long", LONG, ids=[f"{text[:50]} {i}" for i, text in enumerate(LONG)])
def test_a_template_that_makes_gigabytes_is_refused_at_once(long: str) -> None:
    tokenizer = copy.deepcopy(tokenizer_of("llama_2"))
    tokenizer.chat_template = WRITES + long
    begun, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"computes without an end in sight") as error:
        Chat(tokenizer, "own")
    assert "\n" not in str(error.value) and time.thread_time() - begun < 3
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10  # kB


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("header", [False, True])
def test_what_is_rendered_is_what_transformers_renders(family: str, header: bool) -> None:
    tokenizer = tokenizer_of(family)
    source = without_clock(tokenizer.chat_template)
    named = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or "", "enable_thinking": False}
    said = [{"role": r, "content": f" {r} \n é {{{{ 1 }}}} <|x|> " * 40} for r in 8 * ("user", "assistant")]
    expected, _ = render_jinja_template([said], chat_template=source, add_generation_prompt=header, **named)
    assert render(source, said, add_generation_prompt=header, **named) == expected[0]


EVERYTHING = """\
{%- set ns = namespace(n=0, text='', list=[]) -%}
{% for m in messages -%}
    {%- set ns.n = ns.n + 1 -%}{%- set ns.text = ns.text ~ m.role ~ 1 ~ none -%}
    {%- set ns.list = ns.list + [m['content'][1:3], (loop.index, 2), {'a': m}] -%}
    {%- generation %}{{ m.content|trim }}{% endgeneration -%}
    {{ m['content'].split(' ')|join('-') }} {{ m|items|list }} {{ m|tojson(indent=2) }} {{ {'ä': [1, '<']}|tojson }}
    {{ '%s-%5d' % (m.role, ns.n) }} {{ '%.3f'|format(1.5) }} {{ '{:>5}|{}'.format(m.role, '{{') }}
    {{ 'ab' * 3 }} {{ [1] * 2 }} {{ 7 % 3 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ -3 + 1.5 }} {{ none }}{{ nothing }}{{ true }}
    {%- if loop.index > 3 %}{% break %}{% endif %}
{%- endfor %}
{% macro say(x, y='z') %}<{{ x }}{{ y }}{{ caller() if caller }}>{% endmacro -%}
{{ say('a') }}{% call say(2, ['b']) %}c{% endcall %}{% filter upper %}d{% endfilter %}{% set e %}f{{ 1 }}{% endset %}
{{ e }} {{ ns.text }} {{ ns.list }} {{ ns.list|length }}
{{ messages|map(attribute='role')|unique|list }}
{{ 'x\\n\\ny'|indent(2) }} {{ messages|selectattr('role', 'equalto', 'user')|list|count }}
{{ dict(a=1, **{'b': 2}) }} {{ dict.fromkeys([1]) }}
{% set a, b = (1, 2) %}{{ b ~ a }} {{ [3, 1, 2]|sort|first }} {{ [1, 2]|sum }} {{ 'abc'|replace('b', 'x')|title }}
{{ 'a b'|wordwrap(1) }} {{ [1, 2, 3]|batch(2, 0)|list }} {{ '<'|e }} {{ ('<'|e) ~ '>' }} {{ 1.25|round(1) }}
{{ '7'|int + 1 }}
{{ 'x'.center(5) }} {{ 'é'.encode('utf-8').decode() }} {{ 'a,b'.replace(',', ';') }} {{ messages[1:][::-1]|length }}
"""


def test_a_template_that_uses_much_of_the_language_is_rendered_the_same() -> None:
    said = [{"role": r, "content": f" {r} says <this> "} for r in 8 * ("user", "assistant")]
    expected, _ = render_jinja_template([said], chat_template=EVERYTHING, bos_token="<s>")
    assert render(EVERYTHING, said, add_generation_prompt=False, bos_token="<s>") == expected[0]


@pytest.mark.parametrize(
    "source",
    [
        "{# " + "strftime_now('" * 15000 + " #}",
        "{# " + ("strftime_now(" + " " * 1000) * 200 + " #}",
        "{# " + "strftime_now('" * 30000 + " #}",
    ],
)
def test_a_long_template_is_looked_through_at_once(source: str) -> None:
    begun = time.thread_time()
    with pytest.raises(UserError, match=r"expected 256,000 at most|asks for the time in a format") as error:
        without_clock(source)
    assert "\n" not in str(error.value) and time.thread_time() - begun < 1


def test_a_quote_of_the_other_kind_is_no_end_of_a_format() -> None:
    assert without_clock("{{ strftime_now( '%d %b' ) }}") == '{{ "26 Jul" }}'
    with pytest.raises(UserError, match="asks for the time"):
        without_clock("{{ strftime_now(day) }}")
