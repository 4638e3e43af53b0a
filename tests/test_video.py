"""The frames that are read are those of a whole decode, for every kind of file and every reader."""

from __future__ import annotations

import io
import tarfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from _videos import CORNERS, cut, number_of, numbers, picture, reference, remuxed, video, with_matrix
from PIL import Image

from hvlm.data import samples, video_index
from hvlm.data.decode import decode, decode_images, frames_of
from hvlm.data.quarantine import SampleError
from hvlm.data.sources import Span
from hvlm.data.video import MAX_PIXELS, Video, VideoDecodeError
from hvlm.dataset._haystack import MAX_FRAMES, SEGMENTS, decode_source
from hvlm.dataset._haystack import Video as Listed

B = {"bf": "3", "g": "12"}  # B-frames, and a key frame at least every 12
LATE = [*range(10), *range(20, 120, 10)]  # ten frames a second, then one


def _joined(second: int) -> bytes:
    """Two transport streams end to end; the second one's clock begins at so many seconds."""
    first = video(30, container="mpegts", options=B)

    def later(_: int, packet: av.Packet) -> av.Packet:
        packet.pts, packet.dts = packet.pts + second * 90_000, packet.dts + second * 90_000
        return packet

    return first + remuxed(video(30, container="mpegts", options=B, first=30), "mpegts", later)


def _resized() -> bytes:
    """The size changes in mid-stream; each half carries its own parameter sets."""
    one = {"bf": "0", "g": "12", "x264-params": "repeat-headers=1"}
    parts = [video(30, container="h264", options=one)]
    parts += [video(30, container="h264", options=one, first=30, size=(128, 192))]
    return remuxed(b"".join(parts), "mpegts", _numbered)


def _numbered(i: int, packet: av.Packet) -> av.Packet:
    packet.time_base = Fraction(1, 10)
    packet.pts = packet.dts = i
    return packet


