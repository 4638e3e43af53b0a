"""YAML that somebody else wrote, damaged or with intent: a value, or one line, at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hvlm.errors import UserError
from hvlm.io.checkpoint import _chain_of
from hvlm.io.foreign import yaml_of


def read(tmp_path: Path, text: str) -> object:
    (tmp_path / "config.yaml").write_text(text)
    return yaml_of(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "text",
    [
        'seed: !!int ""',
        'a: !!float ""',
        'a: !!int "-_"',
        "a: !!timestamp foo",
        "a: !!bool maybe",
        "a: !!int 1:1:1",
        "a: !!float 1:1.5",
        "a: !!int " + 900 * "1",
    ],
)
def test_a_value_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="config.yaml: not readable YAML") as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="config.yaml: not readable YAML"):
        _chain_of(tmp_path, ["a"])


@pytest.mark.parametrize(
    "number", [":".join(["1"] * 30000), ":".join(["1"] * 400) + ".5", "0x" + "f" * 900_000, "9" * 5000, "1:30"]
)
def test_a_number_without_end_is_text(tmp_path: Path, number: str) -> None:
    begun = time.thread_time()
    assert read(tmp_path, f"a: {number}") == {"a": number} and time.thread_time() - begun < 3


def test_numbers_are_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, "[1, -2, 0x1f, 1.5, 1e3, .inf, 1_000, !!int 7, !!float 2]") == [
        *(1, -2, 31, 1.5, "1e3", float("inf"), 1000, 7, 2.0),
    ]


def test_a_config_that_is_no_map_has_no_chain(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text("[1]")
    assert _chain_of(tmp_path, ["a"]) == []
