"""Members of zip files as blobs, so that videos need not be extracted. A member is known by its name, size and CRC."""

from __future__ import annotations

import hashlib
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from hvlm.prepare.formats import Blob

FORMAT = "_zip"
CHECKED = True  # its own CRC stands for the bytes; they are not read before a shard takes them
LARGEST = 4 << 30  # bytes of a member
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def blobs(path: Path) -> Iterator[Blob]:
    """The files of an archive. Raises OSError where it is none, or is cut."""
    for row, info in enumerate(_opened(str(path)).infolist()):
        if not info.is_dir():
            name = info.filename.replace("\\", "/")
            yield Blob(FORMAT, str(path), 0, row, name, name, info.file_size, _digest(info))


def load(blob: Blob) -> bytes:
    """The bytes of a blob. Raises OSError where they are damaged or are no longer what they were."""
    if blob.size > LARGEST:
        raise OSError(f"{blob.size:,} bytes in a zip, at most {LARGEST:,} are read; extract it")
    archive = _opened(blob.file)
    infos = archive.infolist()
    if blob.row >= len(infos) or _digest(infos[blob.row]) != blob.sha256:
        raise OSError(f"{blob.file} changed while it was read; start again")
    try:
        return archive.read(infos[blob.row])
    except (*DAMAGED, NotImplementedError, RuntimeError, EOFError) as error:  # damaged, odd, or locked
        raise OSError(f"{os.path.basename(blob.file)}: {error}") from error


def _digest(info: zipfile.ZipInfo) -> str:
    return hashlib.sha256(f"{info.filename}\0{info.file_size}\0{info.CRC}".encode("utf-8", "surrogatepass")).hexdigest()


@lru_cache(maxsize=16)
def _of_process(path: str, process: int) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:  # none, cut, or of a version that is not known
        raise OSError(f"{os.path.basename(path)}: {error}") from error


def _opened(path: str) -> zipfile.ZipFile:
    return _of_process(path, os.getpid())  # a position in a file is not shared with a forked process
