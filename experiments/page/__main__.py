"""How soon does the page answer, from the click to the first letter seen in a browser?

    python -m experiments.page [--checkpoint runs/demo] [--beside runs/demo/sft] [--asked 7] [--picture docs/ui.png]

Serves the page as ``hvlm ui`` does and opens it in headless Chromium, each time as a new visitor, who uploads a clip
and asks. It is generated: the built-in set's moving shape and flashes before waves of colour, nobody's video. Prints
and adds to results.json beside this file, by the browser's clock: ``click_to_first_letter_ms``, the median of the
visitors but the first, the largest of theirs, and the first one's, for whom torch does things for the first time.
``server_processor_ms``: of the server's process meanwhile (median; without the decoder's process), which a busy machine
does not change; ``load``: how busy it was, its average of the last minute.

With ``--picture``, the last visitor's page is kept as a picture, and nothing is written down if ``--beside`` is given,
too: the second model answers after the first.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.page.window import Window, free_port
from experiments.started import as_started
from hvlm.console import error_line, setup_logging
from hvlm.dataset.needles import Needles
from hvlm.evaluation import results
from hvlm.ui.serve import Settings, served

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
COMMAND = "python -m experiments.page"
QUESTION = "what color is the object ?"
GOAL_MS = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="runs/demo", help="a run, a checkpoint file, or an export")
    parser.add_argument("--beside", default=None, help="another one, which answers next to it")
    parser.add_argument("--asked", type=int, default=7, help="visitors, one after the other; 2 or more")
    parser.add_argument("--picture", type=Path, default=None, help="where the picture goes, a PNG")
    options = parser.parse_args()
    if options.asked < 2:
        parser.error(f"--asked {options.asked}: expected 2 or more, as the first one is told apart")
    setup_logging()
    with error_line(), tempfile.TemporaryDirectory() as folder:
        found = measured(options.checkpoint, options.beside, clip(Path(folder)), options.asked, options.picture)
    for name, value in found.items():
        print(f"{name:32s} {value:10,.1f}")
    met = found["click_to_first_letter_ms"] < GOAL_MS
    print(f"goal, below {GOAL_MS:,} ms: {'met' if met else 'missed'}")
    if options.beside is not None:
        return
    seconds = found.pop("seconds")
    command = as_started(COMMAND)
    records = [
        results.make(
            "page", "demo", name, value, stderr=None, n=options.asked - 1, chance=None, seeds=[0], seconds=seconds,
            command=command,
        )
        for name, value in found.items()
    ]  # fmt: skip
    results.update(HERE / "results.json", records)


def measured(checkpoint: str, beside: str | None, video: Path, asked: int, picture: Path | None) -> dict[str, float]:
    """{metric: value} of so many visitors, and the seconds that all of it took; the last one's page as a picture."""
    began, taken, busy = time.monotonic(), [], []
    with served(Settings(checkpoint, beside, port=free_port())) as address, Window(address) as window:
        for visitor in range(asked):
            window.open(address)
            window.upload(video)
            before = time.process_time()
            taken.append(window.first_letter_ms(QUESTION))
            busy.append(1e3 * (time.process_time() - before))
            window.answered()
            log.info("visitor %d: %.0f ms", visitor, taken[-1])
        if picture is not None:
            window.keep(picture)
    first, *others = taken
    return {
        "click_to_first_letter_ms": statistics.median(others),
        "largest_click_to_first_letter_ms": max(others),
        "first_click_to_first_letter_ms": first,
        "server_processor_ms": statistics.median(busy[1:]),
        "load": os.getloadavg()[0],
        "seconds": time.monotonic() - began,
    }


def clip(folder: Path) -> Path:
    """A clip of the built-in set before waves of colour."""
    haystack = folder / "haystack"
    haystack.mkdir()
    waves(haystack / "waves.mp4")
    counts = {"train_clips": 0, "val_clips": 0, "test_clips": 1, "text_chats": 0}
    made = Needles(root=str(folder), haystack=str(haystack), domains=["general"], generate_workers=1, **counts)
    made.prepare(progress=False)
    file = folder / "clip.mp4"
    file.write_bytes(made.manifest().split("test").read(0)["mp4"])
    return file


def waves(file: Path) -> None:
    """Six seconds."""
    import av

    y, x = np.mgrid[:96, :128] / 24.0
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for i in range(60):
            turns = (x + i / 20, y - i / 30, x + y + i / 25)
            picture = np.stack([110 + 50 * np.sin(turn) for turn in turns], axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())


if __name__ == "__main__":
    main()
