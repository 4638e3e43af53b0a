"""ActivityNet Captions (Krishna et al. 2017).

    train.json, val_1.json, val_2.json      {"v_QOlSCBRmfWY": {"duration": 82.73, "timestamps": [[0.83, 19.86], …],
        "sentences": ["A young woman is seen standing …", …]}, …}

The sentences of a video together are its caption (a paragraph). With ``moments=true`` each sentence is the caption of
its own part of the video, a clip of its own with a copy of the file. val_1 and val_2 say two paragraphs of the same
videos; both are val. Videos are called ``v_QOlSCBRmfWY.mp4`` (or .mkv, .webm).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hvlm.data.published import loaded
from hvlm.data.sample_fields import FieldError, as_evidence, as_list, as_object, as_text
from hvlm.data.shard_folder import split_of
from hvlm.errors import UserError
from hvlm.prepare.corpora import At, told
from hvlm.prepare.formats import Malformed, Row

TITLE = "ActivityNet Captions"
FILES = (("train.json", "val_1.json", "val_2.json"), ("*train*.json", "*val*.json"))
COLUMNS = ()
ROLES = ("video", "caption", "question", "domain", "split", "start", "end")
PROMPT = "Describe what happens in this video in detail."
OPTIONS = ("moments",)


class Table:
    """The file's videos, one a row, with ``name``."""

    def __init__(self, path: Path) -> None:
        self.path, self.about = path, TITLE
        self.columns = ["name", "duration", "timestamps", "sentences"]
        value = loaded(path)
        if not isinstance(value, dict) or not value:
            raise UserError(f"{path}: not as {TITLE} publishes it: expected an object of videos by their names")
        self._videos = value

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        for number, (name, video) in enumerate(self._videos.items(), start=1):
            good = isinstance(video, dict)
            yield self.path.name, number, {"name": name, **video} if good else Malformed(f"{name}: not an object")


def rows(row: Mapping[str, Any], at: At) -> Iterator[dict[str, Any]]:
    video = as_object(row, "it")
    name = as_text(video["name"], "name")
    sentences = [
        as_text(s, f"sentences[{i}]").strip() for i, s in enumerate(as_list(video.get("sentences"), "sentences"))
    ]
    times = as_evidence(video.get("timestamps"), "timestamps")
    if not sentences or len(times) != len(sentences):
        raise FieldError(f"{name}: {len(sentences)} sentences, {len(times)} timestamps")
    stem = at.file.stem.replace("_1", "").replace("_2", "")
    where = {"video": name, "domain": "activitynet", "split": split_of(stem)}
    if not at.settings.moments:
        yield told(" ".join(sentences), "sentences", at.prompt, **where)
        return
    for sentence, (start, end) in zip(sentences, times, strict=True):
        yield told(sentence, "sentences", at.prompt, start=start, end=end, **where)
