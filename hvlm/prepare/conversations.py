"""Conversations as tables hold them → messages as a sample's JSON holds them, and the files that are named in them."""

from __future__ import annotations

import json
import re
from typing import Any

from hvlm.data.conversation import Conversation, conversation
from hvlm.data.sample_fields import FieldError
from hvlm.prepare.problems import Problem

MARKER = re.compile(r"<(?:image|video)>")
MEDIA = ("video", "image", "video_url", "image_url", "input_image", "input_video")


def read(value: Any) -> tuple[Conversation, list[str], bool]:
    """(conversation, media named in its parts, whether a text says that something is shown). Raises Problem."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Problem("not a conversation", f"not valid JSON ({error})") from error
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):  # a column of each field
        value = [dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)]
    if not isinstance(value, list):
        raise Problem("not a conversation", "expected a list of turns")
    texts, media = [], []
    for turn in value:
        said = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        for part in said if isinstance(said, list) else [said]:
            if isinstance(part, str):
                texts.append(part)
            elif isinstance(part, dict) and part.get("type") in MEDIA:
                media += _named(part)
            elif isinstance(part, dict):
                texts.append(str(part.get("text") or ""))
    try:
        return conversation(value, "conversation"), media, any(MARKER.search(text) for text in texts)
    except FieldError as error:
        raise Problem("not a conversation", str(error)) from error


def messages(said: Conversation) -> list[dict[str, str]]:
    """The conversation in one form, without parts and markers."""
    turns = [("system", said.system)] if said.system else []
    for question, answer in (*said.turns, (said.prompt, said.answer)):
        turns += [("user", question), ("assistant", answer)]
    return [{"role": role, "content": text} for role, text in turns]


def _named(part: dict[str, Any]) -> list[str]:
    named = part.get(part["type"], part.get("path"))
    named = named.get("url", named.get("path")) if isinstance(named, dict) else named
    return [str(named)] if named else []
