"""Subtitles beside videos: SubRip files, as Video-MME publishes them, with markup in their lines."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_TIME = r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})"
_SPAN = re.compile(rf"{_TIME}\s*-->\s*{_TIME}")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


class Line(NamedTuple):
    """A text that is shown from ``start`` to ``end``, in seconds."""

    start: float
    end: float
    text: str


def read_subtitles(path: Path) -> list[Line]:
    """The lines of a .srt file, without markup and entities; [] where there is no such file."""
    if not path.is_file():
        return []
    found = []
    text = path.read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n")
    for block in re.split(r"\n\s*\n", text):
        if not (span := _SPAN.search(block)):
            continue
        h, m, s, f, h2, m2, s2, f2 = span.groups()
        start = int(h) * 3600 + int(m) * 60 + int(s) + int(f.ljust(3, "0")) / 1000
        end = int(h2) * 3600 + int(m2) * 60 + int(s2) + int(f2.ljust(3, "0")) / 1000
        said = " ".join(html.unescape(_MARKUP.sub("", block[span.end() :])).split())
        if said:
            found.append(Line(start, end, said))
    return found


def shown_at(lines: Sequence[Line], seconds: Sequence[float] | None) -> str:
    """The lines that are shown when one of the frames is, one below the other; None: all of them."""
    chosen = [one.text for one in lines if seconds is None or any(one.start <= t <= one.end for t in seconds)]
    return "\n".join(chosen)
