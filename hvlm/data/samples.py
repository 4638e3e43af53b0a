"""The members of a sample → its JSON in the one form that views read, and its frames.

Besides hvlm's own JSON (see ``_views.py`` for what is read from it) this understands what fVLM's shards hold: ``user``
and ``assistant``, ``user``, ``chosen_assistant`` and ``rejected_assistant``, or ``caption`` (or a ``.txt`` member),
with the pictures as ``mp4``/``webm``, as ``000.jpg``, ``001.jpg``, … or as one ``jpg``/``png``.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from hvlm.data.decode import VideoDecodeError, decode, decode_images
from hvlm.data.quarantine import SampleError
from hvlm.image import IMAGE_FRAMES

DESCRIBE = "Describe this."  # asked when a caption comes without a prompt
_OWN = ("captions", "questions", "objects", "messages")


def parse(members: dict[str, bytes], key: str, domain: str) -> dict[str, Any]:
    """The sample's JSON; foreign forms become {"captions": [...], "questions": [...]}. Raises SampleError."""
    if "json" not in members:
        if "txt" not in members:
            raise SampleError(key, "json", f"missing; the sample has {', '.join(sorted(members)) or 'no members'}")
        sample: dict[str, Any] = {"caption": _text(members["txt"], key, "txt").strip()}
    else:
        try:
            sample = json.loads(_text(members["json"], key, "json"))
        except ValueError as error:
            raise SampleError(key, "json", f"not valid JSON ({error})") from error
        if not isinstance(sample, dict):
            raise SampleError(key, "json", f"holds a {type(sample).__name__}, expected an object")
    sample = {"key": key, "domain": domain} | sample
    if any(name in sample for name in _OWN):
        return sample
    user = sample.get("user") or DESCRIBE
    if "caption" in sample:
        sample["captions"] = [{"prompt": user, "text": sample["caption"]}]
    elif "assistant" in sample or "chosen_assistant" in sample:
        answer = sample.get("assistant", sample.get("chosen_assistant"))
        question = {"id": "q0", "task": sample.get("source", "question"), "question": user, "answer": answer}
        if "rejected_assistant" in sample:
            question["rejected"] = sample["rejected_assistant"]
        sample["captions"] = [{"prompt": user, "text": answer}]
        sample["questions"] = [question]
    else:
        raise SampleError(key, "json", "no captions, questions, messages, caption or assistant in it")
    return sample


def frames(
    members: dict[str, bytes], sample: dict[str, Any], num_frames: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [T, 3, H, W] and float32 [T] seconds. Stills are ``fps`` (of the JSON, default 1) a second; a single one is
    shown ``IMAGE_FRAMES`` times (or ``num_frames``, if that is less), as fVLM was trained."""
    key = sample["key"]
    for field in ("mp4", "webm"):
        if field in members:
            return decode(members[field], num_frames, name=key, size=size)
    stills = sorted(field for field in members if field.rsplit(".", 1)[-1] in ("jpg", "jpeg", "png"))
    if not stills:
        raise VideoDecodeError(key, "mp4", f"no video or image; the sample has {', '.join(sorted(members))}")
    if len(stills) == 1:
        stills = stills * min(IMAGE_FRAMES, num_frames)
    fps = float(sample.get("fps", 1.0))
    return decode_images([members[field] for field in stills], num_frames, name=key, fps=fps, size=size)


def _text(data: bytes, key: str, field: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SampleError(key, field, f"not UTF-8 ({error})") from error
