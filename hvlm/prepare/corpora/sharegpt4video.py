"""ShareGPT4Video (Chen et al. 2024), on the hub as ShareGPT4Video/ShareGPT4Video.

    sharegpt4video_40k.jsonl      {"video_id", "video_path": "panda/3TZq4bZm7zI.mp4", "timestamp", "keyframe",
        "captions": [{"idx": "0", "content": "..."}, …, {"idx": "-1", "content": "..."}],
        "zip_folder": "panda_videos_1.zip"}
    zip_folder/panda/panda_videos_1.zip …

The caption "-1" is that of the whole video; the others tell how each key frame differs from the one before it, and say
little by themselves: they are not taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hvlm.data.sample_fields import FieldError, as_list, as_object, as_text
from hvlm.prepare.corpora import At, told

TITLE = "ShareGPT4Video"
FILES = (("sharegpt4video_*.jsonl", "share-captioner-video*.jsonl"), ("*.jsonl",))
COLUMNS = ("video_id", "captions")
ROLES = ("video", "caption", "question", "id", "domain")
PROMPT = "Describe what happens in this video in detail."
OPTIONS = ()
WHOLE = "-1"


def rows(row: Mapping[str, Any], at: At) -> Iterator[dict[str, Any]]:
    name = as_text(row.get("video_id"), "video_id")
    items = [as_object(item, f"captions[{i}]") for i, item in enumerate(as_list(row.get("captions"), "captions"))]
    whole = [item.get("content") for item in items if str(item.get("idx")) == WHOLE]
    if not whole:
        raise FieldError(f"captions: none of {len(items)} is of the whole video (idx {WHOLE})")
    path = as_text(row.get("video_path") or f"{name}.mp4", "video_path")
    video = at.first(path, f"videos/{path}", f"zip_folder/{path}")
    yield told(whole[0], f"captions, idx {WHOLE}", at.prompt, video=video, id=name, domain="sharegpt4video")
