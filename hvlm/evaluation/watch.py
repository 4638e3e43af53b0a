"""``task=ask``: a question to a video file, at the moments that the command names."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from hvlm.data.decode import frames_of
from hvlm.data.video import Video, VideoDecodeError
from hvlm.errors import UserError
from hvlm.evaluation.offline import answer_offline
from hvlm.evaluation.results import resident_mb
from hvlm.evaluation.sampling import Sampling
from hvlm.evaluation.streaming import StreamingReader, why_not_frame_by_frame
from hvlm.io.json_lines import write_lines
from hvlm.model import VLM
from hvlm.rebuild import Loaded
from hvlm.text.unknown import warn_of_answers, warn_of_question

log = logging.getLogger(__name__)


def duration_of_asked(asked: Mapping[str, Any]) -> float:
    """Seconds of ``ask.video``. UserError where the settings of ``ask`` miss something or do not fit the video."""
    for name in ("video", "question"):
        if not (asked[name] or "").strip():
            raise UserError(f"task=ask needs ask.{name}=...")
    if not Path(asked["video"]).is_file():
        raise UserError(f"ask.video={asked['video']}: no such file")
    try:
        with Video(Path(asked["video"])) as video:
            duration = video.duration
    except VideoDecodeError as e:
        raise UserError(f"ask.video={asked['video']}: cannot be read as a video ({e.reason})") from e
    late = [moment for moment in asked["at"] or [] if moment > duration]
    if late:
        raise UserError(f"ask.at={late[0]:g}: {asked['video']} ends at {duration:.2f} s; ask within it")
    return duration


def watch(
    loaded: Loaded,
    asked: Mapping[str, Any],
    duration: float,
    choose: Sampling,
    out: Path,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Answer ``question`` about ``video`` at the moments asked for: lines with ``seconds``, ``frames`` read and
    ``answer``, printed and written to ``out/asked.jsonl``. The model watches frame by frame where ``stream`` and its
    rooms say so, and then a line has what that costs as well (``Meter``); else it reads frames of the whole time before
    each moment, and the log says why.

    Args:
        loaded: the model.
        asked: the settings of ``ask``.
        duration: of the video, in seconds.
        choose: which word comes next.
        out: a folder.
        more: what every line says beside.
    """
    warn_of_question(loaded.chat, asked["question"])
    reason = why_in_one_piece(loaded.model, asked["stream"])
    if reason is None:
        found = _while_it_runs(loaded, asked, choose)
    else:
        frames = loaded.inputs.num_frames
        log.info(f"read in one piece before each answer, {frames} frames at most (ask.fps is not used): {reason}")
        found = _in_one_piece(loaded, asked, duration, choose)
    lines = []
    for line in found:
        lines.append(line)
        log.info(f"{line['seconds']:8.2f} s, {line['frames']} frames: {line['answer']}")
    warn_of_answers(loaded.chat, [line["answer"] for line in lines])
    write_lines(out / "asked.jsonl", [{"question": asked["question"], **line, **more} for line in lines])
    return lines


def why_in_one_piece(model: VLM, stream: bool | None) -> str | None:
    """Why the video is not read frame by frame; None where it is.

    Args:
        model: which may be unable to.
        stream: whether the command wants it. None: where the model was trained to look at a frame after the other, or
            its cache forgets, so that hours fit into memory; others have learnt from so many frames of a clip.

    Raises:
        UserError: the command wants it, and the model cannot.
    """
    reason = why_not_frame_by_frame(model)
    if stream and reason is not None:
        raise UserError(f"ask.stream=true: {reason}; without it the video is read in one piece")
    if stream is False:
        return "ask.stream=false"
    if stream is None and reason is None and not (model.connector.steers or model.kvcache.apart):
        return "the cache keeps everything; ask.stream=true, or kvcache=duo or streaming, reads frame by frame"
    return reason


class Meter:
    """What watching costs: ``kv_bytes`` of keys and values that are kept, ``resident_mb`` of memory that the process
    holds, and of the frames since the last question, decoding included, ``frame_ms`` and (of processor time)
    ``cpu_ms`` for each, None where there was none."""

    def __init__(self) -> None:
        self._frames = 0
        self.go_on()

    def go_on(self) -> None:
        """A question was answered, which does not count."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, watcher: StreamingReader) -> dict[str, float | int | None]:
        """At this moment, before the answer."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        new, self._frames = watcher.frames - self._frames, watcher.frames
        each = {"frame_ms": wall, "cpu_ms": cpu}
        return {
            "kv_bytes": watcher.cache.nbytes,
            "resident_mb": resident_mb(),
            **{name: round(1e3 * seconds / new, 3) if new else None for name, seconds in each.items()},
        }


def _while_it_runs(loaded: Loaded, asked: Mapping[str, Any], choose: Sampling) -> Iterator[dict[str, Any]]:
    first = asked["question"] if loaded.inputs.order == "question_first" else None
    later = None if first else asked["question"]
    watcher, meter = StreamingReader(loaded.model, loaded.chat, first), Meter()
    moments = sorted(asked["at"] or [])

    def said(seconds: float) -> dict[str, Any]:
        cost = meter.read(watcher)
        answer = watcher.answer(later, asked["max_new_tokens"], choose)
        return {"seconds": seconds, "frames": watcher.frames, "answer": answer, **cost}

    seconds, limit = 0.0, loaded.config["dataset"]["decode_timeout"]
    for frame, seconds in frames_of(Path(asked["video"]), asked["fps"], loaded.inputs.size, limit):
        while moments and moments[0] < seconds and watcher.frames:
            yield said(moments.pop(0))
            meter.go_on()
        watcher.read_frame(torch.from_numpy(np.ascontiguousarray(frame)))
    if not watcher.frames:
        raise UserError(f"ask.video={asked['video']}: shorter than half a frame at ask.fps={asked['fps']:g}; raise it")
    for moment in moments or ([] if asked["at"] else [seconds]):
        yield said(moment)
        meter.go_on()


def _in_one_piece(
    loaded: Loaded, asked: Mapping[str, Any], duration: float, choose: Sampling
) -> Iterator[dict[str, Any]]:
    for moment in sorted(asked["at"] or [duration]):
        answer = answer_offline(
            loaded, Path(asked["video"]), asked["question"], moment, asked["max_new_tokens"], choose
        )
        yield {"seconds": moment, "frames": answer.frames, "answer": answer.text}
