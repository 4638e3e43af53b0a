"""FineVideo (Farré et al. 2024), on the hub as HuggingFaceFV/finevideo: videos inside parquet files.

    data/train-00000-of-01357.parquet      mp4: bytes, json: {content_fine_category, content_metadata: {description,
        fps, qAndA: [{answer, question}], scenes, storylines, title, …}, content_parent_category, duration_seconds,
        original_video_filename, youtube_title, …}

The description is the video's caption, each pair of ``qAndA`` a question. Scenes are described for people, with times
of a clock, and are not taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from hvlm.data.sample_fields import FieldError, as_list, as_object, as_text
from hvlm.prepare.corpora import At, told
from hvlm.prepare.formats import Blob

TITLE = "FineVideo"
FILES = (("train-*.parquet",), ("*.parquet",))
COLUMNS = ("mp4", "json")
ROLES = ("video", "caption", "question", "domain", "id")
PROMPT = "Describe this video."
OPTIONS = ()


def rows(row: Mapping[str, Any], at: At) -> Iterator[dict[str, Any]]:
    video, value = row["mp4"], row["json"]
    if not isinstance(video, Blob):
        raise FieldError("mp4 holds no bytes")
    try:
        value = as_object(json.loads(value) if isinstance(value, str) else value, "json")
    except (ValueError, RecursionError) as error:
        raise FieldError(f"json is not valid JSON ({error})") from error
    of = as_object(value.get("content_metadata"), "json.content_metadata")
    name = value.get("original_video_filename") or value.get("original_json_filename")
    video = replace(video, name=str(name).replace(".json", ".mp4")) if name else video
    found = told(of.get("description"), "json.content_metadata.description", at.prompt, video=video)
    pairs = [as_object(pair, f"qAndA[{i}]") for i, pair in enumerate(as_list(of.get("qAndA") or [], "qAndA"))]
    asked = [
        {"question": as_text(p.get("question"), "qAndA.question"), "answer": as_text(p.get("answer"), "qAndA.answer"),
         "task": "question"}
        for p in pairs
    ]  # fmt: skip
    yield found | {"question": [*(found["question"] or []), *asked], "domain": "finevideo", "id": name}
