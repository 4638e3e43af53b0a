"""Subtitles beside videos, as benchmarks publish them: SubRip with markup in its lines (Video-MME), a JSON list of
lines (LongVideoBench), a word a line (Video-MME-v2)."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.errors import UserError, first_few

ENDINGS = (".srt", ".json", ".jsonl")
WHICH = ("shown", "all", "between")
LARGEST = 64 << 20  # bytes of a file
FRAME = "Frame {number}"  # stands for a frame among the lines
_TIME = r"(\d{1,6}):(\d\d):(\d\d)[,.](\d{1,3})"
_SPAN = re.compile(rf"{_TIME}\s*-->\s*{_TIME}")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


class Line(NamedTuple):
    """A text that is shown from ``start`` to ``end``, in seconds."""

    start: float
    end: float
    text: str


class Where(NamedTuple):
    """What a row says of its subtitles. file: their name, None: the video's. begin: the second of theirs at which the
    video begins. duration: of the video in seconds, for lines without an end, or None."""

    file: str | None = None
    begin: float = 0.0
    duration: float | None = None


ALONE = Where()


def find(folder: Path, video: str, where: Where) -> Path | None:
    """The file with a video's subtitles, None where there is none; video: its file's name."""
    if where.file:
        path = folder / where.file.replace("\\", "/").rpartition("/")[2]
        return path if _is_there(path) else None
    stem = Path(video).stem
    return next((path for ending in ENDINGS if _is_there(path := folder / f"{stem}{ending}")), None)


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for any file
        return False


def check(folder: Path, videos: Iterable[tuple[str, Where]], setting: str) -> str:
    """What to say of videos that have no subtitles there, "" where all have. UserError where none has."""
    if not folder.is_dir():
        raise UserError(f"{setting}: no such folder, nor one of the benchmark's copy; name that of the files")
    found = {video: find(folder, video, where) is not None for video, where in videos}
    without = [video for video, there in found.items() if not there]
    if found and len(without) == len(found):
        raise UserError(
            f"{setting}: holds the subtitles of none of {len(found)} videos, e.g. {Path(without[0]).stem}"
            f"{'|'.join(ENDINGS)}; name the folder of these files, or ask without: benchmark.subtitles=null"
        )
    return f"{len(without)} of {len(found)} videos have none ({first_few(without, 'videos')})" if without else ""


def read_subtitles(path: Path | None, where: Where = ALONE) -> list[Line]:
    """The lines of a file without markup and entities, in seconds of the video; [] where there is no such file. Raises
    ValueError for a file that cannot be read."""
    if path is None or not path.is_file():
        return []
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"has {path.stat().st_size:,} bytes, at most {LARGEST:,} are read")
        text = path.read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n")
        found = _srt(text) if path.suffix.lower() == ".srt" else _json(path.suffix.lower(), text, where)
        found = [Line(one.start - where.begin, one.end - where.begin, _plain(one.text)) for one in found]
        if bad := next((one for one in found if not (math.isfinite(one.start) and math.isfinite(one.end))), None):
            raise ValueError(f"{bad.text!r:.40} is shown from {bad.start} to {bad.end} s")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"the subtitles {path.name} cannot be read ({type(error).__name__}: {why})") from error
    return [one for one in found if one.text]


def said(lines: Sequence[Line], which: str, seconds: Sequence[float] | None) -> str:
    """What of the lines is told, one below the other.

    Args:
        which: ``shown``: those that are shown when one of the frames is; ``all``; ``between``: LongVideoBench's rule,
            those that a frame falls into, where one shorter than a second is taken for a second, each behind the frames
            up to its middle, in whose place ``FRAME`` stands.
        seconds: of the frames; None: not known, all lines.
    """
    if seconds is None or which == "all":
        return "\n".join(one.text for one in lines)
    if which == "shown":
        return shown_at(lines, seconds)
    out: list[str] = []
    marks = [(t, FRAME.replace("{number}", str(number))) for number, t in enumerate(seconds, start=1)]
    for start, end, text in lines:
        middle = (start + end) / 2
        while marks and marks[0][0] <= middle:
            out.append(marks.pop(0)[1])
        if end - start < 1:
            start, end = middle - 0.5, middle + 0.5
        if any(start < t < end for t in seconds):
            out.append(text)
    return "\n".join([*out, *(mark for _, mark in marks)])


def shown_at(lines: Sequence[Line], seconds: Sequence[float] | None) -> str:
    """The lines that are shown when one of the frames is, one below the other; None: all of them."""
    chosen = [one.text for one in lines if seconds is None or any(one.start <= t <= one.end for t in seconds)]
    return "\n".join(chosen)


def _srt(text: str) -> list[Line]:
    found = []
    for block in re.split(r"\n\s*\n", text):
        if not (span := _SPAN.search(block)):
            continue
        h, m, s, f, h2, m2, s2, f2 = span.groups()
        start = int(h) * 3600 + int(m) * 60 + int(s) + int(f.ljust(3, "0")) / 1000
        end = int(h2) * 3600 + int(m2) * 60 + int(s2) + int(f2.ljust(3, "0")) / 1000
        found.append(Line(start, end, block[span.end() :]))
    return found


def _json(ending: str, text: str, where: Where) -> list[Line]:
    if ending == ".jsonl":  # words: one text, for the times of single words tell nothing of a sentence
        words = [json.loads(line) for line in text.split("\n") if line.strip()]
        whole = " ".join(str(word["text"]) for word in words)
        return [Line(float(words[0]["start_time"]), float(words[-1]["end_time"]), whole)] if words else []
    return [_line(one, where) for one in json.loads(text)]


def _line(one: dict[str, Any], where: Where) -> Line:
    """One of LongVideoBench's, in either of its forms."""
    if "timestamp" in one:
        start, end = one["timestamp"]
        if end is None:
            end = where.begin + (start if where.duration is None else where.duration)
        return Line(float(start), float(end), str(one["text"]))
    return Line(_seconds(one["start"]), _seconds(one["end"]), str(one["line"]))


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _plain(text: str) -> str:
    whole = text.encode("utf-8", "replace").decode()  # JSON may spell half a character
    return " ".join(html.unescape(_MARKUP.sub("", whole)).split())
