"""A real browser that looks at a file, where the distribution's Chromium is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next((path for name in NAMES if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(FOUND is None, reason="no chromium: apt-get install chromium")


def look(
    page: Path, folder: Path, picture: Path | None = None, size: tuple[int, int] = (1200, 900)
) -> tuple[str, list]:
    """(the page's text as the browser built it, what its console complained of). No network: names are not found.

    Args:
        page: a file.
        folder: for the browser's own files.
        picture: where a screenshot goes.
        size: of the window.
    """
    command = [
        str(FOUND), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
        "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}", "--enable-logging=stderr", "--v=0",
        f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=2000",
    ]  # fmt: skip
    asked = ["--dump-dom"] if picture is None else [f"--screenshot={picture}"]
    done = subprocess.run([*command, *asked, page.resolve().as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, re.findall(r"CONSOLE[^\n]*", done.stderr)
