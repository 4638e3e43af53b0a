"""A conversation in a sample's JSON: OpenAI's messages, LLaVA's and ShareGPT's conversations, in one form."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from hvlm.data.sample_fields import FieldError, as_list, as_object, as_text, shown
from hvlm.prompts import DESCRIBE

ROLES = {
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
# Where LLaVA's texts say that the picture or the video stands; here ``order=`` says that. The spaces before it are
# looked at from where they begin only: from each of them, a long run would take the square of its length.
_MARKER = re.compile(r"(?:(?<![ \t])[ \t]++)?\n?<(?:image|video)>\n?[ \t]*")
MAX_TURNS = 1000


class Conversation(NamedTuple):
    """prompt, answer: the last exchange. turns: the earlier ones, (question, answer). system: the text of the system
    turn, "" without one. rejected: a worse answer to the last question. name, task: of one that stands in an object
    with ``id`` and ``task``, else ""."""

    prompt: str
    answer: str
    turns: tuple[tuple[str, str], ...] = ()
    system: str = ""
    rejected: str | None = None
    name: str = ""
    task: str = ""


def conversation(value: Any, where: str) -> Conversation:
    """The turns that stand in the field ``where``.

    Each is an object with a role (``role``, ``from``) and a text (``content``, ``value``); the text may be a list of
    parts, of which those of type ``text`` count. Users and assistants take turns, and the user begins. A last question
    without an answer is left out.

    Raises:
        FieldError: names the turn.
    """
    system: list[str] = []
    turns: list[str] = []
    items = as_list(value, where)
    if len(items) > MAX_TURNS:
        raise FieldError(f"{where} has {len(items):,} turns, at most {MAX_TURNS:,} are read")
    for i, item in enumerate(items):
        here = f"{where}[{i}]"
        role, text = _turn(as_object(item, here), here)
        if role == "system":
            if turns:
                raise FieldError(f"{here} is a system turn; it must stand before the first question")
            system.append(as_text(text, f"{here}{_named(item, _TEXTS)}"))
            continue
        expected = "assistant" if len(turns) % 2 else "user"
        if role != expected:
            raise FieldError(
                f"{here} is of the {role}, expected of the {expected}: users and assistants take turns, and the user "
                "begins"
            )
        if role == "user":
            if _MARKER.search(text):
                text = _MARKER.sub(lambda found: "\n" if "\n" in found.group() else " ", text).strip()
            text = text or (DESCRIBE if not turns else text)
        turns.append(as_text(text, f"{here}{_named(item, _TEXTS)}"))
    exchanges = list(zip(turns[::2], turns[1::2], strict=False))
    if not exchanges:
        raise FieldError(f"{where}: no {'assistant' if turns else 'user'} among its {len(items)} turns")
    return Conversation(*exchanges[-1], tuple(exchanges[:-1]), "\n\n".join(system))


_ROLE, _TEXTS = ("role", "from"), ("content", "value")


def _named(item: dict[str, Any], names: tuple[str, ...]) -> str:
    return "." + next((name for name in names if item.get(name) is not None), names[0])


def _turn(item: dict[str, Any], where: str) -> tuple[str, str]:
    """(role, text as it stands)."""
    name = _named(item, _ROLE)
    said = as_text(item.get(name[1:]), f"{where}{name}")
    role = ROLES.get(said.strip().lower())
    if role is None:
        raise FieldError(f"{where}{name} is {shown(said)}, expected one of {', '.join(ROLES)}")
    name = _named(item, _TEXTS)
    text = item.get(name[1:])
    if isinstance(text, list):
        text = "\n".join(
            as_text(part.get("text"), f"{where}{name}[{i}].text")
            for i, part in enumerate(as_object(part, f"{where}{name}[{i}]") for i, part in enumerate(text))
            if part.get("type", "text") == "text"
        )
        return role, text
    return role, text if text == "" else as_text(text, f"{where}{name}")
