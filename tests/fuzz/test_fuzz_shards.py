"""Fuzz: archives of samples, indexed and read by offset, and streamed; and manifests."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import Any

from _fuzz import folder, target
from _fuzz_files import broken, json_files
from _fuzz_values import texts
from hypothesis import strategies
from hypothesis import strategies as st

from hvlm.data import samples
from hvlm.data.quarantine import SampleError
from hvlm.data.shard_folder import split_of
from hvlm.data.shard_index import index_shard, load_manifest, write_manifest
from hvlm.data.stream import samples_of
from hvlm.dataset.shards import Shards

SAMPLE = {"caption": "a red square", "questions": [{"question": "what?", "answer": "a square"}]}
NAMES = ("a.json", "a.mp4", "b.json", "b.mp4", "c/d.json", "c/d.000.jpg", "c/d.001.JPG", "e.txt", "e.png")


def packed(members: list[tuple[str, bytes]], **more: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **more) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


TEXT = json.dumps(SAMPLE).encode()
GOOD = packed([(name, TEXT if name.endswith(("json", "txt")) else b"pixels") for name in NAMES])
GNU = packed([("x" * 150 + ".json", TEXT)], format=tarfile.GNU_FORMAT)
PAX = packed([("é" * 90 + ".json", TEXT)], format=tarfile.PAX_FORMAT)


@st.composite
def archives(draw: Any) -> bytes:
    """Archives: of odd members, or good ones with wrong bytes, headers above all."""
    if draw(st.booleans()):
        return draw(broken(draw(st.sampled_from((GOOD, GOOD, GNU, PAX)))))
    if draw(st.booleans()):  # a header with a sum that is right
        data = bytearray(GOOD)
        at = 1024 * draw(st.integers(0, len(NAMES) - 1))
        field, size = draw(
            st.sampled_from(((0, 100), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
        )
        new = draw(st.one_of(st.binary(max_size=size), texts.map(lambda t: t.encode("utf-8", "surrogatepass")[:size])))
        data[at + field : at + field + len(new)] = new
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 155] = b"%06o\0" % sum(data[at : at + 512])
        return bytes(data)
    names = draw(st.lists(st.one_of(st.sampled_from(NAMES), texts.map(lambda t: t[:90] + ".json"), texts), max_size=4))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", encoding="utf-8", errors="surrogatepass") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type = draw(
                st.sampled_from([tarfile.REGTYPE] * 4 + [b"1", b"2", b"3", b"5", b"6", b"S", b"x", b"L", b"K"])
            )
            info.linkname = draw(st.sampled_from(("", "../../etc/passwd", "a.json")))
            data = draw(st.sampled_from((TEXT, b"", b"{", b"\xff" * 600)))
            info.size = len(data)
            try:
                tar.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeError):
                continue
    return out.getvalue()


@target(ci=40, data=archives(), name=strategies.sampled_from(("a.tar", "train-000.tar", "val-train.tar")))
def test_shards(data: bytes, name: str) -> None:
    with folder() as place:
        (place / name).write_bytes(data)
        split_of(name)
        entry = index_shard(place / name, "train")
        write_manifest(place, {}, {name: entry}, [])
        manifest = load_manifest(place)
        manifest.verify(full=True)
        split = manifest.split("train")
        for index in range(len(split)):
            members = split.read(index)
            assert members == {k: v for k, v in split.sources(index).items() if isinstance(v, bytes)}
            try:
                samples.parse(members, split.keys[index], "general", split.uid(index))
            except SampleError:
                continue
        dataset = Shards(str(place))
        dataset.prepare()
        for _ in dataset.texts():
            pass


@target(ci=30, data=archives())
def test_stream(data: bytes) -> None:
    with folder() as place:
        (place / "a.tar").write_bytes(data)
        for key, members in samples_of(str(place / "a.tar")):
            try:
                samples.parse(members, key, "general")
            except SampleError:
                continue


def _manifest() -> dict[str, Any]:
    with folder() as place:
        (place / "train-0.tar").write_bytes(GOOD)
        entry = index_shard(place / "train-0.tar", "train")
    return {"format": 1, "spec": {"indexed": True}, "quarantined": [], "shards": {"train-0.tar": entry}}


MANIFEST = _manifest()
assert MANIFEST["shards"]["train-0.tar"]["sha256"] == hashlib.sha256(GOOD).hexdigest()


@target(ci=60, data=json_files(MANIFEST))
def test_manifest(data: bytes) -> None:
    with folder() as place:
        (place / "train-0.tar").write_bytes(GOOD)
        (place / "manifest.json").write_bytes(data)
        dataset = Shards(str(place))
        dataset.prepare()
        manifest = dataset.manifest()
        manifest.verify(full=True)
        assert len(manifest.identity) == 16 and manifest.num_bytes >= 0
        for name in manifest.splits:
            manifest.paths(name)
            split = manifest.split(name)
            for index in range(len(split)):
                members = split.read(index)
                try:
                    samples.parse(members, split.keys[index], split.domains[index], split.uid(index))
                except SampleError:
                    continue
        for _ in dataset.texts():
            pass
        dataset.names("answers")
