"""Free text and names on the command line: strings, whatever they look like.

Hydra reads a value as its own language: ``run=12e4567`` is the number infinity, ``run=2024_01_15`` is 20240115, a comma
begins a sweep, and a quote or an é ends at its grammar. ``as_given`` puts quotes around what belongs to a setting that
holds text, so that it arrives as it was typed; what is quoted already, ``null`` and (but for free text)
``${...}`` keep their meaning.
"""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import ListConfig, OmegaConf

from hvlm.config.rooms import ROOMS
from hvlm.config.settings import FREE_TEXT, ROOM_TEXTS, SECTIONS, RootConfig
from hvlm.errors import UserError

OVERRIDE = re.compile(r"(?P<sign>\+{0,2}|~)(?P<key>[\w./@:-]+)=(?P<value>.*)", re.DOTALL)
GROUPS = frozenset({*ROOMS, *SECTIONS, "debug", "experiment", "launcher", "sweep"} - {"ask"})
NO_WORD = re.compile(r"true|false|null|[+-]?[\d.]+(e[+-]?\d+)?", re.IGNORECASE)
SWEEP_FUNCTION = re.compile(r"(choice|glob|range|interval|shuffle|sort|tag)\(.*\)", re.DOTALL)


def as_given(override: str, sweep: bool = False) -> str:
    """An override in Hydra's language, with the value that was typed where the setting holds text.

    Args:
        override: ``key=value`` as it stands on the command line; anything else is returned as it is.
        sweep: whether the command runs a sweep (-m). Then names may have several values, separated by commas; free
            text (a question) never has.

    Raises:
        UserError: it holds a NUL, which no name, path or text of a setting can.
    """
    if "\0" in override:
        raise UserError(f"{override!r}: holds a NUL character (\\x00), which no setting can; leave it out")
    match = OVERRIDE.fullmatch(override)
    if match is None or match["key"].startswith("hydra."):
        return override
    key, value = match["key"], match["value"]
    head = override[: len(override) - len(value)]
    if key in GROUPS and NO_WORD.fullmatch(value):  # Hydra's own message is a traceback
        return head + quoted(value)
    if key not in texts() | lists_of_texts():
        # Not text, as far as is known here: only what Hydra cannot read at all, for the type to be checked later.
        return override if _parsed(override) is not None or not value else head + quoted(value)
    if value.lower() == "null" or _is_quoted(value):
        return override
    if key in lists_of_texts() and value.startswith("[") and value.endswith("]"):
        items = [item.strip() for item in value[1:-1].split(",")]
        plain = not re.search(r"""['"\[\]{}()]""", value[1:-1])
        return head + f"[{','.join(map(quoted, items))}]" if plain and value[1:-1].strip() else override
    if sweep and key not in FREE_TEXT:
        if SWEEP_FUNCTION.fullmatch(value):
            return override
        return head + ",".join(v if _is_quoted(v) else quoted(v) for v in value.split(","))
    return head + quoted(_literal(value) if key in FREE_TEXT else value)


def quoted(text: str) -> str:
    """``text`` as a string of Hydra's language, in single quotes."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def as_written(overrides: Sequence[str]) -> list[str]:
    """Hydra's list of a command's overrides, word for word: read through OmegaConf, ``\\${`` would lose its backslash
    and ``${...}`` would be resolved."""
    return cast("list[str]", OmegaConf.to_container(cast("ListConfig", overrides), resolve=False))


def key_of(override: str) -> str:
    """The dotted key of an override, without ``+`` or ``~``."""
    return override.split("=", 1)[0].lstrip("+~")


def text_of(override: str) -> str:
    """The value of an override, without the quotes that may stand around it: ``demo`` for ``run='demo'``."""
    value = override.split("=", 1)[1]
    parsed = _parsed(override)
    return parsed._value.text if parsed is not None and isinstance(parsed._value, QuotedString) else value


@functools.cache
def texts() -> frozenset[str]:
    """Dotted keys of the settings that hold one text."""
    found = {f.name for f in fields(RootConfig) if _holds_text(RootConfig, f.name)}
    for name, section in SECTIONS.items():
        found |= {f"{name}.{f.name}" for f in fields(section) if _holds_text(section, f.name)}
    return frozenset(found | ROOM_TEXTS["one"] | ROOM_TEXTS["either"])


@functools.cache
def lists_of_texts() -> frozenset[str]:
    """Dotted keys of the settings that hold a list of texts."""
    found = {
        f"{prefix}{f.name}"
        for prefix, section in {"": RootConfig, **{f"{name}.": s for name, s in SECTIONS.items()}}.items()
        for f in fields(section)
        if list[str] in options(typing.get_type_hints(section)[f.name])
    }
    return frozenset(found | ROOM_TEXTS["list"] | ROOM_TEXTS["either"])


def options(annotation: Any) -> Sequence[Any]:
    """The members of a union, without None; the annotation itself where it is none."""
    members = typing.get_args(annotation) if type(None) in typing.get_args(annotation) else (annotation,)
    return [m for m in members if m is not type(None)]


def _holds_text(section: type, name: str) -> bool:
    return list(options(typing.get_type_hints(section)[name])) == [str]


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except (HydraException, ValueError):  # of a number with thousands of digits, too
        return None


def _is_quoted(value: str) -> bool:
    if value[:1] not in ("'", '"'):
        return False
    parsed = _parsed(f"key={value}")
    return parsed is not None and isinstance(parsed._value, QuotedString)


def _literal(text: str) -> str:
    """``text`` so that OmegaConf finds no interpolation in it."""
    return re.sub(r"(?<!\\)(\\*+)\$\{", lambda match: match[1] * 2 + r"\${", text)
