"""From what a row calls its video to the file, the folder of stills or the bytes; and whether they can be read."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hvlm.data import decode_process
from hvlm.data.samples import natural
from hvlm.data.tar import STILL_FIELDS, VIDEO_FIELDS
from hvlm.data.video import VideoDecodeError
from hvlm.prepare.formats import Blob, load
from hvlm.prepare.formats._zip import blobs
from hvlm.prepare.probe import probe, probe_stills
from hvlm.prepare.problems import Problem

ENDINGS = VIDEO_FIELDS + STILL_FIELDS
# What files of a kind begin with: (at which byte, these bytes, its ending).
MARKS = (
    (0, b"\xff\xd8", "jpg"), (0, b"\x89PNG", "png"), (0, b"GIF8", "gif"), (0, b"BM", "bmp"), (8, b"WEBP", "webp"),
    (8, b"AVI ", "avi"), (4, b"ftyp", "mp4"), (0, b"\x1aE\xdf\xa3", "mkv"),
)  # fmt: skip
MOST_STILLS = 10_000  # of one clip
LATE = "not decoded in time"  # what another start, with more time, tries again


@dataclass(frozen=True)
class Medium:
    """What is shown. name: relative to the folder of videos, or the table's name for it. parts: files or blobs, one for
    a video, one for each still. fields: the ending of each, in small letters. size: bytes."""

    name: str
    parts: tuple[str | Blob, ...]
    fields: tuple[str, ...]
    size: int

    @property
    def is_video(self) -> bool:
        return self.fields[0] in VIDEO_FIELDS

    def members(self) -> dict[str, bytes | Path]:
        """Fields of a sample: the video, the picture, or numbered stills."""
        data = [Path(part) if isinstance(part, str) else load(part) for part in self.parts]
        if len(data) == 1:
            return {self.fields[0]: data[0]}
        digits = max(3, len(str(len(data) - 1)))
        return {f"{i:0{digits}d}.{field}": d for i, (field, d) in enumerate(zip(self.fields, data, strict=True))}


class Finder:
    """Finds files below a folder and nowhere else.

    by_name: a path that is not there is also looked for by its last part alone, below the whole folder and in the zip
        files in it, as public corpora are unpacked in many ways. notes: archives that cannot be read, one line each.
    """

    def __init__(self, root: Path, by_name: bool = False) -> None:
        self.root = Path(os.path.abspath(root))
        self.by_name = by_name
        self.notes: list[str] = []
        self._found: dict[str, Medium | Problem] = {}
        self._names: dict[str, list[str]] | None = None
        self._zipped: dict[str, list[Blob]] | None = None
        self._blobs: dict[str, tuple[str, ...]] = {}  # what a name of media inside tables first stood for

    def find(self, value: Any) -> Medium:
        """The medium that a cell names: a path, a folder of stills, a list of stills, bytes. Raises Problem."""
        if isinstance(value, Blob):
            return self._of_table([value])
        if isinstance(value, dict):
            value = value.get("path") or value.get("url")
        if isinstance(value, (list, tuple)):
            if not value:
                raise Problem("no file named", "the list of files is empty")
            if len(value) > 1:
                return self._several(list(value))
            return self.find(value[0])
        if value is None or not str(value).strip():
            raise Problem("no file named", "no video or picture is named")
        name = str(value).strip().removeprefix("file://")
        if name not in self._found:
            try:
                self._found[name] = self._medium(name)
            except Problem as problem:
                self._found[name] = problem
        found = self._found[name]
        if isinstance(found, Problem):
            raise Problem(found.kind, found.reason, found.file)
        return found

    def _several(self, values: list[Any]) -> Medium:
        if all(isinstance(v, Blob) for v in values):
            return self._of_table(values)
        media = [self.find(v) for v in values]
        if any(m.is_video or len(m.parts) > 1 for m in media):
            raise Problem("several videos", "one row shows one video, one folder of stills, or stills", media[0].name)
        return Medium(
            "+".join(m.name for m in media),
            tuple(m.parts[0] for m in media),
            tuple(m.fields[0] for m in media),
            sum(m.size for m in media),
        )

    def _of_table(self, blobs: list[Blob]) -> Medium:
        """Tables call many pictures by one name (image.jpg), or by none: what differs is told apart by its sum."""
        medium, sums = _of_blobs(blobs), tuple(blob.sha256 for blob in blobs)
        if self._blobs.setdefault(medium.name, sums) == sums:
            return medium
        stem, ending = os.path.splitext(medium.name)
        digest = hashlib.sha256(" ".join(sums).encode()).hexdigest()[:12]
        return replace(medium, name=f"{stem}-{digest}{ending}")

    def _medium(self, name: str) -> Medium:
        if "://" in name:
            raise Problem("a URL", "files are read from folders alone; download it first", name)
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            raise Problem("missing file", "the name is no text", name) from None
        if "\0" in name:
            raise Problem("path leads out", "the path holds a NUL", name.replace("\0", "?"))
        path = os.path.normpath(os.path.join(self.root, name))
        if os.path.commonpath([path, self.root]) != str(self.root):
            raise Problem("path leads out", f"not below {self.root}; name the folder with videos=FOLDER", name)
        if not os.path.exists(path):
            if self.by_name and (blob := self._in_zip(name)) is not None:
                return _of_blobs([blob])
            path = self._searched(name, path)
        shown = os.path.relpath(path, self.root).replace(os.sep, "/")
        if os.path.isdir(path):
            files = [e.path for e in os.scandir(path) if _ending(e.name) in STILL_FIELDS and not e.name.startswith(".")]
            if not files:
                raise Problem("missing file", f"a folder without pictures ({', '.join(STILL_FIELDS)})", shown)
            files.sort(key=lambda f: natural(os.path.basename(f)))
        else:
            files = [path]
        if len(files) > MOST_STILLS:
            raise Problem("too many stills", f"{len(files)} stills, at most {MOST_STILLS} make a clip", shown)
        fields = tuple(_ending(file) for file in files)
        if fields[0] not in ENDINGS:
            reason = f"files ending in .{fields[0]} are not read; make it an .mp4: ffmpeg -i {shown} {shown}.mp4"
            raise Problem("unknown kind of file", reason, shown)
        try:
            sizes = [os.path.getsize(file) for file in files]
        except OSError as error:  # a link to nothing
            raise Problem("cannot be read", error.strerror or str(error), shown) from error
        if 0 in sizes:
            raise Problem("empty file", "the file holds nothing", os.path.relpath(files[sizes.index(0)], self.root))
        return Medium(shown, tuple(files), fields, sum(sizes))

    def _searched(self, name: str, path: str) -> str:
        """The one file of this name, with or without its ending, below the folder. Raises Problem."""
        # Accents that a Mac has taken apart, or the table; the separators of Windows.
        others = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")] + [name.replace("\\", "/")]
        for other in others:
            way = os.path.normpath(os.path.join(self.root, other))
            if other != name and os.path.exists(way) and os.path.commonpath([way, self.root]) == str(self.root):
                return way
        if same := [f"{path}.{e}" for e in ENDINGS if os.path.isfile(f"{path}.{e}")]:
            found = same
        elif ("/" in name or os.sep in name) and not self.by_name:
            found = []
        else:
            if self._names is None:
                self._names = dict(_names_below(self.root))
            found = self._names.get(os.path.basename(name), [])
        if len(found) == 1:
            return found[0]
        if found:
            shown = [os.path.relpath(f, self.root) for f in found[:3]]
            raise Problem("several files", f"could be {', '.join(shown)}; write the whole path", name)
        raise Problem("missing file", f"not below {self.root}; name the folder with videos=FOLDER", name)

    def _in_zip(self, name: str) -> Blob | None:
        """The one member of a zip below the folder that has this path, or at least its last part. None: not one."""
        if self._zipped is None:
            self._zipped = {}
            for place, folders, files in os.walk(self.root):
                folders[:] = sorted(f for f in folders if not f.startswith("."))
                for file in sorted(f for f in files if f.lower().endswith(".zip") and not f.startswith(".")):
                    try:
                        for blob in blobs(Path(place, file)):
                            if _ending(blob.name) in ENDINGS:
                                base = os.path.basename(blob.name)
                                for known in {blob.name, base, os.path.splitext(base)[0]}:
                                    self._zipped.setdefault(known, []).append(blob)
                    except OSError as error:
                        self.notes.append(f"{file} is not looked into ({error}); join its parts, or copy it again")
        for known in (name, os.path.basename(name)):
            if len(found := self._zipped.get(known, [])) == 1:
                return found[0]
        return None


def _names_below(root: Path) -> Iterator[tuple[str, list[str]]]:
    names: dict[str, list[str]] = {}
    for place, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            stem, _, ending = file.rpartition(".")
            if ending.lower() in ENDINGS and not file.startswith("."):
                names.setdefault(file, []).append(os.path.join(place, file))
                names.setdefault(stem, []).append(os.path.join(place, file))
    yield from names.items()


def _of_blobs(blobs: list[Blob]) -> Medium:
    for blob in blobs:
        if not blob.size:
            raise Problem("empty file", "no bytes in the table", blob.name)
    fields = tuple(_ending(b.name) if _ending(b.name) in ENDINGS else _sniffed(b) for b in blobs)
    if len(blobs) > 1 and any(field in VIDEO_FIELDS for field in fields):
        raise Problem("several videos", "one row shows one video, or stills", blobs[0].name)
    return Medium(blobs[0].name or blobs[0].sha256[:16], tuple(blobs), fields, sum(b.size for b in blobs))


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower().lstrip(".")


def _sniffed(blob: Blob) -> str:
    """The ending that the first bytes say. Raises Problem."""
    head = load(blob)[:16]
    for at, mark, ending in MARKS:
        if head[at : at + len(mark)] == mark:
            return ending
    raise Problem("unknown kind of file", "the bytes are none of a picture or video that is known", blob.name)


# ------------------------------------------------------------------------------------------------- can it be read?


def check(medium: Medium, members: dict[str, bytes | Path], frames: int, fps: float, timeout: float | None) -> float:
    """Open and decode as the reader will: the first, the last and ``frames`` frames between.

    Args:
        members: as ``medium.members()`` gives them.
        fps: of stills.
        timeout: seconds, in a process that is killed when they are over; None decodes here.

    Returns:
        Seconds that it lasts.

    Raises:
        Problem: it cannot be decoded, or not in time.
    """
    sources = list(members.values())
    args: tuple[Any, ...] = (probe, sources[0], frames) if medium.is_video else (probe_stills, sources, frames, fps)
    try:
        return decode_process.result(*args, timeout=timeout) if timeout else args[0](*args[1:])
    except decode_process.DecodeTimeout:
        reason = f"not decoded within {timeout:g} s; if the file is sound, raise decode_timeout"
        raise Problem(LATE, reason, medium.name) from None
    except VideoDecodeError as error:
        reason = re.sub(r"^\[Errno \d+\] |: 'file:.*'$", "", error.reason)
        raise Problem("cannot be decoded", reason, medium.name) from error
    except OSError as error:
        raise Problem("cannot be read", error.strerror or str(error), medium.name) from error
