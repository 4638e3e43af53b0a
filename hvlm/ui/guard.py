"""What stands before the page's server: whose requests it takes, for what, and how much they may bring.

A page elsewhere can send requests to a server on this machine from its visitor's browser: by name of the machine, which
shows as a foreign ``Origin``, or by a name of its own that it lets point here, which shows as a foreign ``Host``.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
API = "/gradio_api"
UPLOAD = f"{API}/upload"
# What a browser with the page asks for. Of gradio's other ways one hands out files by their path, one fetches any
# address of the web, and others write files that nobody removes.
CALLS = ("info", "startup-events", "upload_progress", "queue/join", "queue/data", "run/predict", "cancel", "reset")
PATHS = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", UPLOAD, *(f"{API}/{call}" for call in CALLS))
FOLDERS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
BODY = 2**20  # bytes of a request that is no upload, and of what stands around an uploaded file
HELD = 16  # as many of the largest uploads lie in the folder at once, at most


class Guard:
    """ASGI middleware.

    Args:
        app: what it stands before.
        folder: where uploads lie.
        upload_bytes: of one uploaded file.
        hosts: names by which the server is called; empty: any.
    """

    def __init__(self, app: Any, folder: Path, upload_bytes: int, hosts: Iterable[str] = ()) -> None:
        self.app, self.folder, self.upload_bytes, self.hosts = app, folder, upload_bytes, frozenset(hosts)
        self._began: list[float] = []  # of each upload that comes in now

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":  # the page opens no web socket
            why = self._refused(scope)
            if why is None:
                await (self._upload if scope["path"] == UPLOAD else self._passed)(scope, receive, send)
            else:
                await _answer(send, *why)

    def _refused(self, scope: Message) -> tuple[int, str] | None:
        """Status and reason, or None."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts and _name(f"//{host}") not in self.hosts:
            return 403, "this server is called by another name"
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "requests of other pages are refused"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
            return 403, "requests of other pages are refused"
        path = scope["path"]
        if path not in PATHS and not path.startswith(FOLDERS):
            return 404, "not found"
        if path == UPLOAD and _bytes_in(self.folder) > (HELD - 1) * self.upload_bytes:
            return 507, "too many files are uploaded at the moment; try again later"
        return None

    async def _passed(self, scope: Message, receive: Receive, send: Send) -> None:
        await self._limited(scope, receive, send, BODY)

    async def _upload(self, scope: Message, receive: Receive, send: Send) -> None:
        began = time.time()
        self._began.append(began)
        try:
            await self._limited(scope, receive, send, self.upload_bytes + BODY)
        finally:
            self._began.remove(began)
            self.sweep()

    def sweep(self) -> None:
        """Remove what broken-off uploads left: files directly in the folder, older than the uploads that come in now.
        Those of finished uploads lie in folders of their own."""
        before = min(self._began) - 1.0 if self._began else math.inf  # clocks of file systems are coarse
        for file in self.folder.glob("*"):
            try:
                if file.is_file() and file.stat().st_mtime < before:
                    file.unlink()
            except FileNotFoundError:
                continue

    async def _limited(self, scope: Message, receive: Receive, send: Send, most: int) -> None:
        """Pass a request on whose body ends, or is broken off, at ``most`` bytes."""
        came, began, over = 0, False, False

        async def counted() -> Message:
            nonlocal came, over
            message = await receive()
            came += len(message.get("body", b""))
            over = over or came > most
            return {"type": "http.disconnect"} if over else message

        async def told(message: Message) -> None:
            nonlocal began
            began = began or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, counted, told)
        except Exception as error:
            if not over and type(error).__name__ != "ClientDisconnect":
                raise
            log.debug("a request was broken off after %d bytes", came)
        if over and not began:
            await _answer(send, 413, f"more than {most} bytes")


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # removed meanwhile
            continue
    return total


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
