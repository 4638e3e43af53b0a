"""OpenVid-1M (Nan et al. 2024), on the hub as nkp37/OpenVid-1M.

    data/train/OpenVid-1M.csv      video,caption,aesthetic score,motion score,temporal consistency score,camera motion,
        frame,fps,seconds
    OpenVid_part0.zip …            the videos; some parts are cut into OpenVid_part73_partaa, …, to be joined by cat

OpenVidHD.csv lists those of them that are 1080p; it is read where the other one is not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hvlm.data.sample_fields import as_text
from hvlm.prepare.corpora import At, told

TITLE = "OpenVid-1M"
FILES = (("OpenVid-1M.csv",), ("OpenVidHD.csv",))
COLUMNS = ("video", "caption")
ROLES = ("video", "caption", "question", "id", "domain")
PROMPT = "Write a brief caption for this video."
OPTIONS = ()


def rows(row: Mapping[str, Any], at: At) -> Iterator[dict[str, Any]]:
    name = as_text(row["video"], "video")
    yield told(row["caption"], "caption", at.prompt, video=name, id=name, domain="openvid")
