"""Conversations of every kind (LLaVA, ShareGPT, messages with parts) → turns {role, content} and the files in them."""

from __future__ import annotations

import json
import re
from typing import Any

from hvlm.prepare.problems import Problem

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "bot": "assistant", "chatgpt": "assistant", "system": "system",
}  # fmt: skip
MARKER = re.compile(r"[ \t]*<(?:image|video|im_start_image|video_placeholder)>[ \t]*\n?", re.IGNORECASE)
MEDIA = ("video", "image", "video_url", "image_url", "input_image")
Turn = dict[str, str]


def turns_of(value: Any) -> tuple[list[Turn], list[str], bool]:
    """(turns, media named inside them, whether a marker stands in a text).

    Raises Problem: not a conversation that begins with the user (after an optional system turn), alternates, and ends
    with an answer.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Problem("not a conversation", f"not valid JSON ({error})") from error
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):  # columns of turns
        lengths = {len(v) for v in value.values()}
        value = (
            [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
            if len(lengths) == 1
            else value
        )
    if not isinstance(value, list) or not value:
        raise Problem("not a conversation", "expected a list of turns")
    turns: list[Turn] = []
    media: list[str] = []
    marked = False
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise Problem("not a conversation", f"turn {i + 1} is no object")
        said = item.get("role", item.get("from"))
        role = ROLES.get(str(said).strip().lower())
        if role is None:
            raise Problem("not a conversation", f"turn {i + 1} is by {str(said)[:40]!r}; known: {', '.join(ROLES)}")
        text, inside = _content(item.get("content", item.get("value")), i)
        media += inside
        marked = marked or bool(MARKER.search(text))
        text = MARKER.sub("", text).strip()
        if not text:
            raise Problem("empty text", f"turn {i + 1} ({said}) says nothing")
        turns.append({"role": role, "content": text})
    _in_turn([turn["role"] for turn in turns])
    return turns, media, marked


def _in_turn(roles: list[str]) -> None:
    said = roles[1:] if roles[0] == "system" else roles
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(said))]
    if said != expected or not said:
        raise Problem(
            "not a conversation", f"user and assistant must take turns, the user first; found {', '.join(roles[:8])}"
        )
    if len(said) % 2:
        raise Problem("not a conversation", "the last turn is the user's; expected an answer to it")


def _content(value: Any, turn: int) -> tuple[str, list[str]]:
    """(text, media) of a turn: text, or a list of parts."""
    if isinstance(value, str):
        return value, []
    if not isinstance(value, list):
        raise Problem("empty text" if value is None else "not a conversation", f"turn {turn + 1} holds no text")
    texts, media = [], []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text"):
            texts.append(str(part.get("text") or ""))
        elif kind in MEDIA:
            named = part.get(kind, part.get("path"))
            named = named.get("url", named.get("path")) if isinstance(named, dict) else named
            if named:
                media.append(str(named))
        else:
            raise Problem("not a conversation", f"turn {turn + 1} has a part of type {str(kind)[:40]!r}")
    return "\n".join(text for text in texts if text), media
