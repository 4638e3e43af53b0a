"""Shards as people make them: which members are read, what makes a tar wrong, who is who, where manifests live."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from _clips import VIDEO, FakeChat, dataset, encode, pictures
from _memory import refused_within
from _tiny import Case, Variant, model

from hvlm import assembly
from hvlm.data import shard_index
from hvlm.data.cache import ClipCache
from hvlm.data.datamodule import DataModule
from hvlm.data.order import SampleRef
from hvlm.data.quarantine import Quarantine
from hvlm.data.reader import Reader, SampleSpec
from hvlm.data.shard_index import index_shard, load_manifest, write_manifest, write_shard
from hvlm.data.sources import Span, content
from hvlm.data.stream import check_url, samples_of
from hvlm.data.views import Captions, Pairs, Questions
from hvlm.dataset.shards import Shards, split_of
from hvlm.errors import UserError
from hvlm.io.files import file_sha256, safe_name
from hvlm.prepare.formats import _tar as tar_format
from hvlm.stage.dpo import pair_key
from hvlm.text.chat import Chat
from hvlm.text.tokenizer import train_word_tokenizer
from hvlm.types import InputSpec

RED, GREEN = (encode(pictures(8, colour=colour)) for colour in ((255, 0, 0), (0, 255, 0)))


def tar(path: Path, members: list[tuple[str, bytes | dict]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            data = json.dumps(data).encode() if isinstance(data, dict) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def clip(key: str, text: str = "a dog", video: bytes = VIDEO, **more) -> list[tuple[str, bytes | dict]]:
    return [(f"{key}.mp4", video), (f"{key}.json", {"caption": text} | more)]


def prepared(folder: Path) -> Shards:
    made = Shards(str(folder))
    made.prepare()
    return made


def reader(data: Shards, view=None, split: str = "train", **more) -> Reader:
    talk = more.pop("chat", FakeChat())
    inputs = InputSpec("question_first", 4, 64)
    spec = SampleSpec(talk, view or Captions(), None, "answer", inputs, None, 1, **more)
    return Reader(data.manifest().split(split), None, spec, Quarantine(1.0), replace=False)


def module(folder: Path, access: str = "index", view=None, **settings) -> DataModule:
    return DataModule(
        Shards(str(folder), access=access, **settings), FakeChat(), InputSpec("question_first", 4, 64),
        view=view or Captions(), rows_per_clip=1, loss="answer", batch_size=1, steps=12, num_workers=0, seed=3,
    )  # fmt: skip


def batch_of(reading: Reader):
    return reading.__getitems__([SampleRef(0, i) for i in range(len(reading.clips))])


# ------------------------------------------------------------------------------------------------- writing and indexing


def test_a_shard_depends_on_its_samples_alone_and_reads_back_by_offset(tmp_path):
    rows = [(f"k{i}", {"json": b"{}" * i, "mp4": bytes([i]) * 700 * i}) for i in range(5)]
    first = write_shard(tmp_path / "train-0.tar", rows, "train", ["general"] * 5)
    second = write_shard(tmp_path / "again.tar", iter(rows), "train", ["general"] * 5)
    assert first == second and first["count"] == 5
    (tmp_path / "again.tar").unlink()
    write_manifest(tmp_path, {"a": 1}, {"train-0.tar": first}, [])
    manifest = load_manifest(tmp_path)
    manifest.verify(full=True)
    split = manifest.split("train")
    assert [split.read(i) for i in range(5)] == [fields for _, fields in rows]
    assert pickle.loads(pickle.dumps(split)).read(3) == rows[3][1]
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(UserError, match="no split 'val'.*train"):
        manifest.split("val")


@pytest.mark.fault(25, 26)
def test_verify_names_the_shard_and_both_numbers(tmp_path):
    dataset(tmp_path, {"train": 3})
    path = tmp_path / "train-000000.tar"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"moov") + 20] ^= 1
    path.write_bytes(flipped)
    load_manifest(tmp_path).verify(full=False)
    with pytest.raises(UserError, match="train-000000.tar: sha256"):
        load_manifest(tmp_path).verify(full=True)
    with pytest.raises(UserError, match="sha256"):  # a run compares hashes of data this small
        module(tmp_path).prepare_data()
    path.write_bytes(whole[:-512])
    with pytest.raises(UserError, match=f"{len(whole) - 512} bytes on disk, {len(whole)} in the manifest"):
        load_manifest(tmp_path).verify(full=False)
    path.unlink()
    with pytest.raises(UserError, match="shard is missing"):
        load_manifest(tmp_path).verify(full=False)
    value = json.loads((tmp_path / "manifest.json").read_text())
    value["shards"]["train-000000.tar"]["count"] = 4
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    path.write_bytes(whole)
    with pytest.raises(UserError, match="count is 4, but 3"):
        load_manifest(tmp_path).verify(full=False)


@pytest.mark.fault(20, 21, 22, 26, 33)
@pytest.mark.parametrize("damage", ["inside a member", "between members", "header", "compressed", "not a tar"])
def test_indexing_notices_what_tarfile_passes_over(tmp_path, damage):
    path = tmp_path / "train-000000.tar"
    rows = [(f"k{i}", {"json": b"{}", "mp4": b"x" * 900}) for i in range(4)]
    entry = write_shard(path, rows, "train", ["general"] * 4)
    whole = path.read_bytes()
    header = entry["samples"][2]["members"]["json"][0] - 512
    if damage == "inside a member":
        path.write_bytes(whole[: header - 600])
    elif damage == "between members":
        path.write_bytes(whole[:header])
    elif damage == "header":
        path.write_bytes(whole[: header + 100] + b"\xff\xff" + whole[header + 102 :])
    elif damage == "compressed":
        path.unlink()
        with tarfile.open(path, "w:gz") as tar:
            tar.add(__file__, "k.txt")
    else:
        path.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(UserError, match="train-000000.tar"):
        index_shard(path, "train")


@pytest.mark.fault(29, 30, 31)
def test_keys_and_members_that_could_do_harm(tmp_path):
    for key in ("../up", "/root", "a\0b", "a/../b", ""):
        with pytest.raises(UserError, match="refused"):
            write_shard(tmp_path / "a.tar", [(key, {"json": b"{}"})], "train", ["general"])
    with pytest.raises(UserError, match="'pth'"):
        write_shard(tmp_path / "a.tar", [("k", {"pth": b""})], "train", ["general"])
    assert not list(tmp_path.iterdir())
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for name in ("k.json", "k.pyd", "k.mp4"):
            tar.addfile(tarfile.TarInfo(name))
    assert set(index_shard(tmp_path / "b.tar", "train")["samples"][0]["members"]) == {"json", "mp4"}
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../k.json"))
    with pytest.raises(UserError, match="refused"):
        index_shard(tmp_path / "b.tar", "train")
    for url in ("pipe:touch owned", "s3://b/a.tar", "file:/a.tar", "a.tar.gz"):
        with pytest.raises(UserError, match="refused"):
            check_url(url)


def test_a_folder_without_manifest_is_indexed_once(tmp_path):
    dataset(tmp_path, {"train": 9, "val": 2})
    made = json.loads((tmp_path / "manifest.json").read_text())["shards"]
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "train-000001.tar").rename(tmp_path / "more.tar")
    data = Shards(str(tmp_path))
    data.prepare()
    found = data.manifest().shards
    assert found["train-000000.tar"]["sha256"] == made["train-000000.tar"]["sha256"]
    assert found["more.tar"]["split"] == "train" and found["val-000000.tar"]["split"] == "val"
    assert "what shape ?" in set(data.texts())
    (tmp_path / "new.tar").write_bytes((tmp_path / "more.tar").read_bytes())
    with pytest.raises(UserError, match="1 shards are not in manifest.json"):
        data.prepare()
    with pytest.raises(UserError, match="one existing folder"):
        Shards(str(tmp_path / "nowhere")).prepare()
    with pytest.raises(UserError, match="per-patch labels"):
        data.label_counts()


def test_opening_many_shards_keeps_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "MAX_OPEN", 2)
    split = load_manifest(dataset(tmp_path, {"train": 30})).split("train")
    before = len(os.listdir("/proc/self/fd"))
    for i in range(30):
        split.read(i)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


# ------------------------------------------------------------------------------------------------------- who is who


@pytest.fixture
def equal_keys(tmp_path) -> Path:
    """Two training shards and a validation shard whose keys all begin at 000."""
    pair = {"user": "q", "chosen_assistant": "x", "rejected_assistant": "y"}
    tar(tmp_path / "train-0.tar", [("000.mp4", RED), ("000.json", pair)])
    tar(tmp_path / "train-1.tar", [("000.mp4", GREEN), ("000.json", pair)])
    tar(tmp_path / "val-0.tar", [("000.mp4", GREEN), ("000.json", pair)])
    return tmp_path


@pytest.mark.fault(66)
def test_equal_keys_in_two_shards_keep_their_own_features(equal_keys):
    vlm = model(Case("question_first", (Variant("connector", "patches"),)))
    size = vlm.vision.image_size
    data = prepared(equal_keys)
    spec = SampleSpec(FakeChat(), Captions(), None, "answer", InputSpec("question_first", 2, size), None, 1)
    batch = batch_of(Reader(data.manifest().split("train"), None, spec, Quarantine(1.0), replace=False))
    assert batch.uids == ["train/train-0/000", "train/train-1/000"]
    features = assembly.features_for(vlm, data.manifest())
    with torch.no_grad():
        kept = features.encode(batch).tokens.x_BSD
        anew = vlm.vision.encode(batch.frames_BTCHW, batch.frame_time_BT, batch.frame_mask_BT).tokens.x_BSD
    assert not torch.equal(kept[0], kept[1]) and (kept - anew).abs().max() < 0.05 * anew.abs().max()


@pytest.mark.fault(66)
def test_equal_keys_keep_their_own_decoded_clips(equal_keys, monkeypatch):
    monkeypatch.setattr("hvlm.data.reader.SHARED", ClipCache())
    data = prepared(equal_keys)
    frames = []
    for split in ("train", "val"):
        reading = reader(data, split=split)
        reading.cache_bytes = 1 << 30
        frames += list(batch_of(reading).frames_BTCHW)
    red = [int(f[0, 0, 5, 5]) for f in frames]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60


@pytest.mark.fault(66)
def test_equal_keys_have_their_own_rows_in_the_references_table(equal_keys):
    data = prepared(equal_keys)
    rows = [row for split in ("train", "val") for row in batch_of(reader(data, Pairs(), split)).rows]
    names = [pair_key(row) for row in rows]
    assert len(set(names)) == len(names) == 6 and {row["key"] for row in rows} == {"000"}
    assert len({row["pair"] for row in rows}) == 3


@pytest.mark.fault(66)
def test_a_bad_samples_line_says_which_of_the_equal_keys(equal_keys, tmp_path):
    tar(equal_keys / "train-1.tar", [("000.mp4", b"no video"), ("000.json", {"caption": "x"})])
    (equal_keys / "manifest.json").unlink(missing_ok=True)
    reading = reader(prepared(equal_keys))
    reading.quarantine.path = tmp_path / "quarantine.jsonl"
    batch_of(reading)
    line = json.loads((tmp_path / "quarantine.jsonl").read_text(encoding="utf-8"))
    assert (line["uid"], line["key"]) == ("train/train-1/000", "000")


@pytest.mark.fault(99)
def test_data_are_what_they_hold_not_where_they_lie(tmp_path):
    (tmp_path / "a").mkdir()
    dataset(tmp_path / "a", {"train": 3})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, copy = load_manifest(tmp_path / "a"), load_manifest(tmp_path / "b")
    assert first.identity == copy.identity == load_manifest(Path(f"{tmp_path}/a/")).identity
    (tmp_path / "b/manifest.json").unlink()
    assert prepared(tmp_path / "b").manifest().identity != first.identity  # indexing gives every clip one domain
    tar(tmp_path / "b/train-000000.tar", clip("a"))
    (tmp_path / "b/manifest.json").unlink()
    other = prepared(tmp_path / "b").manifest()
    assert other.identity not in (first.identity, copy.identity)


@pytest.mark.fault(67)
@pytest.mark.parametrize(
    "key", ["../../../up", "/root/x", "a/b", "..", ".hidden", "", "x" * 500, "a\0b", "naïve", "a b"]
)
def test_names_of_files_stay_in_their_folder(tmp_path, key):
    name = safe_name("test", "test-000000", key, "q0")
    assert (tmp_path / name).resolve().parent == tmp_path.resolve() and len(name) < 150
    (tmp_path / name).touch()
    assert name != safe_name("test", "test-000000", f"{key}_", "q0")
    assert not safe_name(key).startswith(".") and "/" not in safe_name(key) and safe_name(key)


@pytest.mark.fault(67)
def test_plain_names_stay_as_they_are_and_joints_are_no_part_of_them():
    assert safe_name("test", "test-000000", "easy-1", "q0") == "test+test-000000+easy-1+q0"
    assert safe_name("a/b") != safe_name("a_b") and safe_name("a+b") != safe_name("a", "b")


# ------------------------------------------------------------------------------------------------- members and splits


@pytest.mark.fault(101)
def test_capital_endings_are_read(tmp_path):
    still = io.BytesIO()
    from PIL import Image

    Image.fromarray(pictures(1)[0]).save(still, "PNG")
    members = [("a.MP4", VIDEO), ("a.JSON", {"caption": "x"}), ("b.000.PNG", still.getvalue()), ("b.TXT", b"y")]
    tar(tmp_path / "train-0.tar", members)
    data = prepared(tmp_path)
    assert [row["answer"] for row in batch_of(reader(data)).rows] == ["x", "y"]
    assert {key: sorted(found) for key, found in samples_of(str(tmp_path / "train-0.tar"))} == {
        "a": ["json", "mp4"], "b": ["000.png", "txt"]
    }  # fmt: skip
    value = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    members = value["shards"]["train-0.tar"]["samples"][0]["members"]
    members["MP4"] = members.pop("mp4")  # as an earlier index wrote it
    (tmp_path / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    assert set(data.manifest().split("train").read(0)) == {"json", "mp4"}


@pytest.mark.fault(101)
def test_what_macos_puts_beside_files_is_passed_over(tmp_path):
    tar(
        tmp_path / "train-0.tar",
        [("._a.mp4", b"\0\5\x16\7"), (".DS_Store", b""), ("__MACOSX/._a.json", b"")] + clip("a"),
    )
    tar(tmp_path / "._train-0.tar", [])
    assert prepared(tmp_path).manifest().split("train").keys == ["a"]
    assert [key for key, _ in samples_of(str(tmp_path / "train-0.tar"))] == ["a"]


@pytest.mark.fault(101)
def test_names_in_a_tar_do_not_depend_on_the_locale(tmp_path, monkeypatch):
    tar(tmp_path / "train-0.tar", clip("Müller"))
    raw = tarfile.TarInfo("x.txt")
    raw.size = 1
    with open(tmp_path / "train-1.tar", "wb") as file:
        header = bytearray(raw.tobuf(tarfile.USTAR_FORMAT))
        header[:6] = b"M\xfcl.tx"  # Latin-1, as old programs write
        header[6:8] = b"t\0"
        header[148:156] = b"        "
        header[148:156] = b"%06o\0 " % sum(header)
        file.write(bytes(header) + b"y".ljust(512, b"\0") + bytes(1024))
    monkeypatch.setattr(tarfile, "ENCODING", "iso-8859-1")
    keys = prepared(tmp_path).manifest().split("train").keys
    assert keys == ["Müller", "M\\xfcl"]
    (tmp_path / "manifest.json").unlink()
    monkeypatch.setattr(tarfile, "ENCODING", "utf-8")
    assert prepared(tmp_path).manifest().split("train").keys == keys
    assert reader(prepared(tmp_path)).show._rng(0, keys[1]).random() >= 0


@pytest.mark.fault(86)
def test_a_shards_name_says_its_split():
    said = {
        "train-000000.tar": "train", "val-0.tar": "val", "validation-00.tar": "val", "valid_0.tar": "val",
        "dev.0.tar": "val", "Test-1.tar": "test", "ucf101-test-0003.tar": "test", "msrvtt_val2.tar": "val",
        "text-000000.tar": "text", "text.tar": "train", "more.tar": "train", "testimonials-0.tar": "train",
        "000123.tar": "train", "hard-text-0.tar": "train",
    }  # fmt: skip
    assert {name: split_of(name) for name in said} == said
    for name in ("train-test-0.tar", "text-val-0.tar"):
        with pytest.raises(UserError, match=f"{name}: its name says .* and "):
            split_of(name)


@pytest.mark.fault(86)
def test_a_stream_of_a_folder_leaves_out_what_is_held_out(tmp_path):
    for name in ("train-0", "validation-0", "text-0", "more"):
        tar(tmp_path / f"{name}.tar", clip("a"))
    urls = Shards(str(tmp_path), access="stream").urls()
    assert [Path(url).name for url in urls] == ["more.tar", "train-0.tar"]


@pytest.mark.fault(80)
def test_a_vocabulary_has_the_words_of_every_split_and_costs_no_video(tmp_path, monkeypatch):
    tar(tmp_path / "train-0.tar", clip("a", "alpha"))
    turns = [{"role": "user", "content": "beta"}, {"role": "assistant", "content": "gamma"}]
    tar(tmp_path / "text-0.tar", [("t.json", {"messages": turns})])
    tries = [{"options": ["delta", "epsilon"], "gold": 0}]
    asked = {"questions": [{"question": "zeta", "answer": "delta", "lettered": True, "tries": tries}]}
    tar(tmp_path / "test-0.tar", [("q.mp4", VIDEO), ("q.json", asked)])
    data, reads, pread = prepared(tmp_path), [], os.pread
    monkeypatch.setattr(shard_index.os, "pread", lambda fd, size, offset: reads.append(size) or pread(fd, size, offset))
    words = " ".join(data.texts())
    for word in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "A. delta", "letter"):
        assert word in words
    assert max(reads) < 1000 < len(VIDEO)


# ------------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.fault(95)
def test_a_tar_that_goes_on_after_its_end_is_refused(tmp_path):
    first, second = tar(tmp_path / "a", clip("a")), tar(tmp_path / "b", clip("b"))
    joined = tmp_path / "train-0.tar"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(UserError, match=r"train-0.tar: the tar ends after 1 samples at byte .*joined by cat"):
        index_shard(joined, "train")
    with pytest.raises(UserError, match="joined by cat"):
        list(samples_of(str(joined)))
    joined.write_bytes(first.read_bytes() + bytes(50_000))  # padding, as tapes have it, is no content
    assert index_shard(joined, "train")["count"] == 1 and len(list(samples_of(str(joined)))) == 1


@pytest.mark.fault(21)
@pytest.mark.parametrize("cut", [512, 1024])
def test_a_stream_notices_a_cut_between_two_members(tmp_path, cut):
    path = tar(tmp_path / "train-0.tar", clip("a") + clip("b"))
    at = index_shard(path, "train")["samples"][1]["members"]["mp4"][0] - 512
    path.write_bytes(path.read_bytes()[:at] + bytes(cut - 512))
    with pytest.raises(UserError, match="without an end mark"):
        list(samples_of(str(path)))


def sparse_tar(path: Path, size: int) -> Path:
    """A GNU sparse member: one block of data that unfolds to ``size`` bytes."""
    info = tarfile.TarInfo("a.mp4")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398] = b"%011o\0" % (size - 512)
    header[398:410] = b"%011o\0" % 512
    header[483:495] = b"%011o\0" % size
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + bytes(512) + bytes(10240 - 1024))
    return path


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("place", [0, 1])
def test_a_header_that_claims_gigabytes_is_refused_before_they_are_allocated(tmp_path, kind, place):
    path = tar(tmp_path / "train-0.tar", clip("a"))
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 7 << 30
    whole = path.read_bytes().rstrip(b"\0") if place else b""
    whole += bytes(-len(whole) % 512) + info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    path.write_bytes(whole)
    for read in (
        lambda: index_shard(path, "train"),
        lambda: list(samples_of(str(path))),
        lambda: list(tar_format.samples(path)),
    ):
        with pytest.raises(UserError, match=r"train-0.tar: .*an extended header claims 7,516,192,768 bytes"):
            refused_within(32 << 20, read)


def test_a_member_that_claims_more_than_there_is_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "train-0.tar"
    info = tarfile.TarInfo("a.jpg")
    info.size = 7 << 30
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(UserError, match=r"train-0.tar: .*a.jpg claims 7,516,192,768 bytes, more than there are"):
        refused_within(32 << 20, lambda: list(tar_format.samples(path)))


@pytest.mark.fault(79)
def test_a_sparse_member_is_refused(tmp_path):
    path = sparse_tar(tmp_path / "train-0.tar", 1_750_000_000)
    with tarfile.open(path) as file:
        assert file.getmembers()[0].size == 1_750_000_000
    with pytest.raises(UserError, match="'a.mp4' is a sparse file"):
        index_shard(path, "train")
    with pytest.raises(UserError, match="'a.mp4' is a sparse file"):
        list(samples_of(str(path)))


@pytest.mark.fault(79)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m, size: m["json"].__setitem__(slice(None), m["mp4"]), "share bytes"),
        (lambda m, size: m["mp4"].__setitem__(1, m["mp4"][1] + 10**9), "share bytes|ends at byte"),
        (lambda m, size: m["json"].__setitem__(0, size), "ends at byte"),
        (lambda m, size: m["json"].__setitem__(0, -512), "at -512"),
        (lambda m, size: m["json"].__setitem__(1, -1), "-1 bytes"),
        (lambda m, size: m["json"].__setitem__(1, 1.5), "1.5 bytes"),
        (lambda m, size: m.__setitem__("json", 7), "malformed"),
    ],
)
def test_a_manifests_members_lie_inside_the_shard_and_share_no_byte(tmp_path, change, said):
    tar(tmp_path / "train-0.tar", clip("a") + clip("b"))
    prepared(tmp_path)
    value = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    shard = value["shards"]["train-0.tar"]
    change(shard["samples"][1]["members"], shard["bytes"])
    (tmp_path / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        load_manifest(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.fault(72, 96)
def test_bad_samples_are_left_out_and_the_run_goes_on(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]
    bad = [{"captions": [None]}, {"caption": None}, {"fps": 0, "caption": "x"}, {"questions": [1]}, {"messages": {}}]
    members = [m for i, value in enumerate(bad) for m in ((f"bad{i}.mp4", VIDEO), (f"bad{i}.json", value))]
    members += [("deep.mp4", VIDEO), ("deep.json", b'{"m":' + b"[" * 10**5 + b"]" * 10**5 + b"}")]
    tar(tmp_path / "train-0.tar", members + clip("ok") + [("chat.mp4", VIDEO), ("chat.json", {"messages": turns})])
    data = prepared(tmp_path)
    for view, shown in ((Captions(), ["ok", "chat"]), (Questions(), ["chat"]), (Pairs(), [])):
        reading = reader(data, view)
        batch = batch_of(reading)
        assert [row["key"] for row in (batch.rows if batch else [])] == shown
        assert reading.quarantine.bad == len(bad) + 1
    assert "a dog" in set(data.texts())


@pytest.mark.fault(108)
def test_a_conversation_is_one_row_with_every_answer_a_target(tmp_path):
    turns = [("human", "<video>\nwhat ?"), ("gpt", "a ring"), ("human", "and then ?"), ("gpt", "a dot")]
    value = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    tar(tmp_path / "train-0.tar", [("a.mp4", VIDEO), ("a.json", value)])
    data = prepared(tmp_path)
    chat = Chat(train_word_tokenizer(data.texts()), "tiny")
    reading = reader(data, Questions(), chat=chat)
    batch = batch_of(reading)
    ids, targets = batch.input_ids_KS[0].tolist(), batch.loss_mask_KS[0].tolist()
    said = chat.encode("and then ?", "a dot", before=[("what ?", "a ring")])
    assert (ids, targets) == (said.ids, said.loss_mask)
    assert [chat.decode([i]) for i, wanted in zip(ids, targets, strict=True) if wanted] == [
        "a", "ring", "", "a", "dot", "",
    ]  # fmt: skip
    assert int(batch.visual_at_K[0]) == 3 and chat.decode(ids[:3]) == "what ?"


@pytest.mark.fault(110)
def test_training_says_which_words_it_could_not_read_and_how_much_was_cut(tmp_path, caplog):
    tar(tmp_path / "train-0.tar", clip("a", "a zebra") + clip("b", "a very long text of a dog"))
    chat = Chat(train_word_tokenizer(["Describe this.", "a very long text of dog"]), "tiny")
    made = DataModule(
        Shards(str(tmp_path), max_tokens=8, too_long="cut"), chat, InputSpec("question_first", 4, 64),
        view=Captions(), rows_per_clip=1, loss="answer", batch_size=2, steps=3, num_workers=0, seed=3,
    )  # fmt: skip
    made.prepare_data()
    assert [batch.input_ids_KS.shape[1] for batch in made.train_dataloader()] == [8, 8, 8]
    caplog.clear()
    made.say_notes()
    cut, unknown = caplog.messages
    assert cut == "dataset.too_long=cut: 3 texts were cut to dataset.max_tokens=8, e.g. b"
    assert unknown.startswith("3 words in 3 texts are outside the vocabulary: 'zebra'; the model reads <|unk|>")


@pytest.mark.fault(108)
def test_shards_without_a_text_that_can_be_read_say_what_they_have(tmp_path):
    tar(tmp_path / "train-0.tar", [("a.mp4", VIDEO), ("a.json", {"Frage": "x"}), ("b.mp4", VIDEO), ("b.json", b"{")])
    with pytest.raises(UserError, match="none of 2 samples can be read; the first: a: json: .* it has Frage; expected"):
        list(prepared(tmp_path).texts())


@pytest.mark.fault(98, 86)
def test_a_text_beyond_max_tokens_is_a_bad_sample(tmp_path):
    tar(tmp_path / "train-0.tar", clip("long", "x" * 50_000) + clip("short"))
    reading = reader(prepared(tmp_path), max_tokens=Shards(".").max_tokens)
    reading.quarantine.path = tmp_path / "quarantine.jsonl"
    assert batch_of(reading).input_ids_KS.shape == (1, len("Describe this.a dog"))
    line = json.loads((tmp_path / "quarantine.jsonl").read_text(encoding="utf-8"))
    assert line["key"] == "long" and "50,014 tokens" in line["error"] and "dataset.max_tokens=2048" in line["error"]
    made = module(tmp_path, max_tokens=10)
    with pytest.raises(UserError, match="has captions to show with num_frames=4; sample more frames"):
        next(iter(made.train_dataloader()))


@pytest.mark.fault(108)
def test_data_without_what_the_stage_learns_name_the_stage_that_learns_what_they_have(tmp_path):
    asked = {"questions": [{"question": "what?", "answer": "a dog"}]}
    tar(tmp_path / "q" / "train-0.tar", [("a.mp4", VIDEO), ("a.json", asked)])
    prepared(tmp_path / "q")
    with pytest.raises(UserError, match="samples hold questions, no captions: give them captions, or train stage=sft"):
        next(iter(module(tmp_path / "q").train_dataloader()))
    tar(tmp_path / "c" / "train-0.tar", [("a.mp4", VIDEO), ("a.json", {"captions": ["a dog"]})])
    prepared(tmp_path / "c")
    with pytest.raises(UserError, match="the samples hold captions, no questions: .*stage=align"):
        next(iter(module(tmp_path / "c", view=Questions()).train_dataloader()))


# ------------------------------------------------------------------------------------------------- manifests and sums


@pytest.mark.fault(99)
def test_a_read_only_folders_manifest_lives_in_the_cache_folder(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    tar(folder / "train-0.tar", clip("a"))
    monkeypatch.setenv("HVLM_CACHE", str(tmp_path / "cache"))
    access = os.access  # tests may run as root, who may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    data = prepared(folder)
    assert [p.name for p in folder.iterdir()] == ["train-0.tar"]
    (kept,) = (tmp_path / "cache/manifests").iterdir()
    before = kept.stat().st_mtime_ns
    data.manifest().verify(full=True)
    assert prepared(folder).manifest().split("train").keys == ["a"] and kept.stat().st_mtime_ns == before
    tar(folder / "train-0.tar", clip("a") + clip("b"))  # other content is another manifest
    assert prepared(folder).manifest().split("train").keys == ["a", "b"]


def _index(folder: str) -> None:
    replace = os.replace

    def slow(*names):
        import time

        time.sleep(0.5)
        return replace(*names)

    os.replace = slow
    Shards(folder).prepare()


@pytest.mark.fault(99)
def test_two_runs_may_index_one_folder_at_once(tmp_path):
    tar(tmp_path / "train-0.tar", clip("a"))
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_index, args=(str(tmp_path),)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "train-0.tar"]


STARTS = """
import locale, sys
from hvlm.dataset.shards import Shards
from hvlm.training.run_dir import RunDir
assert locale.getpreferredencoding(False).lower().replace("_", "-") not in ("utf-8", "utf8"), "the locale was not taken"
for _ in range(2):
    data = Shards(sys.argv[1])
    data.prepare()
    folder = RunDir("a", "sft", sys.argv[2])
    folder.prepare({"dataset": {"path": sys.argv[1], "domain": "caf\\xe9"}, "stage": {}, "trainer": {}})
    (folder.checkpoints / "step-1.ckpt").touch()
