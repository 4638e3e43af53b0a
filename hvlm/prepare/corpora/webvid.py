"""WebVid (Bain et al. 2021): a CSV of links that no longer lead anywhere, and the videos that somebody kept.

    results_10M_train.csv, results_2M_val.csv      videoid,contentUrl,duration,page_dir,name      (name: the caption)
    videos/{page_dir}/{videoid}.mp4                as its own downloader names them

contentUrl is never followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hvlm.data.sample_fields import as_text
from hvlm.data.shard_folder import split_of
from hvlm.prepare.corpora import At, told

TITLE = "WebVid"
FILES = (("results_*.csv",), ("*webvid*.csv", "*WebVid*.csv"), ("*.csv",))
COLUMNS = ("videoid", "name")
ROLES = ("video", "caption", "question", "id", "domain", "split")
PROMPT = "What would be the WebVid caption for this video?"
OPTIONS = ()


def rows(row: Mapping[str, Any], at: At) -> Iterator[dict[str, Any]]:
    name = as_text(row["videoid"], "videoid").strip()
    folder = str(row.get("page_dir") or "").strip()
    paths = [f"{start}{folder}/{name}.mp4" for start in ("", "videos/")] if folder else []
    video = at.first(*paths, f"{name}.mp4", f"videos/{name}.mp4")
    more = {"id": name, "domain": "webvid", "split": split_of(at.file.stem)}
    yield told(row["name"], "name", at.prompt, video=video, **more)
