"""Members of a tar as blobs: published shards, whose stills stay where they are until a new shard takes them."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path

from hvlm.data.tar import TEXT_FIELDS, check_end, first_nonzero, members_of, open_tar
from hvlm.errors import UserError
from hvlm.prepare.formats import Blob

FORMAT = "_tar"
LONGEST_TEXT = 16 << 20  # bytes


def samples(path: Path) -> Iterator[tuple[str, dict[str, Blob], dict[str, bytes]]]:
    """(key, {field: blob} of what is shown, {field: bytes} of what is said) of each run of members with one key.
    Raises UserError where the tar cannot be read to its end."""
    key, shown, said, count = "", dict[str, Blob](), dict[str, bytes](), 0
    try:
        with open(path, "rb") as file, open_tar(file, "r:") as tar:
            for info, (name, field, offset, size) in members_of(tar, str(path), set()):
                if offset + size > path.stat().st_size:
                    raise tarfile.ReadError(f"{info.name} claims {size:,} bytes, more than there are")
                if name != key and (shown or said):
                    yield key, shown, said
                    shown, said = {}, {}
                if name != key:
                    key, count = name, count + 1
                if field in TEXT_FIELDS:
                    said[field] = read(path, offset, min(size, LONGEST_TEXT + 1))
                else:
                    digest = hashlib.sha256(read(path, offset, size)).hexdigest()
                    shown[field] = Blob(FORMAT, str(path), 0, offset, info.name, info.name, size, digest)
            end = tar.offset
            check_end(end, path.stat().st_size, first_nonzero(file, end), str(path), count)
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise UserError(f"{path}: the shard cannot be read ({error}); copy it again or leave it out") from error
    if shown or said:
        yield key, shown, said


def load(blob: Blob) -> bytes:
    """The bytes of a blob."""
    return read(Path(blob.file), blob.row, blob.size)


def read(path: Path, offset: int, size: int) -> bytes:
    """So many bytes from there."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
