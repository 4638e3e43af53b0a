"""What commands share: usage when asked, mistakes in one line, and ``key=value`` words as checked settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from hvlm.console import error_line
from hvlm.errors import UserError
from hvlm.io.foreign import said

Settings = TypeVar("Settings")


def command(argv: Sequence[str], usage: str, work: Callable[[Sequence[str]], None]) -> None:
    """Print the usage where it is asked for, else do the work with these words; what stops it is one line."""
    if set(argv) & {"-h", "--help"}:
        print(usage, end="")
        return
    with error_line():
        work(argv)


def pairs(words: Sequence[str], bare: Callable[[str], tuple[str, str]]) -> list[tuple[str, str]]:
    """``key=value`` words as they were typed. bare: what a word without a key means, or its UserError."""
    found = []
    for word in words:
        key, equals, text = word.partition("=")
        found.append((key, text) if equals and key.isidentifier() else bare(word))
    return found


def once(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """``pairs`` by their keys. UserError where one is given twice."""
    given: dict[str, str] = {}
    for key, text in found:
        if key in given:
            raise UserError(f"{key} is given twice: {given[key]} and {text}")
        given[key] = text
    return given


def about_runs(words: Sequence[str], settings: type[Settings], command: str) -> Settings:
    """Settings of a class whose field ``runs`` is a list of folders: ``runs=A,B``, ``runs=[A,B]``, or words without a
    key. Paths and names are what was typed, whatever they look like.

    Args:
        words: of the command line.
        settings: a dataclass.
        command: its name, for messages.

    Raises:
        UserError: an unknown key, a wrong type, or no run.
    """
    from hvlm.config.schema import arguments

    found = pairs(words, lambda word: ("", word))
    runs = [name for key, text in found if key in ("", "runs") for name in (_listed(text) if key else [text])]
    given: dict[str, Any] = dict(once((key, text) for key, text in found if key not in ("", "runs")))
    for key in given:
        if isinstance(getattr(settings, key, None), bool):
            given[key] = said(given[key] or "null")
    made = settings(**arguments({"runs": runs, **given}, settings, ""))  # a misspelt runs= is named as such
    if not runs:
        raise UserError(f"runs= is missing: hvlm {command} runs=runs/a,runs/b names runs, a sweep, or a folder of runs")
    return made


def _listed(text: str) -> list[str]:
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [name for name in (part.strip().strip("'\"") for part in inner.split(",")) if name]
