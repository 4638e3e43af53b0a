"""decord, where its answer can be trusted.

It takes the number of a packet for that of a frame, and answers with other frames than those asked for, without a
word, where the two differ: hidden packets, frames shown before their key frame, transport streams, B-frames in AVI. So
it is used for files in which they are the same and which stand upright, and only if it lists the moments that the
container's own time stamps give.
"""

from __future__ import annotations

import io
import logging
import re
from typing import Any

import numpy as np

from hvlm.data.sources import Source, content
from hvlm.data.video import Video, VideoDecodeError, one_line

try:
    import decord
except ImportError:  # there are wheels for Linux on x86 only
    decord = None

log = logging.getLogger(__name__)

_logged: set[str] = set()


def trusted(source: Source, video: Video) -> Any | None:
    """A decord reader of ``source``, which is open as ``video``; None (and the cause, once) if PyAV must decode."""
    if decord is None:
        raise VideoDecodeError("", "video", "decoder=decord, and decord is not installed; use decoder=pyav")
    cause = video.unusual()
    if cause is None:
        try:
            reader = decord.VideoReader(io.BytesIO(content(source)), num_threads=1)
            starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        except Exception as error:  # decord raises plain RuntimeErrors of its own class, and IndexErrors
            cause = f"decord says: {_plain(error)}"
        else:
            if len(starts) == len(video.seconds) and np.abs(starts - starts[0] - video.seconds).max() < 1e-3:
                return reader
            cause = "decord lists other moments than the container"
    _log_once(cause)
    return None


def frames(reader: Any, chosen: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, 3] of the frames with these numbers. Raises VideoDecodeError."""
    try:
        return reader.get_batch(chosen).asnumpy()
    except Exception as error:
        raise VideoDecodeError("", "video", f"decord: {_plain(error)}") from error


def _plain(error: Exception) -> str:
    return re.sub(r"^\[\d\d:\d\d:\d\d\] \S+: ?", "", one_line(error))  # it puts a clock and a source line in front


def _log_once(cause: str) -> None:
    kind = re.sub(r"0x[0-9a-f]+|\d+", "#", cause)
    if kind not in _logged:
        _logged.add(kind)
        log.warning("PyAV decodes some videos although decoder=decord: %s", cause)
