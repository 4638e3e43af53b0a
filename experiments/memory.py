"""Resident memory of this process, from Linux's /proc."""

from __future__ import annotations

import ctypes
from pathlib import Path


def start_peak() -> float:
    """Give freed memory back, let the high-water mark start anew, and return what is resident now, in MB (2^20)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory_mb("VmRSS")


def peak_since(before: float) -> float:
    """MB by which the high-water mark exceeds ``before``."""
    return memory_mb("VmHWM") - before


def memory_mb(field: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024
