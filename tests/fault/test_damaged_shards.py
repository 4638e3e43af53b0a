"""Shards that are cut, doubled, hostile or no shards at all: each is refused by name, or costs named samples."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import pytest
from _clips import VIDEO, FakeChat
from PIL import Image

from hvlm.data.datamodule import DataModule
from hvlm.data.decode import decode_images
from hvlm.data.shard_index import index_shard
from hvlm.data.stream import samples_of
from hvlm.data.video import VideoDecodeError
from hvlm.data.views import Captions
from hvlm.dataset.shards import Shards
from hvlm.errors import UserError
from hvlm.types import InputSpec

TEXT = b'{"caption": "a dog"}'


def tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def good(*keys: str) -> list[tuple[str, bytes]]:
    return [member for key in keys for member in ((f"{key}.mp4", VIDEO), (f"{key}.json", TEXT))]


def module(path: Path, **settings) -> DataModule:
    return DataModule(
        Shards(str(path), **settings), FakeChat(), InputSpec("question_first", 2, 64), view=Captions(), rows_per_clip=1,
        loss="answer", batch_size=1, steps=6, num_workers=0, seed=3, quarantine=path.parent / "quarantine.jsonl",
    )  # fmt: skip


def read(folder: Path) -> tuple[set[str], list[dict]]:
    """(keys that training shows, lines of the quarantine) of one epoch and a little more."""
    data = module(folder)
    data.prepare_data()
    shown = {row["key"] for batch in data.train_dataloader() for row in batch.rows}
    lines = (folder.parent / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return shown, [json.loads(line) for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.fault(23)
def test_a_sample_without_its_video_or_its_text_is_named_and_left_out(folder: Path) -> None:
    """Missing members; members of one key that do not stand together are one sample all the same."""
    members = [
        ("a.mp4", VIDEO),
        ("only-text.json", TEXT),
        ("b.mp4", VIDEO),
        ("a.json", TEXT),
        ("only-video.mp4", VIDEO),
    ]
    shard = tar(folder / "train-0.tar", [*members, ("b.json", TEXT)])
    shown, lines = read(folder)
    assert shown == {"a", "b"}
    assert {(line["shard"], line["key"]) for line in lines} == {
        (str(shard), "only-text"),
        (str(shard), "only-video"),
    }
    assert all(line["field"] and line["error"] for line in lines)


@pytest.mark.fault(24)
def test_a_member_that_stands_there_twice_is_refused_by_name(folder: Path) -> None:
    shard = tar(folder / "train-0.tar", [*good("a", "b"), ("b.json", TEXT)])
    for reading in (lambda: index_shard(shard, "train"), lambda: list(samples_of(str(shard)))):
        with pytest.raises(UserError, match=r"train-0.tar: b.json stands in the shard twice"):
            reading()


@pytest.mark.fault(26)
@pytest.mark.parametrize("what", ["empty", "html", "absent"])
@pytest.mark.parametrize("access", ["index", "stream"])
def test_what_is_no_shard_stops_the_run_and_is_named(folder: Path, what: str, access: str) -> None:
    tar(folder / "train-0.tar", good("a", "b"))
    module(folder).prepare_data()
    bad = tar(folder / "train-1.tar", good("c")) if what == "absent" else folder / "train-1.tar"
    if what == "absent":
        (folder / "manifest.json").unlink()
        module(folder).prepare_data()
        bad.unlink()
    else:
        bad.write_bytes(b"" if what == "empty" else b"<html>404</html>" * 100)
        (folder / "manifest.json").unlink()
    path = folder if access == "index" else [str(folder / f"train-{i}.tar") for i in (0, 1)]
    with pytest.raises(UserError, match=r"train-1.tar"):
        data = module(folder)
        if access == "stream":
            data.dataset = Shards(path, access="stream")
        data.prepare_data()
        list(data.train_dataloader())


@pytest.mark.fault(27)
def test_a_bad_member_is_named_with_shard_key_and_field(folder: Path) -> None:
    still = io.BytesIO()
    Image.new("RGB", (64, 64)).save(still, "JPEG")
    bad = {
        "json": [("json.mp4", VIDEO), ("json.json", b"{")],
        "jpg": [("jpg.jpg", still.getvalue()[:40]), ("jpg.json", TEXT)],
        "mp4": [("mp4.mp4", b"garbage" * 99), ("mp4.json", TEXT)],
    }
    shard = tar(folder / "train-0.tar", [*good("a"), *(m for members in bad.values() for m in members)])
    shown, lines = read(folder)
    assert shown == {"a"}
    fields = {line["key"]: line["field"] for line in lines}
    assert fields == {"json": "json", "jpg": "image", "mp4": "video"}
    assert all(line["shard"] == str(shard) and line["error"] for line in lines)


@pytest.mark.fault(29)
def test_links_devices_and_keys_that_climb_write_and_read_nothing(folder: Path) -> None:
    secret = folder.parent / "secret.json"
    secret.write_text('{"caption": "secret"}')
    with tarfile.open(folder / "train-0.tar", "w") as file:
        for kind, name in ((tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "hard"), (tarfile.CHRTYPE, "device")):
            info = tarfile.TarInfo(f"{name}.json")
            info.type, info.linkname = kind, str(secret)
            file.addfile(info)
            video = tarfile.TarInfo(f"{name}.mp4")
            video.size = len(VIDEO)
            file.addfile(video, io.BytesIO(VIDEO))
    samples = index_shard(folder / "train-0.tar", "train")["samples"]
    assert [list(sample["members"]) for sample in samples] == [["mp4"]] * 3
    for name in ("../up.json", "/root.json", "a/../../b.json"):
        with pytest.raises(UserError, match="sample key .* is refused"):
            index_shard(tar(folder / "train-1.tar", [(name, TEXT)]), "train")
    assert {p.name for p in folder.parent.iterdir()} == {"data", "secret.json"}


@pytest.mark.fault(30)
def test_pickled_members_are_never_read(folder: Path) -> None:
    canary = folder.parent / "canary"
    code = b"cos\nmkdir\n(V" + str(canary).encode() + b"\ntR."
    names = ("pyd", "pth", "pickle", "pkl", "pt", "npy", "cls", "pyc", "ten")
    shard = tar(folder / "train-0.tar", [*good("a"), *((f"a.{name}", code) for name in names)])
    assert set(index_shard(shard, "train")["samples"][0]["members"]) == {"mp4", "json"}
    (streamed,) = samples_of(str(shard))
    assert set(streamed[1]) == {"mp4", "json"}
    data = module(folder)
    data.prepare_data()
    assert next(iter(data.train_dataloader())).num_clips == 1
    assert not canary.exists()


@pytest.mark.fault(31)
def test_no_list_of_shards_runs_a_command(folder: Path) -> None:
    canary = folder.parent / "canary"
    for url in (f"pipe:touch {canary}", f"pipe:touch {canary} #.tar", f"PIPE:touch {canary}.tar", "ftp://h/a.tar"):
        for path in (url, [url], [str(folder / "train-0.tar"), url]):
            with pytest.raises(UserError, match="only local paths, http: and https: are read"):
                Shards(path, access="stream").urls()
            with pytest.raises(UserError):
                Shards(path).prepare()
    assert not list(folder.parent.glob("canary*"))


@pytest.mark.fault(32)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [12_000, 30_000])
def test_a_picture_that_unfolds_to_gigabytes_is_refused_before_it_does(side: int) -> None:
    buffer = io.BytesIO()
    Image.new("1", (side, 10)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[20:24] = side.to_bytes(4, "big")  # the height in its header
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    tracemalloc.start()
    with pytest.raises(VideoDecodeError, match=rf"{side}x{side} pixels are refused|{side**2} pixels. exceeds limit"):
        decode_images([bytes(data)], 1, name="k", fps=1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20


@pytest.mark.fault(33)
def test_a_compressed_archive_is_refused_unread(folder: Path) -> None:
    for mode in ("w:gz", "w:bz2", "w:xz"):
        shard = tar(folder / "train-0.tar", [("a.mp4", bytes(2 << 20)), ("a.json", TEXT)], mode)
        assert shard.stat().st_size < 1 << 20
        for reading in (lambda: index_shard(shard, "train"), lambda: list(samples_of(str(shard)))):  # noqa: B023
            with pytest.raises(UserError, match="train-0.tar"):
                reading()
    with pytest.raises(UserError, match="a shard is an uncompressed .tar"):
        Shards(["a.tar.gz"], access="stream").urls()


@pytest.mark.fault(34)
def test_a_header_that_claims_gigabytes_allocates_nothing(folder: Path) -> None:
    info = tarfile.TarInfo("a.mp4")
    info.size = 8 << 30
    shard = folder / "train-0.tar"
    shard.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    tracemalloc.start()
    for reading in (lambda: index_shard(shard, "train"), lambda: list(samples_of(str(shard)))):
        with pytest.raises(UserError, match="train-0.tar"):
            reading()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20 and os.path.getsize(shard) < 10_000
