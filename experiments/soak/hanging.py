"""A decoder that hangs, for the process that decodes: it imports it by name, and not torch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvlm.data.decode import Chunk
from hvlm.data.decode import sampled as honest

MARK = b"hang"  # a video that begins so is never decoded
HANG = "SOAK_HANG"  # environment: while this file is there, no video is


def sampled(video: Any, *args: Any) -> Iterator[Chunk]:
    """As the decoder, or a hang in C that holds Python's lock: no thread and no signal handler gets a turn."""
    if Path(os.environ[HANG]).exists() or (isinstance(video, bytes) and video.startswith(MARK)):
        ctypes.PyDLL(None).sleep(3600)
    yield from honest(video, *args)
