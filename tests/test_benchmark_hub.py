"""A benchmark's copy from the hub, of which a small server on this machine takes the place."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from _memory import refused_within
from test_published_benchmarks import made, parquet, prompts

from hvlm.config.check import check_files
from hvlm.config.compose import compose
from hvlm.console import size_in_words
from hvlm.data import hub_copy
from hvlm.data.shard_index import index_shard
from hvlm.data.stream import samples_of
from hvlm.errors import UserError

SHA = "c" * 40
REPO = "lmms-lab/Video-MME"


def table() -> bytes:
    import pyarrow

    row = {"duration": "short", "domain": "Sports", "sub_category": "x", "videoID": "-aB", "task_type": "OCR"}
    row |= {"question": "What?", "options": ["A. Red.", "B. Blue."], "answer": "B"}
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "question_id": f"001-{i}"} for i in (1, 2, 3)]), out)
    return out.getvalue()


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return out.getvalue()


class Files(dict[str, bytes]):
    """What is on the main branch, at the commit ``sha``. older: {commit: its files}."""

    sha = SHA

    def __init__(self) -> None:
        self.older: dict[str, dict[str, bytes]] = {}

    def moves(self, sha: str) -> None:
        """Main goes on to another commit, empty at first."""
        self.older[self.sha] = dict(self)
        self.sha = sha
        self.clear()

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """(commit, its files) of a branch or commit."""
        return (revision, self.older[revision]) if revision in self.older else (self.sha, self)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, bytes], list[str]]]:
    """({file: what is in it}, files that were fetched)."""
    files = Files()
    fetched: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith("/api/datasets/" + REPO):
                of = path.partition("/revision/" if "/revision/" in path else "/tree/")[2].partition("/")[0]
                sha, held = files.at(of)
                said: Any = [{"rfilename": name, "size": len(data)} for name, data in held.items()]
                said = {"id": REPO, "sha": sha, "siblings": said}
                if "/tree/" in path:
                    said = [
                        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in held.items()
                    ]
                return self.answer(json.dumps(said).encode(), "application/json")
            of, _, name = path.removeprefix(f"/datasets/{REPO}/resolve/").partition("/")
            sha, held = files.at(of)
            if name not in held:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                return self.end_headers()
            if self.command == "GET":
                fetched.append(name)
            return self.answer(held[name], "application/octet-stream", sha)

        def answer(self, data: bytes, kind: str, sha: str = "") -> None:
            self.send_response(200)
            for key, value in {
                "Content-Type": kind, "Content-Length": str(len(data)), "X-Repo-Commit": sha,
                "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            }.items():  # fmt: skip
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    for name in ("huggingface_hub.constants", "huggingface_hub.hf_api", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{name}.ENDPOINT", address, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip  # noqa: E501
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HVLM_CACHE", str(tmp_path / "cache"))
    Thread(target=server.serve_forever, daemon=True).start()
    yield files, fetched
    server.shutdown()
    server.server_close()


def test_what_is_fetched_is_said_and_asked_for(hub: tuple[dict[str, bytes], list[str]], tmp_path: Path) -> None:
    files, fetched = hub
    files |= {"README.md": b"#", "videomme/test-00000-of-00001.parquet": table(), "other.bin": b"1" * 50}
    files |= {"videos_chunked_01.zip": zipped(**{"data__-aB.mp4": b"a video"}), "subtitle.zip": zipped(a=b"")}
    files["videomme/test-old/0.parquet"] = b"a table of another folder"
    check_files(compose(["benchmark=videomme", "benchmark.path=hub", "benchmark.subtitles=subtitle"]))
    size = size_in_words(len(files["videos_chunked_01.zip"]) + len(files["subtitle.zip"]))
    with pytest.raises(UserError) as error:
        made("videomme", "hub").source(None)
    said = str(error.value)
    assert said.startswith(f"benchmark.path=hub: {REPO} is not here yet: 1 file (") and "\n" not in said
    assert f"and 2 files ({size}) of videos; benchmark.download=questions fetches the former" in said
    assert not fetched and not (tmp_path / "cache").exists(), "nothing is fetched unasked"

    with pytest.raises(UserError, match="of lmms-lab/Video-MME only the questions are here; name the videos with"):
        made("videomme", "hub", download="questions").source(None)
    assert fetched == ["videomme/test-00000-of-00001.parquet"]
    own = tmp_path / "own"
    own.mkdir()
    (own / "-aB.mp4").write_bytes(b"a video")
    assert len(prompts(made("videomme", "hub", videos=str(own)))) == 3

    benchmark = made("videomme", "hub", download="all")
    assert [Path(name).name for name in benchmark.source(None).shards] == ["-aB.mp4"]
    assert sorted(fetched) == ["subtitle.zip", "videomme/test-00000-of-00001.parquet", "videos_chunked_01.zip"]
    assert benchmark.folder == benchmark.root / "data" and not (benchmark.root / "subtitle.zip").exists()
    assert benchmark.protocol()["hub"] == f"{REPO}@{SHA}"


def test_a_copy_that_is_here_needs_no_hub(
    hub: tuple[dict[str, bytes], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, fetched = hub
    files |= {"videomme/test-00000-of-00001.parquet": table(), "v.zip": zipped(**{"data__-aB.mp4": b"a video"})}
    made("videomme", "hub", download="all").source(None)
    before = list(fetched)
    files.clear()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", "http://127.0.0.1:9", raising=False)
    for download in (None, "questions", "all"):
        assert len(made("videomme", "hub", download=download).source(None)) == 1
    assert fetched == before
    with pytest.raises(UserError, match=r"the Hugging Face hub cannot be reached \(.*; go online, or name your local"):
        made("videomme", "hub", hub="someone/else").source(None)


def test_what_was_unpacked_before_a_kill_is_not_fetched_again(
    hub: tuple[dict[str, bytes], list[str]], tmp_path: Path
) -> None:
    files, fetched = hub
    files |= {"videomme/test-0.parquet": table(), "a.zip": zipped(**{"data__-aB.mp4": b"a video"})}
    files |= {"b.zip": b"no archive"}
    with pytest.raises(UserError, match="benchmark.download: .*b.zip cannot be unpacked .File is not a zip"):
        made("videomme", "hub", download="all").source(None)
    (tmp_path / "cache" / "benchmarks" / "lmms-lab--Video-MME" / "b.zip").unlink()
    files["b.zip"] = zipped(**{"data__b.mp4": b"a video"})
    fetched.clear()
    folder = made("videomme", "hub", download="all").folder
    assert "a.zip" not in fetched and {file.name for file in folder.iterdir()} == {"-aB.mp4", "b.mp4"}


@pytest.mark.parametrize("revision", [None, "main"])
@pytest.mark.parametrize("cut", ["while it comes", "while it is unpacked"])
def test_a_copy_that_was_interrupted_goes_on_at_its_commit(
    cut: str, revision: str | None, hub: tuple[Files, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, fetched = hub
    asked = {"hub": REPO, **({} if revision is None else {"revision": revision})}
    files |= {"videomme/test-0.parquet": table(), "a.zip": zipped(**{"data__a.mp4": b"a video"})}
    files |= {"b.zip": zipped(**{"data__b.mp4": b"of the first commit"})}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if cut == "while it comes":
            patch.setattr("huggingface_hub.snapshot_download", interrupted)
        else:
            unpack = hub_copy._unpack
            patch.setattr(hub_copy, "_unpack", lambda *of: interrupted() if of[1] == "b.zip" else unpack(*of))
        made("videomme", "hub", download="all", **asked).source(None)
    files.moves("d" * 40)
    files |= {"videomme/test-other.parquet": table(), "c.zip": zipped(**{"data__c.mp4": b"a later video"})}
    with pytest.raises(UserError, match=f"{REPO} is not here yet"):
        made("videomme", "hub", **asked).source(None)
    benchmark = made("videomme", "hub", download="all", **asked)
    assert {file.name: file.read_bytes() for file in benchmark.folder.iterdir()} == {
        "a.mp4": b"a video", "b.mp4": b"of the first commit",
    }  # fmt: skip
    assert benchmark.protocol()["hub"].endswith(SHA) and not {"c.zip", "videomme/test-other.parquet"} & set(fetched)


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("lost", ["videomme/test-0.parquet", "subtitle.zip", "data/-aB.mp4"])
def test_a_file_that_did_not_come_is_named_and_comes_with_the_next_start(
    lost: str, hub: tuple[Files, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    files, _ = hub
    files |= {"videomme/test-0.parquet": table(), "data/-aB.mp4": b"a video", "subtitle.zip": zipped(a=b"1")}
    fetch = huggingface_hub.snapshot_download

    def all_but_one(*where: Any, local_dir: Path, **how: Any) -> None:
        fetch(*where, local_dir=local_dir, **how)
        (local_dir / lost).unlink()

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", all_but_one)
        with pytest.raises(UserError, match=f"{lost} did not come; start again to go on"):
            made("videomme", "hub", download="all").source(None)
    assert len(made("videomme", "hub", download="all").source(None)) == 1


def test_names_that_look_like_patterns_are_names(hub: tuple[Files, list[str]]) -> None:
    files, fetched = hub
    odd = {f"data/{name}.mp4": name.encode() for name in ("v[1]", "w*", "x?", "[!a]", "-aB")}
    files |= {"videomme/test-[0].parquet": table(), **odd}
    folder = made("videomme", "hub", download="all").root
    assert {f"data/{file.name}": file.read_bytes() for file in (folder / "data").iterdir()} == odd
    assert sorted(fetched) == sorted(["videomme/test-[0].parquet", *odd])
    fetched.clear()
    files["data/wonder.mp4"] = b"0"
    hub_copy._fetch(REPO, SHA, ["data/w*.mp4"], folder / "again")
    assert fetched == ["data/w*.mp4"], "and not all that begin so"


def test_what_the_hub_does_not_have_is_one_line(hub: tuple[dict[str, bytes], list[str]]) -> None:
    files, _ = hub
    files |= {"README.md": b"#"}
    with pytest.raises(UserError, match="benchmark.hub=lmms-lab/Video-MME: holds none of videomme/test"):
        made("videomme", "hub").source(None)
    with pytest.raises(UserError, match="benchmark.hub=me/none: .*; expected owner/name of a data set"):
        made("videomme", "hub", hub="me/none").source(None)
    with pytest.raises(UserError, match="benchmark.download=all: only with benchmark.path=hub"):
        made("videomme", None, download="all")
    files["videomme/test-0.parquet"] = table()
    with pytest.raises(UserError, match="benchmark.download: .* are needed in .*, 10 B are free"), pytest.MonkeyPatch.context() as patch:  # fmt: skip  # noqa: E501
        patch.setattr(hub_copy.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
        made("videomme", "hub", download="questions").source(None)
    files["v.zip"] = zipped(**{"data__-aB.mp4": b"a video"})
    free = sum(map(len, files.values()))
    with pytest.raises(UserError, match="archives and what is in them"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_copy.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
        made("videomme", "hub", download="all").source(None)


def test_archives_in_parts_are_one_and_nothing_leads_out_of_them(tmp_path: Path) -> None:
    names = ["videos.tar.part.aa", "videos.tar.part.ab", "x/a.zip", "subtitles.tar", "b.parquet"]
    assert hub_copy.archives(names) == {
        "videos.tar": names[:2],
        "x/a.zip": ["x/a.zip"],
        "subtitles.tar": ["subtitles.tar"],
    }
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name in ("videos/v.mp4", "videos/w.mp4"):
            member = tarfile.TarInfo(name)
            member.size = 3000
            tar.addfile(member, io.BytesIO(name.encode() * 250))
    (tmp_path / names[0]).write_bytes(held.getvalue()[:3333])
    (tmp_path / names[1]).write_bytes(held.getvalue()[3333:])
    hub_copy._unpack(tmp_path, "videos.tar", names[:2])
    assert (tmp_path / "videos" / "w.mp4").read_bytes() == b"videos/w.mp4" * 250
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../out.mp4"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "evil.tar").write_bytes(evil.getvalue())
    with pytest.raises(UserError, match="evil.tar cannot be unpacked"):
        hub_copy._unpack(tmp_path / "in", "evil.tar", ["evil.tar"])
    (tmp_path / "in" / "evil.zip").write_bytes(zipped(**{"..__out.mp4": b"1"}))
    hub_copy._unpack(tmp_path / "in", "evil.zip", ["evil.zip"])
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("says", "member", "data"),
    [
        ("'l' is a symbolic link", {"name": "l", "type": tarfile.SYMTYPE, "linkname": "."}, b""),
        ("'d' is a special file", {"name": "d", "type": tarfile.CHRTYPE}, b""),
        ("linkname 'none' not found", {"name": "h", "type": tarfile.LNKTYPE, "linkname": "none"}, b""),
        ("would link to", {"name": "h", "type": tarfile.LNKTYPE, "linkname": "../../out"}, b""),
        ("null byte", {"name": "a", "pax_headers": {"path": "a\0b"}}, b"1"),
        ("too long", {"name": "x" * 300}, b"1"),
        ("out of range", {"name": "a", "pax_headers": {"mtime": "1e300"}}, b"1"),
        ("hvlm.json in it is a name of hvlm's own", {"name": "hvlm.json/a"}, b"1"),
        ("it unfolds to more than", {"name": "a.mp4"}, bytes(3_000_000)),
    ],
)
def test_a_hostile_tar_is_refused_in_one_line(says: str, member: dict[str, Any], data: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with tarfile.open(folder / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo()
        vars_of = {**member, "size": len(data)}
        for name, value in vars_of.items():
            setattr(info, name, value)
        tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"a.tar.gz cannot be unpacked \(.*benchmark.path=FOLDER$") as error:
        hub_copy._unpack(folder, "a.tar.gz", ["a.tar.gz"])
    assert says in str(error.value) and "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*"))[:1] == [folder] and not any(path.is_symlink() for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_unfolds_is_refused_before_it_is_read(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 64 << 20
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(64):
            file.write(bytes(1 << 20))
    with pytest.raises(UserError, match=r"an extended header claims 67,108,864 bytes.*benchmark.path=FOLDER$"):
        refused_within(16 << 20, lambda: hub_copy._unpack(tmp_path, "a.tar.gz", ["a.tar.gz"]))


def sparse(version: int, blocks: int, number: bytes = b"7" * 60) -> bytes:
    """A tar with a sparse file whose map is so many blocks long, in GNU's first layout or version 1.0."""
    info = tarfile.TarInfo("a.mp4")
    if version == 1:
        info.size = 512 * blocks
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
        lines = b"%d\n" % (10**12) + (number + b"\n") * (512 * blocks // len(number))
        return info.tobuf(tarfile.PAX_FORMAT) + lines[: 512 * blocks]
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # the map goes on
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    block = (b"%011o\0" % 7 * 42).ljust(504, b"\0") + b"\1" + bytes(7)
    return bytes(header) + block * blocks


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("blocks", "says"), [(2050, "of a sparse file is longer than 1,048,576 bytes"), (3, "of a sparse file ends too ")]
)
def test_a_sparse_map_without_end_is_refused_before_it_is_read(
    version: int, blocks: int, says: str, tmp_path: Path
) -> None:
    data = sparse(version, blocks)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data, 1))
    with pytest.raises(UserError, match=f"{says}.*benchmark.path=FOLDER$"):
        refused_within(24 << 20, lambda: hub_copy._unpack(tmp_path, "a.tar.gz", ["a.tar.gz"]))
    (tmp_path / "train-0.tar").write_bytes(data)
    for read in (index_shard, lambda path, _: list(samples_of(str(path)))):
        with pytest.raises(UserError, match=f"train-0.tar: .*{says}"):
            read(tmp_path / "train-0.tar", "train")


