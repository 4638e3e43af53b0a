"""The packets of a video stream: their order of decoding, the order in which their frames are shown, and when.

Positions count packets in decoding order; numbers count frames in the order in which they are shown. Each packet goes
to the decoder with its position in place of its time stamp, so that a frame that comes back says which packet it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import av
import numpy as np

KEEP_BYTES = 16 << 20  # packets of a stream up to this size stay in memory; of a larger one they are read again
JOINED = ("mpegts", "mpeg")  # formats in which recordings are joined end to end, each with a clock of its own
JUMP_S = 10.0  # in those, a step beyond this (or backwards) begins another recording
_NONE = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Index:
    """What is known about a stream's packets.

    keys: bool [packets], whether decoding can begin there.
    order: int64 [frames], positions in the order in which their frames are shown.
    seconds: float64 [frames], from the first frame. duration: seconds, from the first frame to the end of the last.
    timed: whether time stamps tell the order; if not, only a decoder does.
    plain: whether every packet is a frame, and no frame is shown before the key frame that precedes it.
    doubtful: whether the first frames should be decoded to see if ``timed`` holds.
    verified: whether the frames have been seen.
    """

    keys: np.ndarray
    order: np.ndarray
    seconds: np.ndarray
    duration: float
    timed: bool
    plain: bool
    doubtful: bool = False
    verified: bool = False

    @cached_property
    def rank(self) -> np.ndarray:
        """int64 [packets]: the number of each packet's frame, -1 for a packet that is not shown."""
        rank = np.full(len(self.keys), -1)
        rank[self.order] = np.arange(len(self.order))
        return rank

    @property
    def leads(self) -> bool:
        """Whether frames are shown before the first key frame."""
        key = int(self.keys.argmax())
        return bool(self.order.size) and (self.rank[key] > 0 or (self.order < key).any())

    def start_of(self, positions: np.ndarray) -> np.ndarray:
        """Where to begin decoding for each of these packets: the last key frame before them in both orders."""
        keys = np.flatnonzero(self.keys)
        if not len(keys):
            return np.zeros_like(positions)
        at = np.searchsorted(keys, positions, side="right") - 1
        for i, position in enumerate(positions):
            while at[i] >= 0 and self.rank[keys[at[i]]] > self.rank[position]:
                at[i] -= 1
        return np.where(at >= 0, keys[at.clip(0)], 0)

    def without(self, positions: set[int]) -> Index:
        """The same without the frames of these packets; the clock then begins at the first of the others."""
        keep = ~np.isin(self.order, list(positions))
        seconds = self.seconds[keep]
        start = seconds[0] if len(seconds) else 0.0
        return replace(self, order=self.order[keep], seconds=seconds - start, duration=self.duration - start)

    def of_decoded(self, positions: list[int]) -> Index:
        """The index of the frames that a decoder returned, in its order."""
        came = np.array(list(dict.fromkeys(positions)), np.int64)
        if self.timed:
            found = self.without(set(self.order.tolist()) - set(came.tolist()))
        else:  # the decoder knows the order, and the moments are those of all packets, sorted
            came = came[self.rank[came] >= 0]
            seconds, lost = self.seconds, len(self.seconds) - len(came)
            found = replace(self, order=came, seconds=seconds[: len(came)], duration=self.duration)
            if lost and len(came):
                found = replace(found, duration=self.duration - (seconds[-1] - seconds[len(came) - 1]))
        return replace(found, verified=True, plain=False)


class Packets:
    """The packets of one stream; ``read`` gives them from any position on.

    again: opens the file once more: (file, stream).
    """

    def __init__(self, file, stream, again: Callable, kept: list[av.Packet] | None, marks: list, index: Index) -> None:
        self.index = index
        self._file, self._stream, self._again, self._kept, self._marks = file, stream, again, kept, marks
        self._positions = {} if kept is not None else {mark: i for i, mark in enumerate(marks)}
        self._seeks = kept is None and len(self._positions) == len(marks)

    def read(self, start: int) -> Iterator[tuple[int, av.Packet]]:
        """(position, packet) from ``start`` on, the packet's time stamp replaced by its position."""
        if self._kept is not None:
            yield from enumerate(self._kept[start:], start)
            return
        packets = self._sought(start) if start and self._seeks else None
        if packets is None:
            self._file, self._stream = self._again()
            packets = enumerate(_real(self._file.demux(self._stream)))
        for position, packet in packets:
            if position >= start:
                yield position, _stamped(packet, position)

    def _sought(self, start: int) -> Iterator[tuple[int, av.Packet]] | None:
        """Packets from ``start`` or an earlier position on; None if the file cannot be entered there."""
        _, pts, dts = self._marks[start]
        for stamp in (pts, dts):
            if stamp is None:
                continue
            try:
                self._file.seek(stamp, stream=self._stream, backward=True)
                packets = _real(self._file.demux(self._stream))
                first = next(packets, None)
            except av.FFmpegError:
                continue
            position = None if first is None else self._positions.get(_mark(first))
            if position is not None and position <= start:
                return self._followed(position, first, packets)
        return None

    def _followed(self, position: int, first: av.Packet, packets: Iterator) -> Iterator[tuple[int, av.Packet]]:
        yield position, first
        for position, packet in enumerate(packets, position + 1):  # noqa: B020
            if position >= len(self._marks) or _mark(packet)[:2] != self._marks[position][:2]:
                raise av.InvalidDataError(0, "after a jump the file gives other packets than before")
            yield position, packet