print(ascii(data.manifest().split("train").keys))
"""


@pytest.mark.fault(101)
def test_a_second_start_works_in_a_folder_with_accents_whatever_the_locale(tmp_path):
    folder = tmp_path / "données"
    tar(folder / "train-0.tar", clip("clé"))
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # text is ASCII, which is less than Latin-1
    done = subprocess.run(
        [sys.executable, "-c", STARTS, folder, tmp_path / "runs"],
        env=os.environ | plain, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ascii(["clé"])


@pytest.mark.fault(84)
def test_a_shard_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    tar(tmp_path / "train-0.tar", clip("a"))
    tar(tmp_path / "val-0.tar", clip("a"))
    hashed: Counter[str] = Counter()
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda f, name: hashed.update([Path(f.name).name]) or digest(f, name))
    for _ in range(5):
        prepared(tmp_path).manifest().verify(full=True)
    assert hashed == {"train-0.tar": 1, "val-0.tar": 1}
    path = tmp_path / "val-0.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="val-0.tar: sha256"):
        load_manifest(tmp_path).verify(full=True)
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest() and hashed["val-0.tar"] == 2


@pytest.mark.fault(84)
def test_what_was_just_written_is_not_read_again(tmp_path, monkeypatch):
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *of: hashed.append(1) or digest(*of))
    load_manifest(dataset(tmp_path, {"train": 3})).verify(full=True)
    assert len(hashed) == 1


# ------------------------------------------------------------------------------------------------------------- streams


@pytest.mark.fault(78)
def test_a_stream_varies_a_sample_when_it_comes_back(tmp_path):
    questions = [{"question": f"q{i}", "answer": "a"} for i in range(6)]
    tar(tmp_path / "train-0.tar", [("a.mp4", VIDEO), ("a.json", {"questions": questions})])
    made = module(tmp_path, "stream", Questions())
    stream = made.train_dataloader().stream
    samples = [
        sample for sample, _ in zip(stream._samples([{"url": u} for u in stream.urls * 4]), range(4), strict=False)
    ]
    assert [sample.epoch for sample in samples] == [0, 1, 2, 3]
    asked = [stream._try(sample).rows[0][-1]["question_id"] for sample in samples]
    clips = prepared(tmp_path).manifest().split("train")
    indexed = Reader(clips, None, stream.show, Quarantine(1.0), replace=False)
    same = [indexed._item(SampleRef(epoch, 0)).rows[0][-1]["question_id"] for epoch in range(4)]
    assert asked == same and len(set(asked)) > 1
    drawn = [batch.rows[0]["question_id"] for batch in made.train_dataloader()]
    assert len(set(drawn)) > 1


def test_no_two_readers_of_a_stream_share_an_epoch(tmp_path):
    from hvlm.data.stream import Stream

    tar(tmp_path / "train-0.tar", clip("a"))
    url = str(tmp_path / "train-0.tar")
    seen = []
    for rank in (0, 1):
        stream = Stream([url], None, None, batch_size=1, domain="d", seed=0, start=5, rank=rank, world=2)
        seen += [sample.epoch for sample in stream._samples([{"url": url}] * 3)]
    assert len(set(seen)) == 6 and min(seen) >= 10


# ------------------------------------------------------------------------------------------------------- long videos


def test_a_long_video_is_decoded_from_the_shard_and_gives_the_same_batches(tmp_path, monkeypatch):
    folder = tmp_path / "a, b: c"
    folder.mkdir()
    clips = load_manifest(dataset(folder, {"train": 4})).split("train")
    assert all(type(data) is bytes for data in clips.sources(0).values())

    def frames(**limits: float) -> list[torch.Tensor]:
        view = Questions()
        show = SampleSpec(FakeChat(), view, 1, "answer", InputSpec("question_first", 8, 64), None, 0, **limits)
        reader = Reader(clips, None, show, Quarantine(0.0), replace=False)
        return [reader.__getitems__([SampleRef(i, 0)]).frames_BTCHW for i in range(4)]

    short = frames()
    monkeypatch.setattr(shard_index, "LONG", len(VIDEO))
    assert type(clips.sources(0)["json"]) is bytes and content(clips.sources(0)["mp4"]) == VIDEO
    assert isinstance(clips.sources(0)["mp4"], Span)
    monkeypatch.setattr(clips, "read", None)  # nobody takes the whole sample into memory
    for long in (frames(), frames(decode_timeout=60.0), frames(decoder="decord")):
        assert all(torch.equal(a, b) for a, b in zip(short, long, strict=True))


def test_a_long_video_that_was_cut_off_stops_the_run(tmp_path, monkeypatch):
    clips = load_manifest(dataset(tmp_path, {"train": 1})).split("train")
    monkeypatch.setattr(shard_index, "LONG", 1)
    last = clips.sources(0)["mp4"]
    os.truncate(last.path, last.offset + last.size - 1)
    with pytest.raises(UserError, match="train0000.mp4 .*the shard was cut"):
        clips.sources(0)
