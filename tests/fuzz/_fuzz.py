"""What the fuzz targets share: inputs that are valid files with something wrong in them, and limits on what an example
may take.

A target is a function of plain values (texts, bytes, numbers, lists and objects of them) with ``@target(...)``. It
passes where it returns or raises ``UserError``; anything else is a failure: another exception, more seconds of
computing or more memory than an example may take. In ``make test`` each target gets a few examples, always the same
ones, and every file of ``corpus/`` again; ``make fuzz MINUTES=...`` spreads a budget over them (``run.py``).
"""

from __future__ import annotations

import base64
import copy
import csv
import functools
import io
import json
import logging
import os
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="fuzzing needs hypothesis: pip install 'hvlm[dev]'")

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from hvlm.errors import UserError

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
CPU_SECONDS, WALL_SECONDS = 10, 120  # of one example
MEMORY = 2 << 30  # bytes that one example may add
LONGEST_MESSAGE = 1 << 20  # characters


# ------------------------------------------------------------------------------------------------------------- targets


class Target:
    """One thing that is fuzzed. body: of keyword arguments. test: the same under hypothesis. counts: examples by what
    became of them. known: places of failures that are no news any more."""

    def __init__(self, name: str, body: Callable[..., Any], strategies: Mapping[str, Any], ci: int) -> None:
        self.name, self.body, self.ci = name, body, ci
        self.counts = {"examples": 0, "refused": 0}
        self.known: set[str] = set()
        self.last: dict[str, Any] = {}

        self.strategies = dict(strategies)

    def search(self, profile: settings, start: int | None = None) -> None:
        """Draws examples and runs them, as the profile says. Raises what one of them fails with.

        start: seed of what is drawn; None: the profile's own.
        """

        def one(**values: Any) -> None:
            self.run(values)

        drawn = profile(given(**self.strategies)(one))  # anew, for a function takes settings once
        (drawn if start is None else seed(start)(drawn))()

    def run(self, values: Mapping[str, Any]) -> None:
        """One example, within the limits. Raises what it fails with, unless that is known."""
        self.counts["examples"] += 1
        try:
            with limited(), quiet():
                self.body(**values)
        except UserError as error:
            self.counts["refused"] += 1
            check_message(error)
        except Exception as error:
            self.last = dict(values)
            if place_of(error) not in self.known:
                raise


SETTINGS = {
    "deadline": None,
    "report_multiple_bugs": False,
    "suppress_health_check": list(HealthCheck),
    "print_blob": False,
}
TARGETS: dict[str, Target] = {}


def target(ci: int = 20, **strategies: Any) -> Callable[[Callable[..., Any]], Callable[[], None]]:
    """Makes a function of plain values a test of pytest, and a target of ``run.py`` under its name without ``test_``.

    ci: examples in ``make test``. strategies: of its arguments.
    """

    def wrap(body: Callable[..., Any]) -> Callable[[], None]:
        made = Target(body.__name__.removeprefix("test_"), body, strategies, ci)
        TARGETS[made.name] = made

        def test() -> None:
            # hypothesis' wrapper shows pytest the arguments that it fills; this shows none.
            made.search(settings(**SETTINGS, max_examples=ci, derandomize=True, database=None))

        functools.update_wrapper(test, body)
        del test.__wrapped__  # type: ignore[attr-defined]
        return test

    return wrap


def place_of(error: BaseException) -> str:
    """Where a failure belongs: what it is and the innermost line of hvlm; two of one place are one."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}hvlm{os.sep}" in f.filename]
    frames = frames or traceback.extract_tb(error.__traceback__)
    inner = frames[-1]
    return f"{type(error).__name__} in {inner.filename.rpartition(f'{os.sep}hvlm{os.sep}')[2]}: {inner.name}"


def check_message(error: UserError) -> None:
    """A message can be printed, and says something."""
    text = str(error)
    assert text.strip(), "an empty message"
    assert len(text) < LONGEST_MESSAGE, f"a message of {len(text):,} characters: {text[:200]!r}"


class TooMuch(AssertionError):
    """An example took more computing than it may."""


@contextmanager
def limited() -> Iterator[None]:
    """Raises TooMuch inside the block after ``CPU_SECONDS`` of computing or ``WALL_SECONDS``, and lets it have
    ``MEMORY`` more than the process has (beyond it Python raises MemoryError)."""

    def stop(number: int, frame: Any) -> None:
        raise TooMuch(f"more than {CPU_SECONDS} s of computing, or {WALL_SECONDS} s")

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    memory = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, memory[1]))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, memory)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings about what is wrong with an input, of which there are thousands."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder, gone afterwards; in memory where the system has such a place."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------------- corpus


def kept(values: Mapping[str, Any]) -> str:
    """An input as a text that ``values_of`` reads."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return {"bytes": base64.b64encode(value).decode()}
        if isinstance(value, dict):
            return {"dict": [[key, plain(one)] for key, one in value.items()]}
        return [plain(one) for one in value] if isinstance(value, list | tuple) else value

    return json.dumps({name: plain(value) for name, value in values.items()}, indent=1) + "\n"