def read_packets(file: av.container.InputContainer, stream: av.VideoStream, again: Callable) -> Packets:
    """Read a stream's packets without decoding them. Raises FFmpegError."""
    kept: list[av.Packet] | None = []
    marks, raw, flags, size = [], [], [], 0
    for packet in _real(file.demux(stream)):
        marks.append(_mark(packet))
        hidden = packet.is_discard or (stream.codec_context.name == "vp8" and not bytes(packet)[0] & 0x10)
        raw.append((_or_none(packet.pts), _or_none(packet.dts), packet.duration or 0))
        flags.append((packet.is_keyframe, hidden))
        size += packet.size
        if kept is not None:
            kept.append(packet)
            if size > KEEP_BYTES:
                kept = None
    raw, flags = np.array(raw, np.int64).reshape(-1, 3), np.array(flags, bool).reshape(-1, 2)
    index = _index(raw[:, 0], raw[:, 1], raw[:, 2], flags[:, 0], flags[:, 1], stream, file.format.name)
    if kept is not None:
        kept = [_stamped(packet, i) for i, packet in enumerate(kept)]
    return Packets(file, stream, again, kept, marks, index)


def _index(pts, dts, durations, keys, hidden, stream: av.VideoStream, container: str) -> Index:
    tick = float(stream.time_base)
    stamped = pts != _NONE
    timed = bool(stamped.any())
    # Frames that are decoded in another order than they are shown, and time stamps that know nothing of it: they are of
    # decoding (AVI), or made up by a program that read a stream without any.
    ascending = bool((np.diff(pts[stamped]) > 0).all())
    doubtful = timed and ascending and bool(stream.codec_context.has_b_frames) and len(pts) > 2
    if not stamped.any():
        stamped, pts = (dts != _NONE), dts
    if not stamped.any() and len(pts):
        rate = stream.average_rate or stream.guessed_rate or 25
        stamped, pts = np.ones(len(pts), bool), np.round(np.arange(len(pts)) / float(rate) / tick).astype(np.int64)
    if container in JOINED and len(pts):
        pts = _one_clock(pts, dts, durations, stamped, tick)
    shown = np.flatnonzero(stamped & ~hidden)
    order = shown[np.argsort(pts[shown], kind="stable")]
    moments = pts[order]
    seconds = (moments - (moments[0] if len(moments) else 0)) * tick
    last = 0.0
    if len(order):
        steps = np.diff(seconds)
        last = durations[order[-1]] * tick or (float(np.median(steps)) if len(steps) else 0.0)
    plain = timed and len(order) == len(pts)
    if plain and len(pts):
        highest = np.maximum.accumulate(np.where(keys, pts, _NONE))
        plain = bool(keys[0]) and bool((pts >= highest).all())
    end = float(seconds[-1] + last) if len(order) else 0.0
    return Index(keys, order, seconds, end, timed, plain, doubtful)


def _one_clock(pts, dts, durations, stamped, tick: float) -> np.ndarray:
    """Time stamps of recordings that were joined, each put behind the one before."""
    clock = np.where(dts != _NONE, dts, pts)
    clock = np.where(clock != _NONE, clock, 0)
    step = np.diff(clock) * tick
    begins = [0, *(np.flatnonzero((step > JUMP_S) | (step < -1e-6)) + 1).tolist(), len(pts)]
    if len(begins) == 2:
        return pts
    pts, end = pts.copy(), None
    for first, last in zip(begins, begins[1:], strict=False):
        part = np.arange(first, last)[stamped[first:last]]
        if not len(part):
            continue
        if end is not None:
            pts[part] += end - pts[part].min()
        latest = part[pts[part].argmax()]
        end = pts[latest] + max(1, durations[latest])
    return pts


def _real(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    return (packet for packet in packets if packet.size)


def _mark(packet: av.Packet) -> tuple:
    return packet.pos, packet.pts, packet.dts


def _stamped(packet: av.Packet, position: int) -> av.Packet:
    packet.pts = packet.dts = position
    return packet


def _or_none(stamp: int | None) -> int:
    return _NONE if stamp is None else stamp
