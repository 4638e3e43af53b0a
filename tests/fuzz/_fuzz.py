"""What the fuzz targets share: what a target is, limits on what an example may take, and inputs as files.

A target is a function of plain values (texts, bytes, numbers, lists and objects of them) with ``@target(...)``. It
passes where it returns or raises ``UserError``; anything else is a failure: another exception, more seconds of
computing or more memory than an example may take. In ``make test`` each target gets a few examples, always the same
ones, and every file of ``corpus/`` again; ``make fuzz MINUTES=...`` spreads a budget over them (``run.py``). What is
drawn for them stands in ``_fuzz_values.py`` and ``_fuzz_files.py``.
"""

from __future__ import annotations

import base64
import functools
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

from hvlm.errors import UserError

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
CPU_SECONDS, WALL_SECONDS = 10, 120  # of one example
MEMORY = 2 << 30  # bytes that one example may add
LONGEST_MESSAGE = 1 << 20  # characters


class Target:
    """One thing that is fuzzed. body: of keyword arguments, which ``strategies`` draw. ci: examples in ``make test``.
    counts: examples by what became of them. known: places of failures that are no news any more. last: what the newest
    failure was given."""

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


def within(values: Mapping[str, Any]) -> str:
    """An input in a few characters, for a message."""
    text = repr(dict(values))
    return text if len(text) <= 400 else f"{text[:300]} [...] {text[-100:]}"
