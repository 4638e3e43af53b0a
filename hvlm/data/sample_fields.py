"""What a field of a sample's JSON may hold, and how a value that it may not is named."""

from __future__ import annotations

import json
import re
from typing import Any

_RATE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(?:/(\d{1,12}(?:\.\d{1,12})?))?")


class FieldError(ValueError):
    """A value that is not what its field may hold. The message begins with the field's path."""


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads``: of a name that stands twice in an object the first value would be lost. ValueError."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:40]!a} stands twice in one object")
        found[name] = value
    return found


def as_object(value: Any, where: str) -> dict[str, Any]:
    """An object; like all of these FieldError for anything else, which begins with ``where``, the field's path."""
    if not isinstance(value, dict):
        raise FieldError(f"{where} is {shown(value)}, expected an object")
    return value


def as_list(value: Any, where: str) -> list[Any]:
    """A list; a single text or object stands for a list of one."""
    if isinstance(value, (str, dict)):
        return [value]
    if not isinstance(value, list):
        raise FieldError(f"{where} is {shown(value)}, expected a list")
    return value


def as_text(value: Any, where: str) -> str:
    """Text with something in it that can be encoded; a number is its digits."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15:
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise FieldError(f"{where} is {shown(value)}, expected text")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise FieldError(f"{where} holds half a character (a lone surrogate)")
    return value


def as_flag(value: Any, where: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise FieldError(f"{where} is {shown(value)}, expected true or false")
    return value


def as_number(value: Any, where: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FieldError(f"{where} is {shown(value)}, expected a number")
    if not abs(value) < 1e15:  # nor NaN
        raise FieldError(f"{where} is {shown(value)}, expected a finite number")
    return float(value)


def as_whole(value: Any, where: str) -> int:
    """A whole number, 3.0 among them."""
    number = as_number(value, where)
    if number != int(number):
        raise FieldError(f"{where} is {shown(value)}, expected a whole number")
    return int(number)


def as_rate(value: Any, where: str) -> float:
    """Frames a second, above 0: a number, or text such as ``"25"`` and ``"30000/1001"``."""
    rate = value
    if isinstance(value, str):
        found = _RATE.fullmatch(value.strip())
        over, under = (float(part or 1) for part in found.groups()) if found else (0.0, 0.0)
        rate = over / under if under else 0.0
    rate = as_number(rate, where)
    if not 1e-6 <= rate <= 1e6:
        raise FieldError(f"{where} is {shown(value)}, expected frames a second, above 0")
    return rate


def as_evidence(value: Any, where: str) -> list[list[float]]:
    """Intervals [[start, stop], ...] in seconds; null: none."""
    intervals = [] if value is None else as_list(value, where)
    out = []
    for i, interval in enumerate(intervals):
        if not isinstance(interval, list) or len(interval) != 2:
            raise FieldError(f"{where}[{i}] is {shown(interval)}, expected [start, stop] in seconds")
        start, stop = (as_number(edge, f"{where}[{i}]") for edge in interval)
        if stop < start:
            raise FieldError(f"{where}[{i}] stops at {stop:g} before it starts at {start:g}")
        out.append([start, stop])
    return out


def shown(value: Any) -> str:
    """The value in a few characters, without walking through what may be deep or long."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, str):
        return ascii(value[:40])
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a very large number"
    return "null" if value is None else json.dumps(value)
