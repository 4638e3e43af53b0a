"""Captions in a file beside a folder of videos: JSON Lines, JSON or CSV.

    {"video": "a/1.mp4", "captions": ["a man cuts bread", "bread is cut"]}

``video`` and ``caption`` or ``captions`` are needed; ``prompt`` (else it is asked to describe), ``start`` and ``end``
(seconds: the part of the video that is described) and ``fps`` (of a folder of stills) may be there. Several rows about
one video with one prompt are references of one caption. In CSV ``captions`` is a JSON list or has ``|`` between its
parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvlm.data.question_file import Row, listed, rows_of, seconds_of, section_of, text_of
from hvlm.prompts import DESCRIBE


def read_captions(path: Path, setting: str) -> list[Row]:
    """All rows of the file, each with a question whose ``answers`` are the references.

    Args:
        path: of the file; its ending says the form (.jsonl, .json, .csv, .tsv).
        setting: whose value the path is, for messages.

    Raises:
        UserError: the file cannot be read, or some rows are malformed; the first of them are named by their number.
    """
    return rows_of(path, setting, _row, "caption", ("video", "caption"))


def _row(number: int, value: Any) -> Row:
    """Raises ValueError, which goes on after the row's number."""
    if not isinstance(value, dict):
        raise ValueError("is no object; expected one with video, caption")
    value = {name: field for name, field in value.items() if field is not None}
    name = next((name for name in ("captions", "caption") if name in value), None)
    if missing := [needed for needed, there in (("video", "video" in value), ("caption", name)) if not there]:
        found = ", ".join(map(str, list(value)[:12])) or "nothing"
        raise ValueError(f"lacks {', '.join(missing)}; it has {found}, expected video, and caption or captions")
    assert name is not None
    given = listed(value[name]) if name == "captions" and isinstance(value[name], str) else value[name]
    given = given if isinstance(given, list) else [given]
    if not given:
        raise ValueError(f"has no caption in {name}")
    question = {"id": f"row{number}", "question": text_of(value, "prompt") if "prompt" in value else DESCRIBE}
    question |= {"answers": [text_of({name: one}, name) for one in given]}
    return Row(number, question, text_of(value, "video"), section_of(value), seconds_of(value, "fps"))
