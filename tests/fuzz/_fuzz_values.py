"""Values of the kinds that JSON has, odd ones, and a value with something wrong in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

# Texts that stand for something in one place or another.
TEXTS = (
    "",
    " ",
    "\0",
    "a",
    "A",
    "B.",
    "(C)",
    "none",
    "null",
    "true",
    "nan",
    "inf",
    "-1",
    "0",
    "1e999",
    "1/0",
    "00",
    "²",
    "٣",
    "１",
    "½",
    "٪",
    "\ud800",
    "\udcff",
    "é",
    "é",
    "😀",
    "\u202e",
    "\u2028",
    "\x1b[31m",
    "\x85",
    "\ufeff",
    "\r",
    "\n",
    "\r\n",
    "a\nb",
    "a|b|c",
    "['a', 'b']",
    "[1, 2",
    '{"a": 1}',
    "..",
    "../..",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\a.mp4",
    "a//b",
    "a/./b",
    "file:///etc/passwd",
    "pipe:ls",
    "http://x/y.tar",
    "~",
    "~root",
    "$HOME",
    "${oc.env:HOME}",
    "{0}",
    "{question}",
    "%s",
    "<video>",
    "<think>",
    "<|im_end|>",
    "A" * 300,
    "x" * 5000,
    "9" * 30,
    "1" * 5000,
    "((((((((((",
    "*" * 50,
    "a,b;c\td",
    '"',
    "'",
    "\\",
    "=",
    "true,false",
    "[",
    "]",
    "{",
    "}",
    "00:00:01,000 --> 00:00:02,000",
    "1:99:99",
    "train",
    "val",
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    4,
    26,
    27,
    255,
    1024,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    -(10**30),
    10**400,
    0.5,
    -0.5,
    2.0,
    -0.0,
    1e-320,
    1e15,
    1e16,
    1e300,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
)
# JSON that json.dumps would not write; stands for itself where ``dumped`` finds it.
RAW = {
    "@raw0@": "1" + "0" * 400,
    "@raw1@": "1" + "0" * 5000,
    "@raw2@": "[" * 2000 + "]" * 2000,
    "@raw3@": '{"a":' * 1500 + "1" + "}" * 1500,
    "@raw4@": '"\\ud800"',
    "@raw5@": "1e400",
    "@raw6@": "-Infinity",
    "@raw7@": "[" * 90 + "]" * 90,
    "@raw8@": "tru",
    "@raw9@": '"\x00\x01"',
}

texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=12), st.sampled_from(TEXTS).map(lambda t: f"a{t}b"))
scalars = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(), st.floats(), texts, st.sampled_from(list(RAW))
)
odd = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=6,
)


def dumped(value: Any) -> bytes:
    """JSON, with what stands for what no program writes."""
    text = json.dumps(value, default=str)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode("utf-8", "surrogatepass")


def _places(value: Any, way: tuple = ()) -> Iterator[tuple]:
    """The way to each value inside a value, itself included."""
    yield way
    if isinstance(value, dict | list) and len(way) < 12:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in items:
            yield from _places(one, (*way, key))


def _changed(value: Any, way: tuple, change: Callable[[Any, Any], None], top: Callable[[Any], Any]) -> Any:
    """A deep copy with a change at a place: ``change(container, key)``, or of the whole value ``top(value)``."""
    value = copy.deepcopy(value)
    if not way:
        return top(value)
    inner = value
    for key in way[:-1]:
        inner = inner[key]
    change(inner, way[-1])
    return value


@st.composite
def changed(draw: Any, value: Any, most: int = 3) -> Any:
    """A JSON value with up to ``most`` things wrong in it: fields missing, of another type, huge, renamed, doubled,
    nested, or exchanged."""
    if draw(st.integers(0, 60)) == 0:
        return draw(odd)
    for _ in range(draw(st.integers(0 if draw(st.integers(0, 9)) == 0 else 1, most))):
        way = draw(st.sampled_from(list(_places(value))))
        kind = draw(
            st.sampled_from(("replace", "replace", "replace", "text", "delete", "rename", "double", "nest", "type"))
        )
        if kind == "replace":
            new = draw(odd)
        elif kind == "text":
            new = draw(texts)
        elif kind == "nest":
            new = draw(st.sampled_from(("list", "object", "twice")))
        else:
            new = draw(st.sampled_from(TEXTS))

        def change(inner: Any, key: Any, kind: str = kind, new: Any = new) -> None:
            old = inner[key]
            if kind == "delete":
                del inner[key]
            elif kind == "rename" and isinstance(inner, dict):
                inner[new] = inner.pop(key)
            elif kind == "double" and isinstance(inner, list):
                inner.insert(key, old)
            elif kind == "double" and isinstance(old, list):
                inner[key] = old * 3
            elif kind == "type":
                inner[key] = _other_type(old)
            elif kind == "nest":
                inner[key] = {"list": [old], "object": {"a": old}, "twice": [[old], [old]]}[str(new)]
            else:
                inner[key] = new

        def top(whole: Any, kind: str = kind, new: Any = new) -> Any:
            if kind == "nest":
                return {"list": [whole], "object": {"a": whole}, "twice": [whole, whole]}[str(new)]
            return whole if kind in ("delete", "rename", "double", "type") else new

        value = _changed(value, way, change, top)
    return value


def _other_type(value: Any) -> Any:
    """The value as another program might write it."""
    if isinstance(value, bool | None):
        return int(bool(value))
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return float(value) if value.isdecimal() and len(value) < 20 else [value]
    if isinstance(value, list):
        return {str(i): one for i, one in enumerate(value)}
    return value.decode("latin-1") if isinstance(value, bytes) else list(value.values())
