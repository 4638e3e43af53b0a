"""Files that somebody else may have written, such as those of a run's folder: plain files of a size, as plain values.

A pipe or a device in place of a file, gigabytes, values that are nested without end, or that unfold when they are read,
are refused in one line.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hvlm.errors import UserError

LARGEST = 1 << 30  # bytes
DEEPEST = 64  # lists and objects in each other
MOST_SETTINGS = 100_000  # values in a file of YAML, whose aliases may stand for many
LARGEST_NUMBER = 1e300
LONGEST_NUMBER = 400  # characters of a number in YAML; longer ones are read as text, in time that is linear
# What damaged or hostile values make of PyYAML, besides its own errors.
_UNREADABLE = (
    yaml.YAMLError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError, RecursionError,
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """PyYAML's safe one without numbers to the base 60, which take quadratic time, and without endless ones."""

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = self.construct_scalar(node)
        if len(text) > LONGEST_NUMBER or ":" in text:
            raise ValueError(f"{text[:20]!r}... is no number of at most {LONGEST_NUMBER} characters")
        is_whole = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:
        tag = super().resolve(kind, value, implicit)
        numeral = kind is yaml.ScalarNode and implicit[0] and tag in _NUMBERS
        return self.DEFAULT_SCALAR_TAG if numeral and (len(value) > LONGEST_NUMBER or ":" in value) else tag


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
for _tag in _NUMBERS:
    _Loader.add_constructor(_tag, _Loader.construct_number)


def _loaded(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def bytes_of(path: Path, most: int = LARGEST) -> bytes:
    """All of a plain file. Raises OSError for what is none, and for more bytes than ``most``."""
    # A pipe that nobody writes into is opened at once, and not read.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            kind = "is a folder" if stat.S_ISDIR(state.st_mode) else "is no plain file"
            raise OSError(0, kind, str(path))
        if state.st_size > most:
            raise OSError(0, f"has {state.st_size:,} bytes, at most {most:,} are read", str(path))
        return file.read(most)


def text_of(path: Path, most: int = LARGEST) -> str:
    """The same as text in UTF-8. UserError where it cannot be read."""
    try:
        return bytes_of(path, most).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from error


def json_of(path: Path, most: int = LARGEST) -> Any:
    """The value of a JSON file. UserError where it is none."""
    try:
        return plain(json.loads(text_of(path, most)), None)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error


def yaml_of(path: Path) -> Any:
    """The value of a YAML file, as JSON could hold it. UserError where it is none."""
    try:
        return plain(_loaded(text_of(path, 16 << 20)), MOST_SETTINGS)
    except _UNREADABLE as error:
        raise UserError(f"{path}: not readable YAML ({' '.join(str(error).split())[:300]})") from error


def said(text: str) -> Any:
    """What a word of a command line says as YAML; what is none is the text itself."""
    try:
        return plain(_loaded(text), MOST_SETTINGS)
    except _UNREADABLE:
        return text


def plain(value: Any, most: int | None) -> Any:
    """The value with names that are texts, and dates and sets as texts. Raises ValueError for one that is nested deeper
    than ``DEEPEST``, holds itself, or unfolds to more than ``most`` values."""
    left = most

    def copied(one: Any, depth: int) -> Any:
        nonlocal left
        if left is not None:
            left -= 1
            if left < 0:
                raise ValueError(f"more than {most:,} values")
        if isinstance(one, dict | list):
            if depth == DEEPEST:
                raise ValueError(f"nested deeper than {DEEPEST}")
            if isinstance(one, list):
                return [copied(item, depth + 1) for item in one]
            return {str(name): copied(item, depth + 1) for name, item in one.items()}
        return one if one is None or isinstance(one, str | bool | int | float) else str(one)

    return copied(value, 0)


def number(value: Any) -> bool:
    """Whether a value is a finite number, of a size to reckon with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def whole(value: Any) -> bool:
    """Whether a value is a whole number of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def wrong(value: Mapping[str, Any], fields: Mapping[str, tuple[str, Any]]) -> str:
    """What is wrong with an object, "" where nothing is.

    Args:
        value: the object.
        fields: {name: (what is expected, in words; whether a value is that)}.
    """
    for name, (expected, is_right) in fields.items():
        if not is_right(value.get(name)):
            return f"{name} is {shown(value.get(name))}, expected {expected}"
    return ""


def shown(value: Any) -> str:
    """The value in a few characters."""
    if isinstance(value, dict | list):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if whole(value) or not isinstance(value, int) or isinstance(value, bool):
        return f"{value!r:.60}"
    return "a very large number"
