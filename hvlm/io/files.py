"""Files that a kill cannot damage: written beside their destination, synced, and moved over it in one step.

Beside a checkpoint ``x.ckpt`` stands ``x.ckpt.sha256`` in the format of ``sha256sum``. No torch here: ``--help`` and a
sweep's own process do not wait for it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hvlm.errors import UserError
from hvlm.io.foreign import text_of, whole

PART = ".part"
SIDECAR = ".sha256"
LAST = "last.ckpt"
FINISHED = "finished.json"
METRICS = "metrics.jsonl"
LOCK = ".lock"


def write_atomically(path: Path, write: Callable[[Any], None]) -> None:
    """``write(file)`` into a temporary file in the same folder, then move it over ``path``: all of it or nothing."""
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        with open(part, "wb") as f:  # a plain open: the mode follows the umask
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """``write_atomically`` of a text in UTF-8; what that cannot hold (half a surrogate pair) becomes an escape."""
    write_atomically(path, lambda f: f.write(text.encode("utf-8", "backslashreplace")))


def sync_folder(folder: Path) -> None:
    """Makes a rename durable; without it a power cut may bring the old name back."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_writable(folder: Path, key: str, make: bool = True) -> None:
    """Before any work: whether files can be written into a folder.

    Args:
        folder: made if it is not there.
        key: what the user wrote to name it (``out``), for the message.
        make: False makes nothing that stays: of a folder that is not there, the nearest one above it is asked.

    Raises:
        UserError: they cannot.
    """
    place = folder
    try:
        if make:
            place.mkdir(parents=True, exist_ok=True)
        while not place.exists():
            place = place.parent
        probe = place / f".{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written ({error.strerror}); name another folder") from error


@contextmanager
def folder_for(folder: Path, key: str) -> Iterator[None]:
    """``check_writable``, and inside the block the work that fills the folder: where it fails before it has written
    anything, the folder that was made for it goes again.

    Args:
        folder, key: see ``check_writable``.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        check_writable(folder, key)
        yield
    except BaseException:
        for place in made:
            try:
                if os.listdir(place) == [LOCK]:
                    (place / LOCK).unlink()
                place.rmdir()
            except OSError:  # something stands in it, or it is not there
                break
        raise


def clean_parts(folder: Path, alone: bool = False) -> None:
    """Removes what a killed process left: half-written files, and sums whose checkpoint is gone.

    alone: nobody else writes here (a lock says so). A process that was just killed may seem to live for a moment.
    """
    for part in folder.glob(f"*{PART}"):
        pid = part.name.removesuffix(PART).rpartition(".")[2]
        if alone or not pid.isdigit() or int(pid) == os.getpid() or not _is_alive(int(pid)):
            part.unlink(missing_ok=True)
    for sidecar in folder.glob(f"*{SIDECAR}"):
        if not sidecar.with_name(sidecar.name.removesuffix(SIDECAR)).exists():
            sidecar.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, of another user
        return True
    return True


_SUMS: dict[Path, tuple[tuple[int, int, int], str]] = {}  # path: ((size, mtime in ns, inode), sha256)


def file_state(path: Path) -> tuple[int, int, int]:
    """(size in bytes, modification time in nanoseconds, inode): equal while nobody wrote or replaced the file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def file_sha256(path: Path) -> str:
    """The file's sha256, read from the disk once and remembered for as long as its ``file_state`` stays."""
    path = path.absolute()
    state = file_state(path)
    known = _SUMS.get(path)
    if known is None or known[0] != state:
        with open(path, "rb") as f:
            known = _SUMS[path] = (state, hashlib.file_digest(f, "sha256").hexdigest())
    return known[1]


def remember_sha256(path: Path, digest: str) -> None:
    """Tell ``file_sha256`` the sum of what was just written."""
    path = path.absolute()
    _SUMS[path] = (file_state(path), digest)


def safe_name(*parts: str) -> str:
    """A file name made from data (sample keys, question ids): stays in its folder, whatever the data say.

    The parts are joined by ``+``. Letters, digits, ``.``, ``_`` and ``-`` stay, any other character becomes ``_``; a
    name that was changed or cut ends with some digits of its text's hash, so that different texts stay apart.
    """
    plain = ["".join(c if c.isalnum() and c.isascii() or c in "._-" else "_" for c in part) for part in parts]
    name = "+".join(plain).lstrip(".")[:120]
    if name and name == "+".join(parts):
        return name
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{name}-{digest}"


def is_plain_name(name: Any) -> bool:
    """Whether a name that somebody gave is one folder's or file's name everywhere, and leads nowhere else: letters,
    digits, ``_`` and ``-``."""
    return isinstance(name, str) and 0 < len(name) <= 100 and all(c.isalnum() or c in "_-" for c in name)


def known_sums(path: Path) -> list[str]:
    """The sums that the sidecar of ``path`` accepts; empty without a sidecar."""
    sidecar = path.with_name(path.name + SIDECAR)
    if not sidecar.exists():
        return []
    return [line.split()[0] for line in sidecar.read_text().splitlines() if line.strip()]


def verify(path: Path) -> str | None:
    """None when the file is what was written, else what is wrong with it, in a few words."""
    sums = known_sums(path)
    if not sums:
        return f"no checksum {path.name}{SIDECAR} beside it"
    if file_sha256(path) not in sums:
        return "its content differs from its checksum (cut short or altered)"
    return None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, in the order in which they were written; [] when there is no such file."""
    path = Path(folder) / METRICS
    if not path.exists():
        return []
    lines = []
    for text in text_of(path).split("\n"):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # the line that was being written when the process was killed
        if isinstance(line, dict) and whole(line.get("step")):
            lines.append(line)
    return lines
