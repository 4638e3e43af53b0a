"""What every small run of the tests has in common: its settings, videos, and folders that are made once."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

# What every small run of train.py has in common; the dataset's folders come from the ``needles`` fixture.
SMALL = [
    "dataset.size=32", "dataset.frames=8", "dataset.num_frames=4", "dataset.train_clips=24", "dataset.val_clips=8",
    "dataset.test_clips=8", "dataset.text_chats=8", "dataset.shard_clips=12", "dataset.generate_workers=1",
    "vision.dim=32", "vision.num_layers=1", "vision.num_heads=2", "vision.image_size=32",
    "language.hidden_size=32", "language.intermediate_size=64", "language.num_layers=1", "language.num_heads=2",
    "language.num_kv_heads=2",
    "trainer.precision=32-true", "trainer.threads=1", "trainer.log_every=1", "callback.media=2",
]  # fmt: skip


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """``folder``, filled by ``make`` in the first process that asks; the others wait for it."""
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / ".made"
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def write_haystack(folder: Path) -> None:
    """Two videos of coarse noise that changes slowly: real H.264 without a package that brings it."""
    import av
    import numpy as np

    for name, seed in (("a", 0), ("b", 1)):
        rng = np.random.default_rng(seed)
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(60):
                blocks = rng.integers(60, 160, (3, 4, 3), np.uint8)
                picture = np.kron(blocks, np.ones((16, 16, 1), np.uint8))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())
