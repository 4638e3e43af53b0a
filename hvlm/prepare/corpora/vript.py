"""Vript (Yang et al. 2024), on the hub as Mutonix/Vript: a caption of every scene.

    vript_captions/{video_id}_caption.json (of vript_long_videos_captions.zip)      {"meta": {"video_id", "video_title",
        "num_clips", "integrity"}, "data": {"339dXVNQXac-Scene-001": {"video_id", "clip_id", "video_title", "caption":
        {"shot_type", "camera_movement", "content", "scene_title"}, "voiceover": ["..."]}}}
    vript_captions/vript_{long,short}_videos_captions.jsonl      the same, an object a line, or a scene a line
    vript_long_videos_clips/…/339dXVNQXac/339dXVNQXac-Scene-001.mp4

A scene is a clip with its ``content`` as the caption; scenes of one video share their split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hvlm.data.sample_fields import as_object, as_text
from hvlm.prepare.corpora import At, told
from hvlm.prepare.formats import Malformed, Row, of_file

TITLE = "Vript"
FILES = (("*_captions.jsonl",), ("*_caption.json",))
COLUMNS = ()
ROLES = ("video", "caption", "question", "id", "domain", "source")
PROMPT = "Provide a detailed narration of what happens in this video."
OPTIONS = ()
FOLDERS = ("", "vript_long_videos_clips/", "vript_short_videos_clips/")


class Table:
    """A file of scenes: JSON Lines, or one object."""

    def __init__(self, path: Path) -> None:
        self.path, self.about = path, TITLE
        self._lines = None if path.suffix.lower() == ".json" else of_file(path)
        self.columns: list[str] = []

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        if self._lines is not None:
            yield from self._lines(self.path).rows()
            return
        try:
            value = json.loads(self.path.read_bytes().decode("utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            yield self.path.name, 1, Malformed(f"not valid JSON ({error})")
            return
        yield self.path.name, 1, value if isinstance(value, dict) else Malformed("not an object")


def rows(row: Mapping[str, Any], at: At) -> Iterator[dict[str, Any]]:
    scenes = as_object(row["data"], "data") if "data" in row else {"": row}
    for key, scene in scenes.items():
        scene = as_object(scene, f"data.{key}")
        name = as_text(scene.get("clip_id") or key, "clip_id")
        film = str(scene.get("video_id") or name.rpartition("-Scene-")[0] or name)
        said = scene.get("caption")
        text = as_object(said, f"{name}.caption").get("content") if not isinstance(said, str) else said
        paths = [f"{folder}{film}/{name}.mp4" for folder in FOLDERS]
        more = {"video": at.first(*paths), "id": name, "source": film, "domain": "vript"}
        yield told(text, f"{name}.caption.content", at.prompt, **more)
