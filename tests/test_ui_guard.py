"""What visitors of the page must not be able to do: by requests of their own, and from other pages in their browser."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import io
import json
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from _videos import video
from test_library import TEXTS, TINY
from test_ui import QUESTION, in_a_browser

import hvlm
from experiments.page.window import Window, free_port
from hvlm.data import decode as decoding
from hvlm.errors import UserError
from hvlm.ui import asking
from hvlm.ui.asking import tell
from hvlm.ui.guard import API, BODY, HELD, LOOPBACK, UPLOAD, Guard
from hvlm.ui.uploads import Uploads

needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="not installed: gradio")
HERE = "127.0.0.1:7860"


@pytest.fixture(scope="module")
def model() -> hvlm.Model:
    torch.manual_seed(0)
    return hvlm.build(texts=TEXTS, **TINY, device="cpu")


def scope(path: str = "/", host: str = HERE, **headers: str) -> dict[str, Any]:
    told = {"host": host} | {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [(k.encode(), v.encode()) for k, v in told.items()],
    }


def status(guard: Guard, asked: dict[str, Any], chunks: list[bytes] = []) -> int:  # noqa: B006
    """Of the answer; the body comes in these pieces and is then broken off."""
    waiting, sent = [*chunks], []

    async def receive() -> dict[str, Any]:
        return (
            {"type": "http.request", "body": waiting.pop(0), "more_body": True}
            if waiting
            else {"type": "http.disconnect"}
        )

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(asked, receive, send))
    return next((message["status"] for message in sent if "status" in message), 0)


class ClientDisconnect(Exception):
    """Has the name of what starlette raises."""


async def keeping(asked: dict[str, Any], receive: Callable, send: Callable) -> None:
    """An app that writes the body into a file of the folder, as gradio does, and fails where it is broken off."""
    with open(Path(asked["folder"]) / f"tmp{time.time_ns()}", "wb") as file:
        while (message := await receive())["type"] != "http.disconnect":
            file.write(message["body"])
    raise ClientDisconnect


async def fine(asked: dict[str, Any], receive: Callable, send: Callable) -> None:
    await send({"type": "http.response.start", "status": 200})


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (scope(), 200),
        (scope(host="localhost:7860", origin="http://localhost:7860"), 200),
        (scope(host="[::1]:7860"), 200),
        (scope(host="rebound.example:7860"), 403),
        (scope(host="127.0.0.1.rebound.example:7860", origin="http://127.0.0.1.rebound.example:7860"), 403),
        (scope(host="[7860"), 403),
        (scope(host=""), 403),
        (scope(origin="http://elsewhere.example"), 403),
        (scope(origin="http://127.0.0.1:3000"), 403),
        (scope(origin="null"), 403),
        (scope(sec_fetch_site="cross-site", sec_fetch_mode="no-cors"), 403),
        (scope(sec_fetch_site="cross-site", sec_fetch_mode="navigate"), 200),
        (scope(f"{API}/file=/etc/passwd"), 404),
        (scope(f"{API}/file=https://elsewhere.example/"), 404),
        (scope(f"{API}/proxy=https://elsewhere.example/"), 404),
        (scope(f"{API}/deep_link"), 404),
        (scope("/assets/index.js"), 200),
    ],
)
def test_other_pages_and_other_ways_than_the_pages_are_refused(
    asked: dict[str, Any], answer: int, tmp_path: Path
) -> None:
    assert status(Guard(fine, tmp_path, 100, LOOPBACK), asked) == answer
    if answer == 403 and "rebound" in str(asked):
        assert status(Guard(fine, tmp_path, 100), asked) == 200, "host=0.0.0.0 is called by any name"


def test_an_upload_that_is_too_large_or_broken_off_leaves_nothing(tmp_path: Path) -> None:
    guard, asked = Guard(keeping, tmp_path, 100), scope(UPLOAD) | {"folder": str(tmp_path)}
    (tmp_path / "sum").mkdir()
    (tmp_path / "sum" / "clip.mp4").write_bytes(b"of somebody else")
    pieces = [b"\0" * BODY, b"\0" * 200, b"\0" * BODY]
    assert status(guard, asked, pieces) == 413
    assert status(guard, asked, [b"\0" * 50]) == 0
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["clip.mp4", "sum"]
    guard._began.append(time.time())  # another one comes in
    for name in ("tmp-before", "tmp-now"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "tmp-before", (0, 0))
    guard.sweep()
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["clip.mp4", "sum", "tmp-now"]


def test_the_folder_has_an_end(tmp_path: Path) -> None:
    guard = Guard(fine, tmp_path, 100)
    (tmp_path / "sum").mkdir()
    (tmp_path / "sum" / "most").write_bytes(b"\0" * 100 * (HELD - 1))
    assert status(guard, scope(UPLOAD)) == 200
    (tmp_path / "sum" / "more").write_bytes(b"\0")
    assert status(guard, scope(UPLOAD)) == 507 and status(guard, scope()) == 200


def test_a_visitor_who_leaves_takes_no_file_of_others_along(tmp_path: Path) -> None:
    uploads, outside = Uploads(tmp_path / "up"), tmp_path / "mine.mp4"
    outside.touch()
    files = [tmp_path / "up" / name for name in ("1/a.mp4", "1/b.mp4", "2/c.mp4")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "up" / "3").mkdir()
    (tmp_path / "up" / "3" / "link.mp4").symlink_to(outside)
    assert uploads.add("one", str(files[0])) and uploads.add("one", str(files[2])) and uploads.add("two", str(files[1]))
    assert uploads.add("two", str(files[2]))
    for wrong in (
        outside,
        files[0].parent,
        tmp_path / "up",
        tmp_path / "up/1/../../mine.mp4",
        tmp_path / "up/3/link.mp4",
    ):
        assert not uploads.add("one", str(wrong)), wrong
    uploads.remove("one")
    assert [file.exists() for file in files] == [False, True, True], "c is the other one's, too; b lies beside a"
    uploads.remove("two")
    uploads.remove("nobody")
    assert not files[1].parent.exists() and not files[2].parent.exists() and outside.exists()


def png(width: int, height: int) -> bytes:
    """A picture of one colour whose pixels are a thousandth of that."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def zipped() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("clip.mp4", b"\0" * 20_000_000)
    return held.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("bomb.mp4", zipped()),
        ("bomb.zip", zipped()),
        ("wide.png", png(100_000, 100_000)),
        ("wide.mp4", png(100_000, 100_000)),
        (
            "wide.gif",
            b"GIF89a" + b"\xff" * 4 + b"\x00\x00\x00,\x00\x00\x00\x00" + b"\xff" * 4 + b"\x00\x02\x02D\x01\x00;",
        ),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
    ],
)
def test_bombs_are_one_line(name: str, data: bytes, tmp_path: Path, model: hvlm.Model) -> None:
    (tmp_path / name).write_bytes(data)
    began = time.process_time()
    with pytest.raises(UserError, match=name) as error:
        next(tell(model, str(tmp_path / name), QUESTION, 4, 1))
    assert "\n" not in str(error.value) and time.process_time() - began < 5


