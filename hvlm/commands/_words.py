"""``key=value`` words of a command that is about runs, as its checked settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import yaml

from hvlm.config.schema import arguments
from hvlm.errors import UserError

Settings = TypeVar("Settings")


def read(words: Sequence[str], settings: type[Settings], command: str) -> Settings:
    """Settings of a class whose field ``runs`` is a list of folders: ``runs=A,B``, ``runs=[A,B]``, or words without a
    key. Paths and names are what was typed, whatever they look like.

    Args:
        words: of the command line.
        settings: a dataclass.
        command: its name, for messages.

    Raises:
        UserError: an unknown key, a wrong type, or no run.
    """
    given: dict[str, Any] = {}
    runs: list[str] = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            runs.append(word)
        elif key == "runs":
            inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
            runs += [name for name in (part.strip().strip("'\"") for part in inner.split(",")) if name]
        elif key in given:
            raise UserError(f"{key} is given twice: {given[key]} and {text}")
        else:
            given[key] = yaml.safe_load(text or "null") if isinstance(getattr(settings, key, None), bool) else text
    found = settings(**arguments({"runs": runs, **given}, settings, ""))  # a misspelt runs= is named as such
    if not runs:
        raise UserError(f"runs= is missing: hvlm {command} runs=runs/a,runs/b names runs, a sweep, or a folder of runs")
    return found
