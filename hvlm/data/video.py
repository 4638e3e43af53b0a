"""A video: which of its frames is shown when, and those frames upright. Every reader of video goes through here.

One clock: seconds from the first frame that is shown. Packets that an edit list hides are no frames. The packets are
read once without decoding (``video_index.py``); a wanted frame is then decoded from the key frame before it, leaving
out frames that no other frame needs. The index is never taken at its word: every frame that a decoder returns says
which packet it comes from, and where one does not come, the whole stream is decoded once to see what is there.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

from hvlm.data.orientation import UPRIGHT, Orientation, from_matrix, from_rotation, upright
from hvlm.data.quarantine import SampleError
from hvlm.data.sources import Source, opened
from hvlm.data.video_index import Index, Packets, read_packets

log = logging.getLogger(__name__)

MAX_PIXELS = 50_000_000  # of one image or frame; larger ones are refused before anything is allocated
MAX_GAP_S = 3600.0  # one frame is shown no longer than this: a larger step is a fault of the time stamps
PROBED = 250  # packets decoded to see whether time stamps tell the order
# In these, a frame that says nobody refers to it may be left out and no other changes. HEVC, for example, says so for
# one temporal layer only.
SKIPPABLE = ("h264", "mpeg1video", "mpeg2video", "mpeg4", "vp8")
SIMPLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
LIMITS = {"max_pixels": str(MAX_PIXELS)}
# Formats whose file names other files, or addresses, that FFmpeg opens in its stead. What a stranger sends is one file.
REFERRING = {
    "concat", "dash", "hls", "image2", "imf", "lavfi", "mlv", "rtp", "rtsp", "sap", "sdp", "vobsub",
    "webm_dash_manifest",
}  # fmt: skip
OPENING = LIMITS | {"format_whitelist": ",".join(sorted(av.formats_available - REFERRING))}


class VideoDecodeError(SampleError):
    """No decoder could read the video (or the image decoder the image). Attributes: name, field, reason."""


class _Missing(Exception):
    """Some frames did not come out of the decoder."""


class _Fields(Exception):
    """The video is interlaced: a packet may be half a frame, so none may be left out."""


class Picture:
    """One decoded frame. ``pixels()`` converts it; ``height`` and ``width``: as shown, with square pixels."""

    def __init__(self, frame: av.VideoFrame, aspect: float, convert: VideoReformatter) -> None:
        self._frame, self._convert = frame, convert
        self.orientation = _orientation(frame)
        height, width = frame.height, max(1, round(frame.width * aspect))
        self.height, self.width = (width, height) if self.orientation.swaps else (height, width)
        if self.height * self.width > MAX_PIXELS:
            raise too_large(self.width, self.height)

    def pixels(self) -> np.ndarray:
        """uint8 [h, w, 3] RGB, upright. Where pixels are not square, h and w are not yet ``height`` and ``width``."""
        rgb = self._convert.reformat(
            self._frame, format="rgb24", threads=1
        )  # one for all frames: it sets up its tables once
        return upright(rgb.to_ndarray(), self.orientation)

    def scaled(self, height: int, width: int) -> np.ndarray:
        """uint8 [height, width, 3] RGB, upright, scaled by FFmpeg while it converts: cheap where much smaller."""
        across, down = (height, width) if self.orientation.swaps else (width, height)
        rgb = self._convert.reformat(self._frame, across, down, format="rgb24", threads=1)
        return upright(rgb.to_ndarray(), self.orientation)


class Video:
    """An open video (close it, or use it in a ``with``).

    Raises VideoDecodeError: nothing in it can be decoded, a frame is larger than ``MAX_PIXELS``, or time stamps jump
    by more than ``MAX_GAP_S``. Attributes: ``seconds`` float64 [frames], when each is first shown; ``duration``, until
    the last one is gone; ``height`` and ``width``, pixels of the first frames as stored; ``index``.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        try:
            self._file = av.open(opened(source), options=OPENING)
            self._stream = best_stream(self._file)
            # What is asked of the stream later is read now: it is gone once the file has been opened again.
            self._number = self._stream.index
            self.height, self.width = self._stream.height, self._stream.width
            self._stated_rate, self._pix_fmt = self._stream.average_rate, self._stream.pix_fmt
            self._format, self._streams = self._file.format.name, len(self._file.streams.video)
            codec = self._stream.codec_context
            codec.thread_type, codec.thread_count, codec.options = "NONE", 1, dict(LIMITS)
            self._convert = VideoReformatter()
            self._codec, self._skips = codec, codec.name in SKIPPABLE
            ratio = self._stream.sample_aspect_ratio
            self._aspect = float(ratio) if ratio and 0.05 <= ratio <= 20 else 1.0
            self._packets: Packets = read_packets(self._file, self._stream, self._again)
            self.index: Index = self._packets.index
            self._fresh = True  # whether the decoder holds nothing
            self._whole = False  # whether to decode from the beginning, every packet
            if self.index.doubtful and not self._in_order():
                self.index = replace(self.index, timed=False)
            if not self.index.keys.any() or not self.index.timed:
                self._verify()
            elif self.index.leads:
                self._drop_leading()
            self._check()
        except av.FFmpegError as error:
            self.close()
            raise VideoDecodeError("", "video", one_line(error)) from error
        except VideoDecodeError:
            self.close()
            raise

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        # Nothing is left to the garbage collector, which may run in a process that was forked meanwhile.
        for name in ("_packets", "_codec", "_convert", "_stream"):
            self.__dict__.pop(name, None)
        if "_file" in self.__dict__:
            self.__dict__.pop("_file").close()

    @property
    def rate(self) -> float:
        """Frames per second: the container's average, or what the time stamps give."""
        if self._stated_rate:
            return float(self._stated_rate)
        return (len(self.seconds) - 1) / float(self.seconds[-1]) if len(self.seconds) > 1 else 1.0

    def unusual(self) -> str | None:
        """What keeps a simpler decoder from reading this video rightly, or None if nothing is known that would."""
        if not self.index.plain:
            return "its packets are not its frames one for one, or frames are shown before their key frame"
        if self._format not in SIMPLE:
            return f"it is in {self._format}"
        if self._streams > 1:
            return "it has several video streams"
        if self._aspect != 1 or self._pix_fmt not in ("yuv420p", "yuvj420p"):
            return f"its pixels are of another kind ({self._pix_fmt}, {self._aspect:g} as wide as high)"
        first = next(self.sample(lambda *_: np.arange(1)))[1]
        if first.orientation != UPRIGHT:
            return "it is shown turned or mirrored"
        return None

    @property
    def seconds(self) -> np.ndarray:
        return self.index.seconds

    @property
    def duration(self) -> float:
        return self.index.duration

    def sample(self, choose: Callable[[np.ndarray, float], np.ndarray]) -> Iterator[tuple[float, Picture]]:
        """Frames in the order in which they are shown, each with its seconds.

        choose(seconds, duration): which frames, ascending. It is asked again if the index turns out to hold frames that
        no decoder can give; those already handed out are not handed out twice.
        """
        last = -1.0
        while True:
            chosen = choose(self.seconds, self.duration)
            chosen = chosen[self.seconds[chosen] > last]
            try:
                for number, picture in self._pictures(chosen):
                    last = float(self.seconds[number])
                    yield last, picture
                return
            except _Fields:
                self._skips = False
                continue
            except (_Missing, av.FFmpegError) as error:
                if self.index.verified and self._whole:
                    reason = one_line(error) if str(error) else "a frame that was there cannot be decoded again"
                    raise VideoDecodeError("", "video", reason) from error
                self._whole = self.index.verified
            if self._whole:
                continue
            try:
                self._verify()
                self._check()
            except av.FFmpegError as error:
                raise VideoDecodeError("", "video", one_line(error)) from error

    # -- decoding ------------------------------------------------------------------------------------------------------

    def _pictures(self, chosen: Sequence[int]) -> Iterator[tuple[int, Picture]]:
        """(number, picture) of the frames with these numbers, ascending. Raises _Missing, FFmpegError."""
        positions = self.index.order[np.asarray(chosen, np.int64)]
        numbers = dict(zip(positions.tolist(), map(int, chosen), strict=True))
        starts = np.zeros_like(positions) if self._whole else self.index.start_of(positions)
        for start in np.unique(starts):
            wanted = {p for p, s in zip(positions.tolist(), starts.tolist(), strict=True) if s == start}
            held, due = {}, sorted((numbers[p] for p in wanted), reverse=True)
            for position, frame in self._run(int(start), wanted):
                held[numbers[position]] = Picture(frame, self._aspect, self._convert)
                while due and due[-1] in held:  # decoders now and then return frames out of order
                    yield due[-1], held.pop(due.pop())
            if due:
                raise _Missing

    def _run(self, start: int, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode from the packet at ``start`` until all of ``wanted`` have come, if they do."""
        left, last, skips = set(wanted), max(wanted), self._skips and not self._whole
        if not self._fresh:
            self._codec.flush_buffers()
        self._fresh = False
        for position, packet in self._packets.read(start):
            self._codec.skip_frame = "NONREF" if skips and position not in wanted else "DEFAULT"
            for frame in self._codec.decode(packet):
                if frame.interlaced_frame and skips:
                    raise _Fields
                if frame.pts == start and not (frame.key_frame or self._whole):
                    raise _Missing  # the container calls a key frame what is none
                if frame.pts in left:
                    left.discard(frame.pts)
                    yield frame.pts, frame
            if position == last or not left:
                break
        for frame in self._codec.decode(None) if left else ():
            if frame.pts in left:
                yield frame.pts, frame

    def _verify(self) -> None:
        """Decode the whole stream and make the index of the frames that come."""
        log.debug("decoding all %d packets to see which frames are there", len(self.index.keys))
        if not self._fresh:
            self._codec.flush_buffers()
        self._fresh, self._codec.skip_frame, came = False, "DEFAULT", []
        for position, packet in self._packets.read(0):
            try:
                came += [frame.pts for frame in self._codec.decode(packet)]
            except av.InvalidDataError:
                if came and position < len(self.index.keys) - 1:  # but a cut stream may begin and end with debris
                    raise
        came += [frame.pts for frame in self._codec.decode(None)]
        self.index = self.index.of_decoded([p for p in came if p is not None])

    def _in_order(self) -> bool:
        """Whether the first frames come out of the decoder as their packets stand."""
        with suppress(av.InvalidDataError):
            came = [position for position, _ in self._run(0, set(range(min(PROBED, len(self.index.keys)))))]
            return came == sorted(came)
        return False

    def _drop_leading(self) -> None:
        """A stream that begins with frames before its first key frame: keep those that can be decoded."""
        key = int(np.flatnonzero(self.index.keys)[0])
        before = [p for p in self.index.order.tolist() if self.index.rank[p] < self.index.rank[key]]
        came: set[int] = set()
        with suppress(av.InvalidDataError):
            came = {position for position, _ in self._run(0, {*before, key})}
        if key not in came:
            self._verify()
        else:
            self.index = self.index.without(set(before) - came)

    def _check(self) -> None:
        if not len(self.seconds):
            raise VideoDecodeError("", "video", "the video stream holds no frames")
        gaps = np.diff(self.seconds)
        if len(gaps) and gaps.max() > MAX_GAP_S:
            at = int(gaps.argmax())
            raise VideoDecodeError(
                "", "video",
                f"time stamps jump from {self.seconds[at]:.2f} s to {self.seconds[at + 1]:.2f} s, and a frame may be "
                f"shown for {MAX_GAP_S:g} s at most; cut the video there or write its time stamps again",
            )  # fmt: skip

    def _again(self) -> tuple[av.container.InputContainer, av.VideoStream]:
        """The file opened once more, at its beginning."""
        self._file.close()
        self._file = av.open(opened(self._source), options=OPENING)
        return self._file, self._file.streams[self._number]


def still(data: bytes) -> np.ndarray:
    """uint8 [h, w, 3] of one encoded picture, as it is stored. Raises VideoDecodeError."""
    try:
        with av.open(opened(data), options=OPENING) as file:
            codec = best_stream(file).codec_context
            codec.thread_type, codec.options = "NONE", dict(LIMITS)
            frame = next(file.decode(video=0), None)
            if frame is None:
                raise VideoDecodeError("", "image", "the file holds no picture")
            return frame.to_ndarray(format="rgb24")
    except av.FFmpegError as error:
        raise VideoDecodeError("", "image", one_line(error)) from error


def best_stream(file: av.container.InputContainer) -> av.VideoStream:
    """The film: no cover picture or thumbnails; a default stream before others, then the one with most pixels.

    Raises VideoDecodeError, also for a frame that is too large.
    """
    no = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [s for s in file.streams.video if s.codec_context is not None and not s.disposition & no]
    if not streams:
        kind = "only a cover picture" if file.streams.video else "no video stream"
        raise VideoDecodeError("", "video", f"the file has {kind}")
    default = av.stream.Disposition.default
    best = max(streams, key=lambda s: (bool(s.disposition & default), s.width * s.height, -s.index))
    if best.width * best.height > MAX_PIXELS:
        raise too_large(best.width, best.height)
    return best


def too_large(width: int, height: int) -> VideoDecodeError:
    """The error about a picture beyond ``MAX_PIXELS``."""
    return VideoDecodeError("", "video", f"{width}x{height} pixels are refused, at most {MAX_PIXELS:,}")


def _orientation(frame: av.VideoFrame) -> Orientation:
    try:
        data = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV lists no side data at all when it does not know one kind; a mirror then goes unseen
        return from_rotation(frame.rotation)
    return from_rotation(0) if data is None else from_matrix(struct.unpack("=9i", bytes(data)[:36]))


def one_line(error: Exception) -> str:
    """What an error says, in at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
