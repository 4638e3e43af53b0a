"""LLaVA-Video-178K (Zhang et al. 2024), on the hub as lmms-lab/LLaVA-Video-178K.

    0_30_s_academic_v0_1/…_cap_processed.json, …_oe_…_processed.json, …_mc_…_processed.json      [{"id",
        "conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", "value"}],
        "data_source": "0_30_s_academic_v0_1", "video": "academic_source/Charades/0A8CF.mp4"}]

Video paths begin in the folder of their subset, into which its archives are extracted. The marker of the video is
<image>, in some copies <video>; both are taken out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hvlm.data.sample_fields import FieldError, as_text
from hvlm.prepare.corpora import At

TITLE = "LLaVA-Video-178K"
FILES = (("*_cap_*.json", "*_oe_*.json", "*_mc_*.json", "*_cap_*.jsonl", "*_oe_*.jsonl", "*_mc_*.jsonl"), ("*.json",))
COLUMNS = ("video", "conversations")
ROLES = ("video", "conversations", "domain", "task")
PROMPT = None
OPTIONS = ()
_KINDS = {"cap": "caption", "oe": "open_ended", "mc": "multi_choice"}


def rows(row: Mapping[str, Any], at: At) -> Iterator[dict[str, Any]]:
    if row.get("conversations") is None:
        raise FieldError("conversations is missing")
    name = as_text(row.get("video"), "video")
    subset = str(row.get("data_source") or at.file.parent.name)
    here = at.file.parent.relative_to(at.root).as_posix() if at.file.parent.is_relative_to(at.root) else "."
    video = at.first(name, f"{subset}/{name}", f"{here}/{name}")
    task = next((kind for word, kind in _KINDS.items() if f"_{word}_" in at.file.name), "question")
    yield {"video": video, "conversations": row["conversations"], "domain": "llava_video", "task": task}
