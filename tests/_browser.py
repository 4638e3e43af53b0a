"""A real browser that looks at a file, where the distribution's Chromium is installed."""

from __future__ import annotations

import pytest

from experiments.report.browser import INSTALL, Browser, browser

needs_browser = pytest.mark.skipif(browser() is None, reason=f"no chromium: {INSTALL}")
NARROW, WIDE = 400, 1280  # pixels of a window


def faults(window: Browser) -> list[str]:
    """What is wrong with the page that a window shows, on light and dark, narrow and wide screens, everything
    unfolded."""
    found = [f"asked for {address}" for address in window.requests if not address.startswith(("file:", "data:"))]
    found += [f"complained: {text}" for text in window.complaints]
    window.unfold()
    for wide in (NARROW, WIDE):
        for dark in (False, True):
            window.window(wide, dark=dark)
            fits = window.overflow()
            assert fits["window"] == wide
            if fits["page"] > wide or fits["elements"]:
                found.append(f"does not fit {wide} pixels: {fits}")
            seen = window.legible()
            found += [f"hard to read at {wide}, dark={dark}: {how}: {text}" for how, text in seen["bad"].items()]
        found += [f"no picture: {p}" for p in window.pictures() if not (p["whole"] and p["wide"] > 0 and p["high"] > 0)]
    return found
