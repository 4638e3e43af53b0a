"""Every input that once failed, again; and the program that fuzzes for as long as it is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import run
from _fuzz import CORPUS, HERE, TARGETS, Target, check_message, kept, limited, place_of, quiet, values_of
from hypothesis import strategies as st

from hvlm.errors import UserError

run.targets()
FILES = sorted(CORPUS.rglob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_what_once_failed_is_read_or_refused_in_a_line(file: Path) -> None:
    with limited(), quiet():
        try:
            TARGETS[file.parent.name].body(**values_of(file.read_text(encoding="utf-8")))
        except UserError as error:
            check_message(error)


def test_an_input_is_kept_as_it_is() -> None:
    values = {"data": b"\0\xff", "name": "\ud800", "rows": [["a", 1, None], {"b": b"", "": 0.5}]}
    assert values_of(kept(values)) == values


def test_another_exception_a_hang_and_a_hog_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_fuzz.CPU_SECONDS", 0.2)
    monkeypatch.setattr("_fuzz.MEMORY", 1 << 28)
    found: list[Any] = []

    def body(what: str) -> None:
        found.append(what)
        if what == "refused":
            raise UserError("a line")
        if what == "untyped":
            raise KeyError("a")
        if what == "memory":
            found.append(bytes(1 << 30))
        while what == "hang":
            pass

    one = Target("made_up", body, {"what": st.just("")}, 1)
    one.run({"what": "refused"})
    for what, error in (("untyped", KeyError), ("memory", MemoryError), ("hang", AssertionError)):
        with pytest.raises(error) as raised:
            one.run({"what": what})
        one.known.add(place_of(raised.value))
        one.run({"what": what})  # no news any more
    assert one.counts == {"examples": 7, "refused": 1} and one.last == {"what": "hang"}


def test_the_page_says_what_the_results_say() -> None:
    page = (HERE.parent.parent / "docs" / "fuzzing.md").read_text(encoding="utf-8")
    results = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    assert run.table(results) in page
    (said,) = re.findall(r"([\d.]+) minutes in \d+ runs", page)
    assert float(said) == round(sum(one["seconds"] for one in results["runs"]) / 60, 1)
    assert {told for told in results["targets"]} <= set(TARGETS)
