"""Times as tables write them, and the part of a video that two of them name."""

from __future__ import annotations

import math
import re
from typing import Any

from hvlm.prepare.problems import Problem

_CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,3}):(\d{1,2}(?:[.,]\d{1,9})?)")


def as_seconds(value: Any) -> float | None:
    """Of a number, or of ``1:02:03.5`` and ``02:03``; None for what is no time from 0 on."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and (found := _CLOCK.fullmatch(value.strip())):
        return int(found[1] or 0) * 3600 + int(found[2]) * 60 + float(found[3].replace(",", "."))
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and 0 <= seconds < 1e9 else None


def section(start: Any, end: Any) -> tuple[float, float] | None:
    """[start, stop] in seconds; None where a row names neither. Raises Problem."""
    if start is None and end is None:
        return None
    first, last = as_seconds(start), as_seconds(end)
    if first is None or last is None or not first < last:
        said = f"start {start!r}, end {end!r}"
        raise Problem("wrong part", f"{said[:80]}: expected seconds (or h:mm:ss), the end after the start, or neither")
    return first, last
