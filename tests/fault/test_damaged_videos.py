"""Videos that are cut, damaged, turned, silent, irregular or very long, read as training reads them."""

from __future__ import annotations

import gc
import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
from _videos import numbers, video

from hvlm.data.decode import decode
from hvlm.data.video import VideoDecodeError


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sound() -> bytes:
    """An mp4 with an audio stream alone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16_000, layout="mono")
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 16_000, i * 1024
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def indexed_first(folder: Path) -> bytes:
    """An mp4 of 60 frames whose index stands before its pictures, as files from the web have it."""
    path = folder / "fast.mp4"
    with (
        av.open(io.BytesIO(video(60, options={"bf": "0", "g": "12"}))) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as file,
    ):
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                file.mux(packet)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    return data


@pytest.mark.fault(36)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_of_a_cut_video_what_is_there_is_read_or_the_sample_is_named(share: float, tmp_path: Path) -> None:
    """A file whose index stands first still promises the frames that were cut off: those that come out are whole."""
    whole = indexed_first(tmp_path)
    for data in (whole[: int(len(whole) * share)], whole[: int(len(whole) * share)].ljust(len(whole), b"\0")):
        try:
            frames, times = decode(data, 8, name="clip7")
        except VideoDecodeError as error:
            assert error.name == "clip7" and error.field == "video" and error.reason
            continue
        shown = numbers(frames)
        assert shown == sorted(shown) and max(shown) < 60 * share + 6
        assert np.all(np.diff(times) > 0) and len(times) == len(shown)


@pytest.mark.fault(37)
def test_a_video_that_lacks_its_last_frame_is_read(tmp_path: Path) -> None:
    whole = indexed_first(tmp_path)
    frames, _ = decode(whole[: int(len(whole) * 0.99)], 8, name="k")
    assert len(frames) == 8 and numbers(frames) == sorted(numbers(frames))


@pytest.mark.fault(38)
def test_damage_that_no_decoder_notices_is_noticed_by_its_sum(tmp_path: Path) -> None:
    from _clips import dataset

    from hvlm.data.shard_index import load_manifest
    from hvlm.errors import UserError

    dataset(tmp_path, {"train": 2})
    shard = tmp_path / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    at = data.index(b"mdat") + 40
    data[at : at + 200] = np.random.default_rng(0).bytes(200)
    shard.write_bytes(data)
    with pytest.raises(UserError, match="train-000000.tar: sha256 on disk"):
        load_manifest(tmp_path).verify(full=True)


@pytest.mark.fault(40)
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_file_with_sound_alone_is_the_same_typed_error(decoder: str) -> None:
    with pytest.raises(VideoDecodeError, match="^k: video: the file has no video stream"):
        decode(sound(), 8, name="k", decoder=decoder)


@pytest.mark.fault(41, 42)
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_a_variable_frame_rate_is_sampled_by_time_in_every_container(container: str) -> None:
    """Ten frames a second, then one: each time is that of a frame, and the nearest to the time that was asked for."""
    at = [*range(10), *range(20, 120, 10)]
    frames, times = decode(video(20, container=container, pts=at, options={"bf": "3", "g": "12"}), 6, name="k")
    shown = numbers(frames)
    assert times.tolist() == pytest.approx([at[i] / 10 for i in shown], abs=2e-3)
    assert sum(i >= 10 for i in shown) >= 4  # by frame number it would be half of them


@pytest.mark.fault(43)
def test_one_frame_an_odd_size_and_two_hours_are_read() -> None:
    assert numbers(decode(video(1), 8, name="k")[0]) == [0]
    frames, _ = decode(video(5, size=(64, 98)), 3, name="k", size=(63, 31))
    assert frames.shape == (3, 3, 63, 31)
    # Two hours with a frame every ten seconds: as long for the clock as any, and quick to write.
    options = {"preset": "ultrafast", "g": "60", "bf": "0"}
    long = video(720, pts=range(0, 72_000, 100), size=(32, 32), options=options)
    before = resident()
    _, times = decode(long, 8, name="k")
    assert times.tolist() == pytest.approx([450 + 900 * i for i in range(8)], abs=10.1)
    assert resident() - before < 100 << 20


@pytest.mark.fault(45)
def test_five_hundred_videos_are_opened_and_none_stays_in_memory() -> None:
    data = video(12, size=(48, 64), options={"preset": "ultrafast"})
    for _ in range(50):
        decode(data, 4, name="k")
    gc.collect()
    before, files = resident(), len(os.listdir("/proc/self/fd"))
    for _ in range(500):
        decode(data, 2, name="k")
    gc.collect()
    assert resident() - before < 50 << 20
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize("name", ["v.m3u8", "v.mp4"])
def test_a_video_that_names_another_file_is_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Playlists: else whoever sends one sees frames of videos on the machine that reads it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private.ts").write_bytes(video(8, container="mpegts"))
    assert decode(tmp_path / "private.ts", 2, name="private")[0].any()
    segments = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    for text in (
        segments.format(f"file://{tmp_path}/private.ts"),
        segments.format("private.ts"),
        "ffconcat version 1.0\nfile private.ts\n",
    ):
        (tmp_path / name).write_text(text)
        for source in (tmp_path / name, text.encode()):
            with pytest.raises(VideoDecodeError, match="Invalid (data|argument)"):
                decode(source, 2, name="v")
