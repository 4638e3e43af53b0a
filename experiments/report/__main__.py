"""Does a report open in a browser without errors or network, and can it be read there?

    python -m experiments.report [--run runs/demo] [--picture docs/report.png]

Writes the report of a finished run again (of several, of a sweep for one: the page of all), opens it in headless
Chromium with no network, and looks at it as it is on wide (1,280 pixels) and narrow (400) windows, for users of light
and of dark pages, everything unfolded. Prints and adds to results.json beside this file: ``page_bytes``; ``pictures``
and ``pictures_missing``; ``requests``, of anything but the page itself and what is inside it; ``complaints`` of the
browser; ``cut_off``, elements that reach out of the window; ``hard_to_read``, texts with a contrast below 4.5 or a size
below 9.5 pixels; ``worst_contrast``. Ends with 1 where something is wrong.

With ``--picture``, the top of the page is kept as a picture, and nothing is written down.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path

from PIL import Image

from experiments.report.browser import Browser
from experiments.started import as_started
from hvlm.commands.report import Settings, report
from hvlm.console import error_line, setup_logging
from hvlm.evaluation import results
from hvlm.io.files import write_atomically

HERE = Path(__file__).parent
COMMAND = "python -m experiments.report"
WINDOWS = (400, 1280)  # pixels
TOP = 1500  # pixels of the picture
SHOULD_BE_NONE = ("pictures_missing", "requests", "complaints", "cut_off", "hard_to_read")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="runs/demo", help="a finished run, or a sweep's folder")
    parser.add_argument("--picture", type=Path, default=None, help="where the picture goes, a PNG")
    options = parser.parse_args()
    setup_logging()
    with error_line():
        began = time.monotonic()
        page = report(Settings([options.run]))
        with Browser(width=1180) as browser:
            browser.open(page)
            if options.picture is not None:
                keep(browser, options.picture)
            found = {"page_bytes": float(page.stat().st_size), **measured(browser)}
    for name, value in found.items():
        print(f"{name:20s} {value:12,.1f}")
    wrong = [name for name in SHOULD_BE_NONE if found[name]]
    print(f"wrong: {', '.join(wrong) or 'nothing'}")
    if options.picture is None:
        about = {"n": 1, "chance": None, "seeds": [0], "seconds": time.monotonic() - began, "stderr": None}
        command = as_started(COMMAND)
        name = Path(options.run).resolve().name
        records = [results.make("report", name, m, v, command=command, **about) for m, v in found.items()]
        results.update(HERE / "results.json", records)
    sys.exit(bool(wrong))


def measured(browser: Browser) -> dict[str, float]:
    """What was asked for, and what is wrong with the page that is open, everything unfolded."""
    browser.unfold()
    outside = [address for address in browser.requests if not address.startswith(("file:", "data:"))]
    cut, hard, contrasts = 0, 0, []
    for width in WINDOWS:
        for dark in (False, True):
            browser.window(width, dark=dark)
            fits, texts = browser.overflow(), browser.legible()
            cut += len(fits["elements"]) + (fits["page"] > fits["window"])
            hard += len(texts["bad"])
            contrasts.append(texts["worst"])
    pictures = browser.pictures()
    missing = [p for p in pictures if not (p["whole"] and p["wide"] > 0 and p["high"] > 0)]
    found = {
        "pictures": len(pictures), "pictures_missing": len(missing), "requests": len(outside),
        "complaints": len(browser.complaints), "cut_off": cut, "hard_to_read": hard, "worst_contrast": min(contrasts),
    }  # fmt: skip
    return {name: float(value) for name, value in found.items()}


def keep(browser: Browser, picture: Path) -> None:
    """The top of the page as a PNG."""
    with Image.open(io.BytesIO(browser.picture(TOP))) as shot:
        write_atomically(picture, lambda file: shot.convert("RGB").save(file, format="PNG", optimize=True))


if __name__ == "__main__":
    main()
