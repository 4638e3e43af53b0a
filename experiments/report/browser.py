"""Headless Chromium that opens a file, without a network, and says everything that it asked for and complained of.

Spoken to over two pipes (Chromium's DevTools protocol), so that nothing but Chromium itself is needed. What is measured
here runs beside the page, whose own policy forbids every script.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from hvlm.errors import UserError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT = 60.0  # seconds, for an answer
TALLEST = 16_000  # pixels of a picture; Chromium paints no larger ones
INSTALL = "install chromium (Debian, Ubuntu: apt-get install chromium)"

# What does not fit: the page itself, and elements that reach out of it and are in no box that scrolls.
OVERFLOW = """(() => {
  const wide = document.documentElement.clientWidth, found = [];
  for (const e of document.body.querySelectorAll('*')) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > wide + 1 && !e.closest('.wide, pre'))
      found.push(e.tagName + ' ' + Math.round(box.right));
  }
  return {page: document.documentElement.scrollWidth, window: wide, elements: found.slice(0, 5)};
})()"""
# Every picture with its size on the page.
PICTURES = """[...document.querySelectorAll('img, svg')].map(e => {
  const box = e.getBoundingClientRect(), whole = e.tagName != 'IMG' || (e.complete && e.naturalWidth > 0);
  return {name: e.alt || e.tagName, wide: box.width, high: box.height, whole};
})"""
# Texts with too little contrast to what is behind them (WCAG 2: 4.5 is enough for small letters), and those too small.
LEGIBLE = """(() => {
  const rgb = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const linear = v => v <= 0.03928 * 255 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const bad = {};
  let seen = 0, worst = 99;
  for (const e of document.body.querySelectorAll('*')) {
    if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) || e.tagName == 'title') continue;
    const style = getComputedStyle(e);
    if (!e.getBoundingClientRect().width || style.visibility == 'hidden') continue;
    let behind = null;
    for (let up = e; up && !behind; up = up.parentElement) {
      const c = rgb(getComputedStyle(up).backgroundColor);
      if (c[3] == 1) behind = c;
    }
    const own = rgb(e.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(own), light(behind || [255, 255, 255])].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05), scale = e.getScreenCTM ? e.getScreenCTM().a : 1;
    const size = parseFloat(style.fontSize) * scale;
    seen += 1;
    worst = Math.min(worst, contrast);
    if (contrast < 4.5 || size < 9.5)
      bad[`${e.tagName} contrast ${contrast.toFixed(1)} size ${size.toFixed(1)}`] = e.textContent.trim().slice(0, 40);
  }
  return {seen, worst, bad};
})()"""


def browser() -> str | None:
    """The path of this machine's Chromium; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One window.

    Args:
        width, height: of it, pixels.
        dark: whether its user likes dark pages.

    Raises:
        UserError: there is no Chromium.
    """

    def __init__(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        program = browser()
        if program is None:
            raise UserError(f"chromium: not found; {INSTALL}")
        self.folder = tempfile.mkdtemp(prefix="hvlm-browser-")
        to_it, from_it = os.pipe(), os.pipe()
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
            "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={self.folder}", "--remote-debugging-pipe",
        ]  # fmt: skip
        # Chromium reads from 3 and writes to 4, whatever numbers the pipes have here.
        given = ["bash", "-c", f'exec "$@" 3<&{to_it[0]} 4>&{from_it[1]}', "bash", program, *flags, "about:blank"]
        self.process = subprocess.Popen(
            given, pass_fds=(to_it[0], from_it[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        os.close(to_it[0])
        os.close(from_it[1])
        self.to, self.of = to_it[1], from_it[0]
        self.number, self.read, self.session = 0, b"", ""
        self.requests: list[str] = []  # addresses of all that was asked for, and not inside the page
        self.complaints: list[str] = []  # of its console, and errors
        self.loaded = False
        try:
            (page,) = [t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"][:1]
            self.session = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime"):
                self.ask(f"{domain}.enable")
            self.window(width, height, dark)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it with all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for end in (self.to, self.of):
            os.close(end)
        shutil.rmtree(self.folder, ignore_errors=True)

    def window(self, width: int, height: int = 900, dark: bool = False) -> None:
        """Another size, or another taste."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, page: Path) -> None:
        """Load a file, and wait until it and its pictures are there."""
        self.loaded, self.requests[:], self.complaints[:] = False, [], []
        self.ask("Page.navigate", url=page.resolve().as_uri())
        until = time.monotonic() + WAIT
        while not self.loaded:
            self._take(until)

    def value(self, expression: str) -> Any:
        """What an expression comes to."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"])[:500])
        return found["result"].get("value")

    def overflow(self) -> dict[str, Any]:
        """How wide page and window are, and elements that reach out."""
        return dict(self.value(OVERFLOW))

    def pictures(self) -> list[dict[str, Any]]:
        """name, wide, high and whole of each."""
        return list(self.value(PICTURES))

    def legible(self) -> dict[str, Any]:
        """How many texts were looked at, the worst contrast, and those that cannot be read well."""
        return dict(self.value(LEGIBLE))

    def unfold(self) -> None:
        """Open everything that is folded."""
        self.value("document.querySelectorAll('details').forEach(e => { e.open = true })")

    def picture(self, height: int | None = None) -> bytes:
        """The page from its top as a PNG. height: pixels; None: all of it."""
        wide, high = self.value("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        high = min(high, height or TALLEST)
        clip = {"x": 0, "y": 0, "width": wide, "height": high, "scale": 1}
        made = self.ask("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(made["data"])

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self.number += 1
        own = self.number
        message = {"id": own, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        left = memoryview(json.dumps(message).encode() + b"\0")
        while left:
            left = left[os.write(self.to, left) :]
        until = time.monotonic() + WAIT
        while True:
            told = self._take(until)
            if told.get("id") == own:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return dict(told["result"])

    def _take(self, until: float) -> dict[str, Any]:
        while b"\0" not in self.read:
            ready, _, _ = select.select([self.of], [], [], max(0.0, until - time.monotonic()))
            more = os.read(self.of, 1 << 20) if ready else b""
            if not more:
                raise TimeoutError("chromium gave no answer" if not ready else "chromium ended")
            self.read += more
        one, self.read = self.read.split(b"\0", 1)
        told: dict[str, Any] = json.loads(one)
        self._note(str(told.get("method", "")), told.get("params", {}))
        return told

    def _note(self, method: str, of: Mapping[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(of["request"]["url"][:200])
        elif method == "Log.entryAdded":
            self.complaints.append(f"{of['entry']['level']}: {of['entry']['text']}")
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(f"{of['type']}: {[a.get('value') for a in of['args']]}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(of["exceptionDetails"].get("text")))
