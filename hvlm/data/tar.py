"""What of a tar can be part of a sample, and the ways in which a tar can be wrong.

One reading of member names and one list of refusals for shards that are indexed and for shards that are streamed.
Nothing here unpacks, unpickles or follows anything: members are regular files whose bytes stand in the archive.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from hvlm.errors import UserError

TEXT_FIELDS = ("json", "txt")  # members that hold a sample's text
VIDEO_FIELDS = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "ts", "wmv", "flv", "3gp", "gif")  # its video
STILL_FIELDS = ("jpg", "jpeg", "png", "webp", "bmp")  # its stills
FIELDS = VIDEO_FIELDS + STILL_FIELDS + TEXT_FIELDS  # what a member may be; the rest is never read
LONGEST_NAME = 255  # of a file, in characters; no file system has longer ones
BLOCK = 512
END_MARK = 2 * BLOCK  # zeros that close an archive
LONGEST_HEADER = 1 << 20  # bytes of what stands before a member about it: long names, extended headers, sparse maps
_BEFORE_A_MEMBER = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip
_CHUNK = 1 << 20


class CheckedInfo(tarfile.TarInfo):
    """A member's header. An extended one is read into memory whole, so one that claims more than ``LONGEST_HEADER``
    bytes is refused before: tarfile.ReadError."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> CheckedInfo:
        """See ``tarfile.TarInfo.frombuf``."""
        info = super().frombuf(buf, encoding, errors)
        if info.type in _BEFORE_A_MEMBER and not 0 <= info.size <= LONGEST_HEADER:
            raise tarfile.ReadError(
                f"an extended header claims {info.size:,} bytes, at most {LONGEST_HEADER:,} are read"
            )
        return info

    def _proc_sparse(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        with _read_little(tar):
            return super()._proc_sparse(tar)  # type: ignore[misc]

    def _proc_gnusparse_10(self, member: tarfile.TarInfo, headers: Any, tar: tarfile.TarFile) -> None:
        with _read_little(tar):
            super()._proc_gnusparse_10(member, headers, tar)  # type: ignore[misc]


@contextmanager
def _read_little(tar: tarfile.TarFile) -> Iterator[None]:
    """Where a sparse file's map is read, which says no length: ReadError after ``LONGEST_HEADER`` bytes of it, or where
    it is no map."""
    file = tar.fileobj
    tar.fileobj = _Little(file)  # type: ignore[assignment]
    try:
        yield
    except ValueError as error:
        raise tarfile.ReadError("the map of a sparse file is damaged") from error
    finally:
        tar.fileobj = file


class _Little:
    """What ``tarfile`` asks of a file while it reads such a map."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, LONGEST_HEADER
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise tarfile.ReadError(f"the map of a sparse file is longer than {LONGEST_HEADER:,} bytes")
        data: bytes = self._file.read(size)
        if len(data) < size:
            raise tarfile.ReadError("the map of a sparse file ends too early")
        return data


class Member(NamedTuple):
    """One file of a sample. key: the sample's name. field: the rest of the file's name, in small letters (``mp4``,
    ``000.jpg``). offset, size: of its bytes in the archive."""

    key: str
    field: str
    offset: int
    size: int


def check_key(key: str, where: str) -> str:
    """Return ``key`` if it is safe in a file name below some folder, else raise UserError naming ``where``."""
    parts = key.replace("\\", "/").split("/")
    if not key or key.startswith(("/", "\\")) or ".." in parts or "\0" in key:
        raise UserError(f"{where}: sample key {key!r} is refused: a key must not be empty, absolute, hold '..' or NUL")
    return key


def is_field(field: str) -> bool:
    """Whether a member of this name is ever read."""
    return field.rsplit(".", 1)[-1].lower() in FIELDS


def split_name(name: str, where: str) -> tuple[str, str] | None:
    """``a/b.000.JPG`` -> (``a/b``, ``000.jpg``): the key is everything before the first dot of the file's name.

    None for what is never read: other file types, and hidden files such as the ``._name`` that macOS puts beside every
    file. Raises UserError for a key that could leave a folder.
    """
    head, _, base = name.rpartition("/")
    stem, dot, field = base.partition(".")
    if not dot or not stem or len(base) > LONGEST_NAME or not is_field(field):
        return None
    return check_key(f"{head}/{stem}" if head or name.startswith("/") else stem, where), field.lower()


def open_tar(file: IO[bytes], mode: str) -> tarfile.TarFile:
    """``mode``: ``r:`` or ``r|``, both of uncompressed archives alone, so that none can unfold in memory.

    Names are read the same way under every locale; bytes that are no UTF-8 become ``\\xNN``.
    """
    return tarfile.open(fileobj=file, mode=mode, encoding="utf-8", errors="backslashreplace", tarinfo=CheckedInfo)


def members_of(tar: tarfile.TarFile, where: str, ignored: set[str]) -> Iterator[tuple[tarfile.TarInfo, Member]]:
    """The members that can be part of a sample, in order; the endings of the others are added to ``ignored``.

    Raises UserError for a sparse file (a few bytes that unfold to gigabytes), and for a header whose size leads
    backwards, so that two members would share bytes.
    """
    end = 0
    for info in tar:
        if info.issparse():
            raise UserError(
                f"{where}: {info.name!r} is a sparse file; write the shard with plain ones (tar without -S)"
            )
        if info.size < 0 or info.offset < end or tar.offset < info.offset_data:
            raise UserError(
                f"{where}: the header of {info.name!r} is damaged (size {info.size}); write the shard again"
            )
        end = tar.offset
        if info.isdir():
            continue
        named = split_name(info.name, where) if info.isreg() else None
        if named is None:
            ignored.add("links" if info.islnk() or info.issym() else info.name.rpartition("/")[2].partition(".")[2])
            continue
        yield info, Member(*named, info.offset_data, info.size)


def check_end(end: int, size: int, after: int | None, where: str, samples: int) -> None:
    """What tarfile passes over: it takes a damaged header, a cut between two members and the seam of two joined
    archives for the end, and says nothing.

    end: byte after the last member. size: of the file. after: a byte at or after ``end`` that is not zero, or None.
    Raises UserError.
    """
    if after is not None:
        raise UserError(
            f"{where}: the tar ends after {samples} samples at byte {end}, but byte {after} of {size} is not zero: it "
            "was joined by cat, or a header is damaged, and the rest would be lost; join archives with "
            "tar --concatenate, or write or copy the shard again"
        )
    if size - end < END_MARK:
        raise UserError(
            f"{where}: the tar stops after {samples} samples at byte {end} of {size} without an end mark, so it was "
            "cut; write or copy the shard again"
        )


def first_nonzero(file: IO[bytes], start: int) -> int | None:
    """Offset of the first byte at or after ``start`` that is not zero, None where all are."""
    file.seek(start)
    while chunk := file.read(_CHUNK):
        if rest := chunk.lstrip(b"\0"):
            return start + len(chunk) - len(rest)
        start += len(chunk)
    return None


class Watched:
    """A stream that cannot go back, with what ``check_end`` needs to know of it: how much came, and from where on it
    was zeros to the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size, self.content = file, 0, 0  # content: bytes up to the last one that is not zero

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        if kept := len(data.rstrip(b"\0")):
            self.content = self.size + kept
        self.size += len(data)
        return data

    def drain(self) -> None:
        """Read to the end."""
        while self.read(_CHUNK):
            pass