def test_a_sparse_map_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "train-0.tar").write_bytes(sparse(1, 4, b"seven"))
    with pytest.raises(UserError, match=r"train-0.tar: .*the map of a sparse file is damaged"):
        index_shard(tmp_path / "train-0.tar", "train")
    with pytest.raises(UserError, match=r"the map of a sparse file is damaged"):
        hub_copy._unpack(tmp_path, "train-0.tar", ["train-0.tar"])


def test_a_hostile_zip_is_refused_in_one_line(tmp_path: Path) -> None:
    def zipped_by(kind: int, data: bytes) -> bytearray:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", kind) as archive:
            archive.writestr("a.mp4", data)
        return bytearray(out.getvalue())

    bomb = zipped_by(zipfile.ZIP_DEFLATED, bytes(3_000_000))
    damaged, lzma = (zipped_by(kind, b"x" * 5000) for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    damaged[37:45], lzma[45:60] = b"\xff" * 8, b"\xff" * 15
    undeclared = bytearray(bomb)
    at = undeclared.find(b"PK\x01\x02")
    undeclared[at + 24 : at + 28] = (10).to_bytes(4, "little")
    for data, says in (
        (bomb, "it unfolds to more than"), (undeclared, "Bad CRC-32"), (damaged, "decompressing"), (lzma, "Corrupt"),
        (zipped(**{"hvlm.json__a": b"1"}), "name of hvlm's own"),
    ):  # fmt: skip
        (tmp_path / "a.zip").write_bytes(data)
        with pytest.raises(UserError, match=rf"a.zip cannot be unpacked \(.*{says}"):
            hub_copy._unpack(tmp_path, "a.zip", ["a.zip"])
    assert not (tmp_path / "a.mp4").exists() or (tmp_path / "a.mp4").stat().st_size <= 5000


@pytest.mark.parametrize(
    "text",
    [
        "[1]", "[" * 100_000, '{"repo": "a", "commit": 1, "download": "all"}',
        '{"repo": "a", "commit": "b", "download": "all", "unpacked": 5}',
        '{"repo": "a", "commit": "b", "download": "all", "unpacked": [[]]}',
    ],
)  # fmt: skip
def test_a_mark_that_somebody_edited_counts_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / hub_copy.MARK).write_text(text)
    assert hub_copy.marked(tmp_path) == {}


def test_a_mark_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / hub_copy.MARK)
    assert hub_copy.marked(tmp_path) == {}


def test_a_name_of_the_hub_that_leads_out_is_refused(hub: tuple[dict[str, bytes], list[str]]) -> None:
    files, fetched = hub
    files |= {"videomme/test-0.parquet": table(), "../../evil.mp4": b"1"}
    with pytest.raises(UserError, match="holds the file '../../evil.mp4', which leads out of its copy"):
        made("videomme", "hub", download="all").source(None)
    assert not fetched