def values_of(text: str) -> dict[str, Any]:
    """The inverse of ``kept``; tuples are lists."""

    def value_of(plain: Any) -> Any:
        if isinstance(plain, dict) and "bytes" in plain:
            return base64.b64decode(plain["bytes"])
        if isinstance(plain, dict):
            return {key: value_of(one) for key, one in plain["dict"]}
        return [value_of(one) for one in plain] if isinstance(plain, list) else plain

    return {name: value_of(plain) for name, plain in json.loads(text).items()}


# ---------------------------------------------------------------------------------------------------------- strategies

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


@st.composite
def broken(draw: Any, data: bytes, most: int = 3) -> bytes:
    """Bytes with up to ``most`` things wrong in them: flipped, cut, put in, left out, doubled, overwritten."""
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.sampled_from((1, 1, 2, 4, 8, 64, 512)))
        kind = draw(st.sampled_from(("flip", "flip", "cut", "in", "out", "double", "over", "head")))
        if kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "head":
            data = data[at:]
        elif kind == "out":
            data = data[:at] + data[at + size :]
        elif kind == "double":
            data = data[: at + size] + data[at : at + size] + data[at + size :]
        else:
            new = draw(st.one_of(st.binary(min_size=1, max_size=12), st.sampled_from(BYTES)))
            data = data[:at] + new + data[at + (len(new) if kind == "over" else 0) :]
    return data


BYTES = (
    b"\0",
    b"\xff",
    b"\xff" * 8,
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\r",
    b"\n\n",
    b"\r\n",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b";",
    b"\t",
    b":",
    b"1" * 5000,
    b"NaN",
    b"\x1b[31m",
    b"\xe2\x80\xa8",
    b"\0" * 512,
    b"[" * 3000,
    b"-",
    b"1e999",
)


def json_files(value: Any) -> st.SearchStrategy[bytes]:
    """A JSON file like this one with something wrong in it: in its values (mostly), in its bytes, or bytes alone."""
    return st.one_of(
        changed(value).map(dumped),
        changed(value).map(dumped),
        changed(value).map(dumped),
        changed(value, 8).map(dumped),
        changed(value, 1).map(dumped).flatmap(broken),
        broken(dumped(value)),
        st.binary(max_size=64),
        changed(value, 1).map(lambda v: b"\xef\xbb\xbf" + dumped(v)),
        changed(value, 1).map(dumped).map(lambda b: b.decode("utf-8", "replace").encode("utf-16")),
    )


def line_files(rows: list[Any]) -> st.SearchStrategy[bytes]:
    """The same of JSON Lines."""

    def joined(changed_rows: Any) -> bytes:
        return (
            b"\n".join(dumped(row) for row in changed_rows) if isinstance(changed_rows, list) else dumped(changed_rows)
        )

    return st.one_of(
        changed(rows).map(joined),
        changed(rows).map(joined),
        changed(rows, 8).map(joined),
        changed(rows, 1).map(joined).flatmap(broken),
        broken(joined(rows)),
        st.binary(max_size=64),
    )


def csv_files(rows: list[dict[str, Any]], mark: str = ",") -> st.SearchStrategy[bytes]:
    """The same of a table of texts."""

    def written(changed_rows: Any) -> bytes:
        out = io.StringIO()
        writer = csv.writer(out, delimiter=mark, lineterminator="\n")
        listed = changed_rows if isinstance(changed_rows, list) else [changed_rows]
        for row in listed:
            cells = row if isinstance(row, list) else [row]
            try:
                writer.writerow(["" if c is None else c if isinstance(c, str) else json.dumps(c) for c in cells])
            except csv.Error:
                out.write(str(cells) + "\n")
        return out.getvalue().encode("utf-8", "surrogatepass")

    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return st.one_of(
        changed(cells).map(written),
        changed(cells).map(written),
        changed(cells, 8).map(written),
        changed(cells, 1).map(written).flatmap(broken),
        broken(written(cells)),
        st.binary(max_size=64),
    )


def within(values: Mapping[str, Any]) -> str:
    """An input in a few characters, for a message."""
    text = repr(dict(values))
    return text if len(text) <= 400 else f"{text[:300]} [...] {text[-100:]}"
