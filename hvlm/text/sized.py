"""The environment that chat templates are rendered in: as transformers makes it, with a bound on what values grow to.

A line of a template is one step for ``hvlm.text.bounded``, but ``'a' * 6000000000`` is one line, and Jinja folds it
while it compiles. So sizes are looked at before an operator, a method or a filter makes a long value, and nothing is
folded. A value may hold others many times over, as in ``[x, x]`` again and again: that counts each time.
"""

from __future__ import annotations

import functools
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from hvlm.text.bounded import TooLong

MOST_TEXT = 4_000_000  # characters of a value, with all that it holds; a million tokens
MOST_IN_ALL = 128_000_000  # characters that a rendering makes
MOST_BITS = 100_000  # of a whole number: dividing longer ones is slow
_ITEM = 8  # what a value in a list counts for, beside its text
_CODECS = {"utf-8", "utf8", "ascii", "latin-1", "latin1"}  # others take quadratic time
# Filters that only look at a value or hand it on: templates count their messages at every message.
_LOOKING = ("length", "count", "first", "last", "default", "d")
_left: ContextVar[int] = ContextVar("characters left", default=MOST_IN_ALL)


@contextmanager
def allowance() -> Iterator[None]:
    """A rendering's ``MOST_IN_ALL``."""
    before = _left.set(MOST_IN_ALL)
    try:
        yield
    finally:
        _left.reset(before)


def weight(value: Any) -> int:
    """About how many characters a value is as text. Raises TooLong above ``MOST_TEXT``."""
    total, stack = 0, [value]
    while stack:
        one = stack.pop()
        inner: Iterable[Any] = ()
        if isinstance(one, str | bytes | bytearray):
            total += len(one)
        elif isinstance(one, int):
            if one.bit_length() > MOST_BITS:
                raise TooLong
            total += one.bit_length() // 3
        elif isinstance(one, range):
            total += len(one) * _ITEM
        elif isinstance(one, Mapping):
            inner = [*one.keys(), *one.values()]
        elif isinstance(one, Namespace):
            inner = object.__getattribute__(one, "_Namespace__attrs").values()
        elif isinstance(one, Sequence | Set | deque) or type(one).__name__ in ("dict_values", "odict_values"):
            inner = one
        before = len(stack)
        stack.extend(inner)
        total += _ITEM * (len(stack) - before)
        if total > MOST_TEXT:
            raise TooLong
    return total


def spent(value: Any) -> Any:
    """The value, taken from what a rendering may make."""
    left = _left.get() - (len(value) if isinstance(value, str) else weight(value))
    if left < 0 or (isinstance(value, str) and len(value) > MOST_TEXT):
        raise TooLong
    _left.set(left)
    return value


def made(value: Any) -> Any:
    """The list, object or tuple, which holds what was there before, after a look at its size."""
    weight(value)
    return value


def _fits(size: int) -> None:
    if size > MOST_TEXT:
        raise TooLong


def _depth(value: Any) -> int:
    deepest, stack = 0, [(value, 1)]
    while stack:
        one, depth = stack.pop()
        deepest = max(deepest, depth)
        if isinstance(one, Mapping | list | tuple):
            stack += [(item, depth + 1) for item in (one.values() if isinstance(one, Mapping) else one)]
    return deepest


def _formatted(pattern: str, given: Any, sign: str) -> int:
    """An upper bound of what a pattern with "%" or "{" in it makes of values."""
    widths = [int(digits[:9]) for digits in re.findall(r"\d+", pattern)]
    taken = r"%[^%a-zA-Z]*\*" if sign == "%" else r"\{[^{}]*\{"  # widths that are values themselves
    if re.search(taken, pattern.replace("{{", "")):
        raise TooLong
    return len(pattern) + pattern.count(sign) * (weight(given) + max(widths, default=0))