def test_a_decoder_that_hangs_costs_its_deadline(
    tmp_path: Path, model: hvlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    import _hanging

    monkeypatch.setattr(decoding, "sampled", _hanging.asleep_at)
    monkeypatch.setattr(asking, "DECODE_S", 0.5)
    (tmp_path / "v.mp4").write_bytes(_hanging.MARK)
    with pytest.raises(UserError, match=r"v\.mp4: not decoded within 0\.5 s"):
        next(tell(model, str(tmp_path / "v.mp4"), QUESTION, 4, 1))


# With gradio's server.


class Visitor:
    """Sends what it likes."""

    def __init__(self, address: str, name: str) -> None:
        self.server, self.name = urlsplit(address).netloc, name

    def send(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.server, timeout=30)
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body, told)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def upload(self, name: str, data: bytes, **headers: str) -> tuple[int, Any]:
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + b"\r\n--x--\r\n"
        code, text = self.send(UPLOAD, body, content_type="multipart/form-data; boundary=x", **headers)
        return code, json.loads(text)[0] if code == 200 else text.decode()

    def ask(self, path: str | None, picked: str = "", question: str = QUESTION, frames: float = 4) -> str:
        """What the last of the answer's messages says."""
        config = json.loads(self.send("/config")[1])
        which = next(i for i, fn in enumerate(config["dependencies"]) if len(fn["inputs"]) == 4)
        file = path and {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = {"data": [file, picked, question, frames], "fn_index": which, "session_hash": self.name}
        code, text = self.send(f"{API}/queue/join", json.dumps(data).encode(), content_type="application/json")
        assert code == 200, text
        connection = http.client.HTTPConnection(self.server, timeout=60)
        connection.request("GET", f"{API}/queue/data?session_hash={self.name}")
        said = [line for line in connection.getresponse().read().decode().splitlines() if "process_" in line]
        connection.close()
        return "\n".join(said)


@pytest.fixture(scope="module")
def server(model: hvlm.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(address, folder of the uploads)."""
    from hvlm.ui import serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "_models", lambda settings: {"<b>tiny</b>": model})
        with serve.served(serve.Settings("tiny", port=free_port(), upload_mb=1, max_new_tokens=2)) as address:
            yield address, Path(os.environ["GRADIO_TEMP_DIR"])


@pytest.fixture
def visitor(server: tuple[str, Path], request: pytest.FixtureRequest) -> Visitor:
    return Visitor(server[0], f"of{abs(hash(request.node.name))}")


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


def until(holds: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < ends, what
        time.sleep(0.05)


@needs_gradio
def test_another_page_reaches_nothing(visitor: Visitor, server: tuple[str, Path]) -> None:
    here = urlsplit(server[0])
    assert visitor.send("/")[0] == 200 and visitor.send("/", host=f"localhost:{here.port}")[0] == 200
    for headers in ({"host": f"rebound.example:{here.port}"}, {"origin": "http://elsewhere.example"}):
        assert visitor.send("/", **headers)[0] == visitor.send("/config", **headers)[0] == 403
        assert visitor.upload("a.mp4", b"x", **headers)[0] == 403
        assert visitor.send(f"{API}/queue/join", b"{}", content_type="application/json", **headers)[0] == 403
    assert files(server[1]) == []


@needs_gradio
@pytest.mark.parametrize("name", ["../../../../out.mp4", "/etc/out.mp4", "..", ".", "a/../../out.mp4", "..%2f..%2fout"])
def test_names_that_climb_stay_in_the_folder(name: str, visitor: Visitor, server: tuple[str, Path]) -> None:
    code, where = visitor.upload(name, name.encode())
    assert code in (200, 400)
    if code == 200:
        path = Path(where)
        assert path.resolve().parent.parent == server[1].resolve() and path.read_bytes() == name.encode()
        path.unlink()
    late = time.monotonic() + 10  # a refused upload is removed after its answer is sent
    while files(server[1]) and time.monotonic() < late:
        time.sleep(0.05)
    assert files(server[1]) == []


@needs_gradio
def test_what_was_not_uploaded_is_not_opened(visitor: Visitor, server: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "private.mp4").write_bytes(video(8))
    fetched = []
    with pytest.MonkeyPatch.context() as patch:
        from gradio import processing_utils

        patch.setattr(processing_utils, "async_ssrf_protected_download", lambda *a, **k: fetched.append(a))
        for path in (
            str(tmp_path / "private.mp4"),
            f"{server[1]}/../{tmp_path.relative_to('/tmp') if tmp_path.is_relative_to('/tmp') else 'x'}/private.mp4",
            str(server[1]),
            f"file://{tmp_path}/private.mp4",
            "https://elsewhere.example/private.mp4",
        ):
            said = visitor.ask(path)
            assert "visual tokens" not in said and "<img" not in said, path
    assert not fetched and server[1].is_dir()
    assert "visual tokens" not in visitor.ask(None, picked="../private.mp4")
    _, mine = visitor.upload("clip.mp4", video(8))
    for question, frames in (("what " * 1000, 4), (QUESTION, 1e9)):
        assert "visual tokens" not in visitor.ask(mine, question=question, frames=frames)
    assert "visual tokens" in visitor.ask(mine)
    assert files(server[1]) == ["clip.mp4"], "nothing else was left"
    Path(mine).unlink()


@needs_gradio
def test_the_files_of_a_visitor_who_vanishes_are_removed(server: tuple[str, Path]) -> None:
    import socket

    address, folder = server
    one, two = Visitor(address, "vanishing"), Visitor(address, "staying")
    live = []
    for visitor in (one, two):
        connection = socket.create_connection((urlsplit(address).hostname, urlsplit(address).port))
        connection.sendall(f"GET {API}/heartbeat/{visitor.name} HTTP/1.1\r\nHost: {visitor.server}\r\n\r\n".encode())
        assert b"200" in connection.recv(100)
        live.append(connection)
    data = video(8)
    paths = [visitor.upload(f"{visitor.name}.mp4", data)[1] for visitor in (one, two)]
    assert Path(paths[0]).parent == Path(paths[1]).parent, "equal files lie in one folder"
    assert all("visual tokens" in visitor.ask(path) for visitor, path in zip((one, two), paths, strict=True))
    live[0].close()
    until(lambda: not Path(paths[0]).exists(), "the removal of what the first one left")
    assert Path(paths[1]).exists()
    live[1].close()
    until(lambda: not Path(paths[1]).parent.exists(), "the removal of what the second one left")
    # In the middle of an upload.
    with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) as connection:
        head = '--x\r\nContent-Disposition: form-data; name="files"; filename="half.mp4"\r\n\r\n'
        connection.sendall(
            f"POST {UPLOAD} HTTP/1.1\r\nHost: {one.server}\r\nContent-Length: 500000\r\n"
            f"Content-Type: multipart/form-data; boundary=x\r\n\r\n{head}".encode()
            + b"\0" * 100_000
        )
        until(lambda: bool(files(folder)), "the beginning of the file")
    until(lambda: not files(folder), "the removal of the half file")


@needs_gradio
@in_a_browser
def test_no_name_question_or_answer_becomes_part_of_the_page(server: tuple[str, Path], tmp_path: Path) -> None:
    script = "<img src=x onerror=window.ran=1>"
    clip = tmp_path / f"{script}.mp4"
    clip.write_bytes(video(8))
    broken = tmp_path / f"broken{script}.mp4"
    broken.write_bytes(b"no video")
    window = Window(server[0])
    try:
        for file, said in ((clip, "vocabulary"), (broken, "cannot be read")):
            window.upload(file)
            window.ask(f"{script} <script>window.ran=1</script> what color is the object ?")
            window.until(lambda said=said: said in window.value("status"), f"what is said of {file.name}")
            time.sleep(0.5)
            assert window.driver.execute_script("return window.ran") is None
            assert not window.all("img[src='x']") and not window.all("b")
            window.driver.refresh()
            window.until(lambda: window.all("#ask"), "the page")
    finally:
        window.driver.quit()
