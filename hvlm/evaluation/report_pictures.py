"""What a run drew while it trained, as parts of a page: where it looked, what it merged, which heads it needs."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from hvlm.evaluation.html import image
from hvlm.evaluation.report_data import stage_pictures
from hvlm.viz.gate_map import PICTURE as GATES

MOST = 6  # pictures of a kind


def gaze(run_dir: Path, most: int = MOST) -> list[str]:
    """Where a foveated connector looked, in the newest pictures of the last stage that drew some."""
    folder, lines = stage_pictures(run_dir, "gaze")
    if not lines:
        return []
    parts = ["<h2>Where it looked</h2>"]
    parts.append(
        f'<p class="small">{_when(folder, lines[0])}: the frames, below them lit by the attention of the query (mean '
        "over layers, then layer by layer). The second picture is the way of its middle, from black to white.</p>"
    )
    for line in lines[:most]:
        path = image(folder, line["gaze_path"], "way") if line.get("gaze_path") else ""
        parts.append(_figure(line, f"{image(folder, line['gaze'])}{path}"))
    return parts


def merging(run_dir: Path, most: int = MOST) -> list[str]:
    """Which patches a merger made one token of, and how many tokens each frame kept."""
    folder, lines = stage_pictures(run_dir, "merged")
    if not lines:
        return []
    parts = ["<h2>What was merged</h2>"]
    parts.append(
        f'<p class="small">{_when(folder, lines[0])}: the frames, below them in the colour of the token that each '
        "patch went into; then the tokens of every frame, with their mean.</p>"
    )
    for line in lines[:most]:
        budget = image(folder, line["budget"]) if line.get("budget") else ""
        parts.append(_figure(line, f"{image(folder, line['merged'])}{budget}"))
    return parts


def gates(stage: Path) -> list[str]:
    """Of a stage that learned which KV heads need everything."""
    if not (stage / GATES).exists():
        return []
    return [f"<p>Which KV heads need everything that was read:</p>{image(stage, GATES)}"]


def _when(folder: Path, line: Mapping[str, Any]) -> str:
    split = escape(str(line.get("split", "")))
    return f"After step {line['step']} of {escape(folder.parent.name)}, clips of the split {split}"


def _figure(line: Mapping[str, Any], pictures: str) -> str:
    return f"<figure><p>{_said(line)}</p>{pictures}</figure>"


def _said(line: Mapping[str, Any]) -> str:
    return escape(f"{line['question']} — answered {line['prediction']!r}, right is {line['answer']!r}")