def _grown(name: str, subject: Any, more: Sequence[Any], named: Mapping[str, Any]) -> int:
    """An upper bound of how long what a method or a filter makes is, for those that can make much of little."""
    given = [*more, *named.values()]
    numbers = sum(abs(one) for one in given if isinstance(one, int))
    texts = sum(len(one) for one in given if isinstance(one, str | bytes))
    if name in ("format", "format_map"):
        pattern, values = (subject, given) if isinstance(subject, str) else (str(subject), given)
        return _formatted(pattern, values, "{")
    if name == "%":
        pattern = subject if isinstance(subject, str) else bytes(subject).decode("latin-1")
        return _formatted(pattern, given, "%")
    if name in ("ljust", "rjust", "center", "zfill", "batch", "slice", "to_bytes", "round", "truncate"):
        return numbers + texts
    if name == "join":
        return sum(map(weight, given)) + weight(subject) + texts * (max(map(_length, [subject, *given])) + 1)
    if name == "tojson":
        size = weight(subject)
        depth = _depth(subject) if numbers or texts else 0
        return size + (size // _ITEM + 1) * (texts * (depth + 1) + numbers * depth)
    if name not in ("replace", "indent", "wordwrap", "urlize", "translate", "expandtabs"):
        return 0
    text = subject if isinstance(subject, str | bytes) else str(subject)
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if name == "replace":
        old = named.get("old", more[0] if more else "")
        old = old.decode("latin-1") if isinstance(old, bytes) else str(old)
        return len(text) + (text.count(old) if old else len(text) + 1) * texts
    if name == "indent":
        return len(text) + (len(text.splitlines()) + 1) * (numbers + texts)
    if name == "expandtabs":
        return len(text) + text.count("\t") * (numbers or 8)
    if name == "translate":
        return len(text) * (1 + sum(map(weight, given)))
    return len(text) * (1 + texts)


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _drawn(value: Any) -> Any:
    """What comes one after the other as a list, whose size can be seen."""
    if not isinstance(value, Iterator):
        return value
    found, size = [], 0
    for one in value:
        found.append(one)
        size += weight(one) + _ITEM
        _fits(size)
    return found


def _measured(name: str, run: Callable) -> Callable:
    """A filter that looks at sizes before and after."""
    first = int(hasattr(run, "jinja_pass_arg"))  # a context comes before the value

    @functools.wraps(run)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        front, rest = args[:first], list(args[first:])
        if rest and name in ("join", "sum"):
            rest[0] = _drawn(rest[0])
        if rest:
            _fits(sum(map(weight, rest)))
            if name == "format":
                _fits(_grown("%", str(rest[0]), [*rest[1:], kwargs], {}))
            else:
                _fits(_grown(name, rest[0], rest[1:], kwargs))
        return spent(run(*front, *rest, **kwargs))

    return filtered


class _Code(CodeGenerator):
    """Has literals, slices and ``~`` measured; the operators come to ``call_binop``."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.joined((")
        for one in node.nodes:
            self.visit(one, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Any) -> None:
        self._within("made", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:
        self._within("made", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Any) -> None:
        if node.ctx == "load":
            self._within("made", super().visit_Tuple, node, frame)
        else:  # names that are set
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Any) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._within("spent", super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _within(self, name: str, visit: Callable, node: nodes.Node, frame: Any) -> None:
        self.write(f"environment.{name}(")
        visit(node, frame)
        self.write(")")


class _Generation(Extension):
    """``{% generation %}``, which marks what an assistant says."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """The name ``dict`` without the attributes of a type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Takes no names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that one may be called self
        self, args = args[0], args[1:]
        given = dict(*args, **kwargs)
        for name in given:
            _Namespace._check(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: str) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r:.60}, which begins with an underscore")


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: Any) -> None:
    raise TemplateError(message)


@pass_context  # else Jinja would work out constants while it compiles
def _written(context: Any, value: Any) -> Any:
    return spent(value)


class SizedEnvironment(ImmutableSandboxedEnvironment):
    """Renders as transformers does. Raises TooLong where a value grows above ``MOST_TEXT``."""

    code_generator_class = _Code
    intercepted_binops = frozenset(["+", "*", "%", "/", "//"])
    made, spent = staticmethod(made), staticmethod(spent)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_written,
            extensions=[_Generation, loopcontrols],
        )
        self.filters["tojson"] = _tojson
        self.filters |= {n: _measured(n, run) for n, run in self.filters.items() if n not in _LOOKING}
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda format: datetime.now().strftime(format),
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What blocks, macros and the whole wrote."""
        found, size = [], 0
        for one in parts:
            found.append(one)
            size += len(one)
            _fits(size)
        return spent("".join(found))

    @staticmethod
    def joined(parts: Sequence[Any]) -> str:
        """Values with ``~`` between them."""
        _fits(sum(map(weight, parts)))
        return spent("".join(map(str, parts)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _fits(weight(left) + weight(right))
        if operator == "%" and isinstance(left, str | bytes):
            _fits(_grown("%", left, [right], {}))
        if operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(times, int) and not isinstance(one, int | float):
                    _fits((len(one) if isinstance(one, str | bytes) else weight(one) + _ITEM) * max(times, 0))
        return spent(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # format's
        subject, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(subject, str | bytes | int):
            if name == "join":
                args = tuple(map(_drawn, args))
            if name in ("encode", "decode") and not {*args, *kwargs.values()} <= _CODECS | {"strict"}:
                raise TooLong
            _fits(_grown(name, subject, args, kwargs))
        return spent(super().call(__context, __obj, *args, **kwargs))


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> Any:
    return SizedEnvironment().from_string(source)


def render(source: str, messages: Sequence[Mapping[str, Any]], **values: Any) -> str:
    """A conversation as a template writes it. Raises TooLong, and whatever a template may raise."""
    with allowance():
        copies = [dict(message) for message in messages]
        return _compiled(source).render(messages=copies, tools=None, documents=None, **values)
