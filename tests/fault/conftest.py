"""What the tests of faults share: disks that are really full, and sets of shards made of real clips."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(megabytes)``: a file system of that size, in memory; skipped where nobody may mount one."""
    mounted: list[Path] = []

    def make(megabytes: int) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        try:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)],
                capture_output=True,
                text=True,
            )
        except FileNotFoundError:
            pytest.skip("no mount command, so no disk can be filled")
        if done.returncode:
            pytest.skip(f"a small disk needs the right to mount one: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than the tests' own; skipped where the machine has none."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system: /dev/shm is not there, or is where the tests lie")
    place = memory / f"hvlm-tests-{os.getpid()}"
    place.mkdir()
    yield place
    with contextlib.suppress(OSError):
        for file in place.iterdir():
            file.unlink()
        place.rmdir()


@pytest.fixture
def fill() -> Callable[[Path], None]:
    """``fill(folder)``: write there until the disk takes no further byte."""

    def until_full(folder: Path) -> None:
        with open(folder / "ballast", "wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    return until_full