KINDS = {
    "closed groups": lambda: video(60, options=B),
    "one group": lambda: video(60, options={"bf": "3"}),
    "cut by stream copy": lambda: cut(video(60, options=B), 17),
    "cut by stream copy, no B-frames": lambda: cut(video(60, options={"bf": "0", "g": "12"}), 17),
    "cut inside the last group": lambda: cut(video(60, options={"bf": "2", "g": "30", "sc_threshold": "0"}), 44),
    "open groups": lambda: video(60, options={"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}),
    "HEVC as x265 writes it": lambda: video(60, codec="libx265", options={"x265-params": "log-level=none:keyint=20"}),
    "H.264 in AVI": lambda: video(60, container="avi", options=B),
    "MPEG-4 with B-frames in AVI": lambda: video(60, container="avi", codec="mpeg4", options={"bf": "2"}),
    "MPEG-2 with B-frames": lambda: video(60, container="mpegts", codec="mpeg2video", options={"bf": "2"}),
    "H.264 transport stream": lambda: video(60, container="mpegts", options=B),
    "variable frame rate": lambda: video(20, pts=LATE, options=B),
    "fragmented": lambda: video(60, options=B, file_options={"movflags": "frag_keyframe+empty_moov"}),
    "VP9": lambda: video(60, container="webm", codec="libvpx-vp9", options={"g": "20", "deadline": "realtime"}),
    "VP8 with hidden frames": lambda: video(
        60, container="webm", codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "g": "30"}
    ),
    "AV1": lambda: video(60, codec="libsvtav1", options={"svtav1-params": "keyint=20", "preset": "12"}),
    "another size in mid-stream": _resized,
    "every frame a key frame": lambda: video(60, options={"g": "1"}),
    "one frame": lambda: video(1),
    "two frames": lambda: video(2),
}
UNSTAMPED = ("H.264 in AVI",)  # whose time stamps are those of decoding: a plain decode sorted by them is wrong


@cache
def made(kind: str) -> bytes:
    return KINDS[kind]()


@cache
def expected(kind: str) -> tuple[list[int], np.ndarray]:
    images, seconds = reference(made(kind))
    shown = [number_of(image) for image in images]
    return (sorted(shown) if kind in UNSTAMPED else shown), seconds


def nearest(seconds: np.ndarray, count: int) -> list[int]:
    """As a reader would say it: the frame nearest to the middle of each of ``count`` equal parts of the clip."""
    if count >= len(seconds):
        return list(range(len(seconds)))
    step = (seconds[-1] + 0.1) / count if seconds[-1] < 10 else (seconds[-1] + 1.0) / count
    found = {min(range(len(seconds)), key=lambda i: (round(abs(seconds[i] - t), 3), i)) for t in
             [(k + 0.5) * step for k in range(count)]}  # fmt: skip
    return sorted(found)


@pytest.fixture(params=["packets kept", "packets read again"])
def memory(request, monkeypatch):
    if request.param == "packets read again":
        monkeypatch.setattr(video_index, "KEEP_BYTES", 0)


@pytest.mark.fault(87)
@pytest.mark.parametrize("kind", KINDS)
def test_training_gets_the_frames_of_a_whole_decode(kind, memory, tmp_path):
    shown, seconds = expected(kind)
    assert kind.startswith(("one", "two")) or len(set(shown)) == len(shown) >= 16
    path = tmp_path / "clip"
    path.write_bytes(made(kind))
    for source in (made(kind), path):
        for count in (1, 3, 8, 10**6):
            frames, times = decode(source, count, name=kind)
            wanted = nearest(seconds, count)
            assert numbers(frames) == [shown[i] for i in wanted]
            assert times == pytest.approx(seconds[wanted], abs=2e-3)


@pytest.mark.fault(87)
@pytest.mark.parametrize("kind", KINDS)
def test_ask_and_haystack_get_the_same_frames(kind, tmp_path, memory):
    shown, seconds = expected(kind)
    path = tmp_path / "clip"
    path.write_bytes(made(kind))
    end = seconds[-1] + (1.0 if kind.startswith("variable") else 0.1)
    stream = list(frames_of(path, 4.0, (64, 96)))
    assert [s for _, s in stream] == pytest.approx(np.arange(0.125, end, 0.25))
    for frame, second in stream:
        assert number_of(frame.transpose(1, 2, 0)) == shown[int(np.flatnonzero(seconds <= second + 2e-3)[-1])]
    if len(shown) < 16:
        return
    stretches = decode_source(Listed(path, "clip", "clip", 0), tmp_path / "out", 64)
    for split, (first, last) in SEGMENTS.items():
        inside = [
            [i for i, s in enumerate(seconds) if first * end - e <= s and (s < last * end + e or last == 1)]
            for e in (-2e-3, 2e-3)
        ]  # time stamps are rounded, and a frame may begin where a part does
        found = [number_of(f) for f in np.load(stretches[split].file)]
        for some, whole in ((inside[0], found), (found, inside[1])):
            some, whole = ([shown[i] for i in x] if x in inside else x for x in (some, whole))
            assert set(some[: MAX_FRAMES[split]]) <= set(whole) and found == sorted(found, key=shown.index)


@pytest.mark.fault(87)
def test_only_pixels_of_a_whole_decode_come_out(memory):
    """Leaving out frames that none refers to, and jumping, changes no pixel."""
    for kind in ("closed groups", "open groups", "cut by stream copy", "HEVC as x265 writes it", "VP9"):
        whole, seconds = reference(made(kind))
        frames, _ = decode(made(kind), 7, name=kind)
        for i, frame in zip(nearest(seconds, 7), frames.transpose(0, 2, 3, 1), strict=True):
            assert np.array_equal(frame, whole[i])


@pytest.mark.fault(87)
@pytest.mark.parametrize("kind", ["closed groups", "cut by stream copy", "open groups", "H.264 in AVI", "VP9"])
def test_decord_decodes_only_what_it_reads_rightly(kind):
    pytest.importorskip("decord")
    for count in (3, 10**6):
        frames, times = decode(made(kind), count, name=kind)
        other, at = decode(made(kind), count, name=kind, decoder="decord")
        assert np.array_equal(frames, other) and np.array_equal(times, at)


def test_a_key_frame_that_is_none_is_noticed(monkeypatch):
    """A container may call every packet a key frame."""
    plain = video(40, options={"bf": "0"})
    right = decode(plain, 4, name="k")[0]
    honest = video_index._index
    monkeypatch.setattr(
        video_index, "_index",
        lambda pts, dts, durations, keys, *rest: honest(pts, dts, durations, np.ones_like(keys), *rest),
    )  # fmt: skip
    assert np.array_equal(decode(plain, 4, name="k")[0], right)


# ------------------------------------------------------------------------------------------------------- orientation

TURNS = {  # matrix → where the stored top left corner is shown
    "upright": ((1, 0, 0, 1), "top left", False),
    "90": ((0, 1, -1, 0), "top right", True),
    "180": ((-1, 0, 0, -1), "bottom right", False),
    "270": ((0, -1, 1, 0), "bottom left", True),
    "mirrored": ((-1, 0, 0, 1), "top right", False),
    "upside down": ((1, 0, 0, -1), "bottom left", False),
    "transposed": ((0, 1, 1, 0), "top left", True),
    "transversed": ((0, -1, -1, 0), "bottom right", True),
}


def corner_of(frame: np.ndarray, colour: str = "top left") -> str:
    """Where the corner of a colour is in [H, W, 3]."""
    height, width = frame.shape[:2]
    found = {
        f"{down} {right}": np.abs(frame[y, x].astype(int) - CORNERS[colour]).sum()
        for down, y in (("top", height // 16), ("bottom", -height // 16))
        for right, x in (("left", width // 16), ("right", -width // 16))
    }
    return min(found, key=found.get)


@pytest.mark.fault(39, 91)
@pytest.mark.parametrize("turn", TURNS)
def test_every_reader_turns_and_mirrors_a_video_upright(turn, tmp_path):
    matrix, corner, swaps = TURNS[turn]
    path = tmp_path / "v.mp4"
    path.write_bytes(with_matrix(video(40), *matrix))
    shape = (96, 64) if swaps else (64, 96)
    trained = decode(path.read_bytes(), 2, name="v")[0].transpose(0, 2, 3, 1)
    asked = [frame.transpose(1, 2, 0) for frame, _ in frames_of(path, 1.0, shape)]
    made_of = np.load(decode_source(Listed(path, "v", "v", 0), tmp_path / "out", 64)["train"].file)
    assert trained.shape[1:3] == made_of.shape[1:3] == shape
    for frame in (*trained, *asked, *made_of[:3]):
        assert corner_of(frame) == corner
    other = {"top left": "top right", "top right": "top left"}
    mirrored = matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0  # the second corner tells a mirror from a turn
    turned = {"upright": "top right", "90": "bottom right", "180": "bottom left", "270": "top left"}
    wanted = turned.get(turn) or {"mirrored": "top left", "upside down": "bottom right", "transposed": "bottom left",
                                  "transversed": "top right"}[turn]  # fmt: skip
    assert mirrored == (turn not in turned) and other
    assert corner_of(trained[0], "top right") == wanted


@pytest.mark.fault(91)
@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_stills_are_turned_as_their_exif_says(number, kind):
    from PIL import ImageOps

    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = number
    Image.fromarray(picture(5)).save(buffer, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))).convert("RGB"))
    frames, _ = decode_images([buffer.getvalue()], 1, name="k", fps=1.0)
    assert frames.shape[2:] == upright.shape[:2]
    assert np.abs(frames[0].transpose(1, 2, 0).astype(int) - upright).mean() < 4


@pytest.mark.fault(101)
def test_pixels_that_are_not_square_are_made_so(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(video(20, aspect=Fraction(2)))
    frames, _ = decode(path.read_bytes(), 3, name="v")
    assert frames.shape == (3, 3, 64, 192) and numbers(frames) == [3, 10, 17]
    square = decode(path.read_bytes(), 3, name="v", size=(32, 32))[0]
    plain = decode(video(20), 3, name="v", size=(32, 32))[0]
    assert not np.array_equal(square, plain)  # a third of the width instead of two thirds
    assert next(frames_of(path, 1.0, (64, 192)))[0].shape == (3, 64, 192)
    stretch = decode_source(Listed(path, "v", "v", 0), tmp_path / "out", 128)["train"]
    assert np.load(stretch.file).shape[1:3] == (64, 192)


# ----------------------------------------------------------------------------------------------------- which stream


def two_streams(first: bytes, second: bytes, cover: bool = False) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska" if not cover else "mp4") as out:
        for i, data in enumerate((first, second)):
            with av.open(io.BytesIO(data)) as file:
                stream = out.add_stream_from_template(file.streams.video[0])
                if cover and i == 0:
                    stream.disposition = av.stream.Disposition.attached_pic
        for i, data in enumerate((first, second)):
            with av.open(io.BytesIO(data)) as file:
                for packet in file.demux(video=0):
                    if packet.size:
                        packet.stream = out.streams[i]
                        out.mux(packet)
    return buffer.getvalue()


@pytest.mark.fault(92)
def test_the_film_is_read_and_not_a_preview_or_a_cover(tmp_path):
    film, preview = video(30), video(30, first=500, size=(32, 40))
    for i, both in enumerate((two_streams(preview, film), two_streams(film, preview))):
        path = tmp_path / f"{i}.mkv"
        path.write_bytes(both)
        assert numbers(decode(both, 3, name="k")[0]) == [5, 15, 25]
        assert number_of(next(frames_of(path, 1.0, (64, 96)))[0].transpose(1, 2, 0)) == 5
        stretches = decode_source(Listed(path, "v", "v", 0), tmp_path / f"out{i}", 64)
        assert number_of(np.load(stretches["train"].file)[0]) == 0
    picture_first = two_streams(
        video(1, codec="mjpeg", size=(128, 192), container="avi", pixels="yuvj420p"), film, cover=True
    )
    with av.open(io.BytesIO(picture_first)) as file:
        assert any(s.disposition & av.stream.Disposition.attached_pic for s in file.streams.video)
    assert numbers(decode(picture_first, 3, name="k")[0]) == [5, 15, 25]


# ------------------------------------------------------------------------------------------------------------ limits


@cache
def huge_video() -> bytes:
    return video(1, size=(6000, 9000), options={"preset": "ultrafast"})


@pytest.mark.fault(79, 98)
@pytest.mark.parametrize("container", ["mp4", "mpegts", "matroska"])
def test_frames_beyond_the_limit_are_refused_before_they_are_decoded(container, tmp_path):
    huge = huge_video() if container == "mp4" else remuxed(huge_video(), container)
    path = tmp_path / "huge"
    path.write_bytes(huge)
    for read in (
        lambda: decode(huge, 2, name="k", size=(64, 64)),
        lambda: decode(huge, 2, name="k", size=(64, 64), decoder="decord"),
        lambda: next(frames_of(path, 1.0, (64, 64))),
        lambda: decode_source(Listed(path, "v", "v", 0), tmp_path / "out", 64),
    ):
        with pytest.raises(VideoDecodeError, match="9000x6000 pixels are refused, at most 50,000,000"):
            read()


@pytest.mark.fault(32, 79, 98)
def test_a_picture_beyond_the_limit_is_refused_by_its_header():
    buffer = io.BytesIO()
    Image.new("L", (10_000, 8_000)).save(buffer, "PNG")
    with pytest.raises(VideoDecodeError, match="10000x8000 pixels are refused"):
        decode_images([buffer.getvalue()], 1, name="k", fps=1.0)
    assert MAX_PIXELS == 50_000_000


@pytest.mark.fault(98)
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_jump_of_the_time_stamps_is_an_error_in_every_reader(container, tmp_path):
    path = tmp_path / "v"
    path.write_bytes(video(20, pts=[*range(10), *range(360_000, 360_010)], container=container))
    message = "time stamps jump from 0.90 s to 36000.00 s"
    for read in (
        lambda: decode(path, 8, name="k"),
        lambda: list(frames_of(path, 4.0, (64, 64))),
        lambda: decode_source(Listed(path, "v", "v", 0), tmp_path / "out", 64),
    ):
        with pytest.raises(VideoDecodeError, match=message):
            read()
    path.write_bytes(video(20, pts=[*range(10), *range(6000, 6010)], container=container))  # a still of ten minutes
    assert len(list(frames_of(path, 0.1, (64, 64)))) == 60


@pytest.mark.fault(98)
@pytest.mark.parametrize("second", [0, 36_000])
def test_recordings_that_were_joined_have_one_clock(second, memory):
    """Transport streams put end to end, the second with the clock of the first or ten hours later."""
    frames, times = decode(_joined(second), 10**6, name="k")
    assert numbers(frames) == list(range(60)) and times == pytest.approx(np.arange(60) / 10, abs=2e-3)


@pytest.mark.fault(101)
def test_live_recordings_that_state_no_duration_are_read_by_all(tmp_path):
    path = tmp_path / "live.webm"
    path.write_bytes(
        video(60, container="webm", codec="libvpx", options={"deadline": "realtime"}, file_options={"live": "1"})
    )
    with av.open(str(path)) as file:
        assert file.duration is None and file.streams.video[0].duration is None
    with Video(path) as file:
        assert file.duration == pytest.approx(6.0, abs=0.01)
    assert numbers(decode(path, 3, name="k")[0]) == [10, 30, 50]
    assert len(list(frames_of(path, 2.0, (64, 64)))) == 12
    assert len(np.load(decode_source(Listed(path, "v", "v", 0), tmp_path / "o", 64)["test"].file)) == 10


@pytest.mark.fault(37)
@pytest.mark.parametrize("length", [0.3, 0.7])
def test_of_a_file_whose_end_is_missing_the_rest_is_read(length):
    whole = video(60, container="matroska", options=B)
    frames, _ = decode(whole[: int(len(whole) * length)], 10**6, name="k")
    shown = numbers(frames)  # B-frames are missing where what they refer to is cut off
    assert 0 < len(shown) < 60 and shown == sorted(shown) and shown[:-3] == list(range(len(shown) - 3))


# ------------------------------------------------------------------------------------------------- stills and sources


@pytest.mark.fault(93)
def test_stills_come_in_the_order_of_their_numbers():
    members = {}
    for i in (0, 1, 10, 11, 2, 3):
        buffer = io.BytesIO()
        Image.fromarray(picture(i)).save(buffer, "PNG")
        members[f"{i}.png"] = buffer.getvalue()
    frames, times = samples.frames(members, {"key": "k", "fps": 1.0}, 6, (64, 96))
    assert numbers(frames) == [0, 1, 2, 3, 10, 11] and times.tolist() == [0, 1, 2, 3, 4, 5]
    names = ["frame10.jpg", "frame9.jpg", "frame²3.jpg", "a/2.jpg", "a/10.jpg", "jpg"]
    assert sorted(names, key=samples.natural)[:3] == ["a/2.jpg", "a/10.jpg", "frame9.jpg"]


def test_a_member_of_a_tar_is_read_where_it_lies(tmp_path, memory):
    data = video(60, options=B)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("first.mp4", "second, with: a comma.mp4"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(tmp_path / "a.tar") as tar:
        spans = [Span(tmp_path / "a.tar", info.offset_data, info.size) for info in tar]
    for span in spans:
        frames, times = decode(span, 5, name="k")
        same, at = decode(data, 5, name="k")
        assert np.array_equal(frames, same) and np.array_equal(times, at)


@pytest.mark.fault(35)
@pytest.mark.parametrize("data", [b"", b"<html>" * 50, video(30)[:1000], video(30)[:40]])
def test_what_cannot_be_read_is_an_error_that_names_the_sample(data, tmp_path):
    with pytest.raises(VideoDecodeError, match="^clip7: video: ") as caught:
        decode(data, 8, name="clip7")
    assert caught.value.name == "clip7" and "\n" not in str(caught.value) and isinstance(caught.value, SampleError)
    with pytest.raises(VideoDecodeError, match="^clip7: image: "):
        decode_images([data], 1, name="clip7", fps=1.0)
    path = Path(tmp_path / "bad.mp4")
    path.write_bytes(data)
    with pytest.raises(VideoDecodeError, match=r"bad.mp4"):
        list(frames_of(path, 1.0, (64, 64)))
