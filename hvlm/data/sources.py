"""Where encoded bytes lie: in memory, in a file, or in a part of a file such as a member of a tar."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple


class Span(NamedTuple):
    """``size`` bytes at ``offset`` of the file ``path``."""

    path: Path
    offset: int
    size: int


Source = bytes | Path | Span


def opened(source: Source) -> io.BytesIO | str:
    """What PyAV opens. Files are named with their protocol, so that no name is taken for another one."""
    if isinstance(source, Span):
        return f"subfile,,start,{source.offset},end,{source.offset + source.size},,:{source.path}"
    return f"file:{source}" if isinstance(source, Path) else io.BytesIO(source)


def content(source: Source) -> bytes:
    """All of it in memory."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path):
        return source.read_bytes()
    with open(source.path, "rb") as file:
        file.seek(source.offset)
        return file.read(source.size)
