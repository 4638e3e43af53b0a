"""As much of a W&B server as ``wandb sync`` needs: it keeps, of each run, what was uploaded."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


class Server(ThreadingHTTPServer):
    """runs: {id: {what upsertBucket said of it, "files": {name: lines by their offset}}}; made: how often a run was
    made that was not there; uploads: {path: size}; saved: the workspaces."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.made: list[str] = []
        self.uploads: dict[str, int] = {}
        self.saved: list[dict[str, Any]] = []
        self.unknown: list[str] = []

    def handle_error(self, *_: Any) -> None:
        """Who ends while he is answered is no fault of the server's."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def history(self, run: str) -> list[dict[str, Any]]:
        lines = self.runs[run]["files"].get(HISTORY, {})
        return [json.loads(line) for _, line in sorted(lines.items())]

    def summary(self, run: str) -> dict[str, Any]:
        lines = self.runs[run]["files"].get(SUMMARY, {})
        return json.loads(lines[max(lines)]) if lines else {}

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "hvlm", "entity": {"id": "e", "name": "team"}}
        if "mutation UpsertBucket" in query:
            name = given["name"]
            if new := name not in self.runs:
                self.runs[name] = {"files": {}}
                self.made.append(name)
            self.runs[name] |= {key: value for key, value in given.items() if value is not None}
            bucket = {"id": f"id-{name}", "name": name, "displayName": given["displayName"], "config": "{}"}
            bucket |= {"historyLineCount": len(self.history(name)), "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": new}}
        if "query RunResumeStatus" in query:
            return {"model": {**project, "bucket": self._to_resume(given["name"])}}
        if "mutation CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/put/{given['run']}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        if "mutation UpsertView2" in query:
            self.saved.append(given)
            return {"upsertView": {"view": {"id": "v", "name": given["name"]}, "inserted": True}}
        if "ServerFeaturesQuery" in query:
            return {"serverInfo": {"features": []}}
        if "viewer" in query:
            return {"viewer": {"id": "u", "entity": "team", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        self.unknown.append(" ".join(query.split())[:80])
        return {}

    def _to_resume(self, name: str) -> dict[str, Any] | None:
        if name not in self.runs:
            return None
        history = self.history(name)
        return {
            "id": f"id-{name}", "name": name, "summaryMetrics": json.dumps(self.summary(name)), "displayName": name,
            "logLineCount": 0, "historyLineCount": len(history), "eventsLineCount": 0, "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(line) for line in history[-1:]]), "config": "{}", "tags": [],
            "notes": None, "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._say({})

    def do_PUT(self) -> None:
        self.server.uploads[self.path.removeprefix("/put/")] = len(self._body())
        self._say({})

    def do_POST(self) -> None:
        asked = json.loads(self._body())
        if self.path == "/graphql":
            self._say({"data": self.server.answer(asked["query"], asked.get("variables") or {})})
            return
        files = self.server.runs[self.path.split("/")[4]]["files"]
        for name, part in (asked.get("files") or {}).items():
            lines = files.setdefault(name, {})
            lines.update({part["offset"] + i: line for i, line in enumerate(part["content"])})
        self._say({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        while self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _say(self, what: dict[str, Any]) -> None:
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running() -> Iterator[Server]:
    """The server on a free port of this machine, while the block runs."""
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
