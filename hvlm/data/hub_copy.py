"""A benchmark's copy from the Hugging Face hub: what would be fetched is said with its size, and it is fetched only
where ``benchmark.download`` asks for it. It lies in the cache folder (``$HVLM_CACHE``) in its published layout, its
archives unpacked; from then on no hub is needed."""

from __future__ import annotations

import io
import json
import logging
import lzma
import os.path
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from hvlm.console import size_in_words
from hvlm.data.tar import STILL_FIELDS, VIDEO_FIELDS, CheckedInfo
from hvlm.errors import UserError
from hvlm.io.files import write_text
from hvlm.io.foreign import json_of
from hvlm.io.pretrained import cache_folder, one_line

log = logging.getLogger(__name__)

HUB = "hub"
QUESTIONS, ALL = "questions", "all"
MARK = "hvlm.json"  # what is there: {repo, commit, download (empty until all of it came), unpacked}
_ARCHIVE = re.compile(r"\.(zip|tar|tar\.gz|tgz)$")
_PART = re.compile(r"(\.(?:zip|tar|tar\.gz|tgz))\.(?:part[._-]?)?(\w{2,3})$")  # videos.tar.part.aa
_MEDIA = (*VIDEO_FIELDS, *STILL_FIELDS, "srt")
UNFOLDS = 100  # times its bytes, to which an archive is unpacked at most: subtitles come to 5, videos to 1
SMALL = 10_000  # bytes, as which a smaller archive counts
_DAMAGED = (
    OSError, ValueError, LookupError, ArithmeticError, RuntimeError, EOFError, zlib.error, lzma.LZMAError,
    zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip


class Listing(NamedTuple):
    """What a repository holds at a commit: {file: bytes}, the files of questions among them, and those of videos."""

    commit: str
    sizes: dict[str, int]
    questions: list[str]
    videos: list[str]

    def said(self, files: Sequence[str]) -> str:
        """How many files, and how large."""
        return f"{len(files)} file{'s' * (len(files) != 1)} ({size_in_words(sum(self.sizes[f] for f in files))})"


def copy_of(repo: str, revision: str | None, download: str | None, patterns: Sequence[str]) -> Path:
    """The folder of the copy.

    Args:
        repo: the data set's name on the hub, owner/name. revision: branch, tag or commit; None: the main branch, as it
            was when it was fetched.
        download: ``questions`` or ``all`` fetches what is not there yet; None: nothing.
        patterns: of the files of questions.

    Raises:
        UserError: it is not there and nothing is to be fetched (with the sizes); no hub; no such repository; no room.
    """
    folder = cache_folder() / "benchmarks" / (repo.replace("/", "--") + (f"@{revision}" if revision else ""))
    held = marked(folder)
    if held.get("download") and (download is None or held["download"] in (download, ALL)):
        return folder
    listing = _listed(repo, held.get("commit") or revision, patterns)
    if download is None:
        raise UserError(
            f"benchmark.path=hub: {repo} is not here yet: {listing.said(listing.questions)} of questions, and "
            f"{listing.said(listing.videos)} of videos; benchmark.download=questions fetches the former, "
            f"benchmark.download=all both, into {folder}"
        )
    unpacked = held.get("unpacked", [])
    wanted = [*listing.questions, *(listing.videos if download == ALL else [])]
    wanted = [file for file in wanted if file not in unpacked]
    _check_room(folder, listing, wanted)
    log.info("fetching %s of %s at %s from the hub into %s", listing.said(wanted), repo, listing.commit[:12], folder)
    mark = {"repo": repo, "commit": listing.commit, "download": held.get("download", ""), "unpacked": unpacked}
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, mark)  # before anything comes: what goes on later goes on at this commit
    _fetch(repo, listing.commit, wanted, folder)
    for name, parts in archives(wanted).items():
        log.info("unpacking %s", name)
        _unpack(folder, name, parts)
        mark["unpacked"] = unpacked = [*unpacked, *parts]
        _write(folder, mark)
        for part in parts:
            (folder / part).unlink()
    _write(folder, mark | {"download": download})
    return folder


def marked(folder: Path) -> dict[str, Any]:
    """What the mark of a copy says, {} where there is none."""
    try:
        found = json_of(folder / MARK, most=16 << 20)
    except UserError:
        return {}
    texts = {"repo", "commit", "download"}
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in texts):
        return {}
    unpacked = found.get("unpacked", [])
    return found if isinstance(unpacked, list) and all(isinstance(name, str) for name in unpacked) else {}


def archives(files: Iterable[str]) -> dict[str, list[str]]:
    """{archive: the file, or the files that make it one behind the other}."""
    found: dict[str, list[str]] = {}
    for file in sorted(files):
        if part := _PART.search(file):
            found.setdefault(file[: part.end(1)], []).append(file)
        elif _ARCHIVE.search(file):
            found.setdefault(file, []).append(file)
    return found


def _write(folder: Path, mark: dict[str, Any]) -> None:
    write_text(folder / MARK, json.dumps(mark, indent=1) + "\n")


def _listed(repo: str, revision: str | None, patterns: Sequence[str]) -> Listing:
    from huggingface_hub import HfApi

    info = _of_the_hub(repo, partial(HfApi().dataset_info, repo, revision=revision, files_metadata=True))
    sizes = {one.rfilename: int(one.size or 0) for one in info.siblings or []}
    if outside := next((file for file in sizes if _leads_out(file)), None):
        raise UserError(
            f"benchmark.hub={repo}: holds the file {outside!r:.80}, which leads out of its copy; name another"
        )
    questions = [file for file in sizes if any(_matches(file, pattern) for pattern in patterns)]
    if not questions:
        raise UserError(
            f"benchmark.hub={repo}: holds none of {', '.join(patterns)}; name another repository, or its tables with "
            "benchmark.tables=[...]"
        )
    known = set(questions) | {part for parts in archives(sizes).values() for part in parts}
    media = [file for file in sizes if file.rpartition(".")[2].lower() in _MEDIA]
    return Listing(str(info.sha), sizes, questions, sorted((known | set(media)) - set(questions)))


def _matches(file: str, pattern: str) -> bool:
    """As ``Path.glob`` does: * is no folder."""
    ours, theirs = file.split("/"), pattern.split("/")
    return len(ours) == len(theirs) and all(map(fnmatchcase, ours, theirs))


def _leads_out(file: str) -> bool:
    """Whether a name of the hub's is one outside its folder."""
    return os.path.isabs(file) or ".." in re.split(r"[/\\]", file)


def _check_room(folder: Path, listing: Listing, wanted: Sequence[str]) -> None:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    packed = {part for parts in archives(wanted).values() for part in parts}
    needed = sum(listing.sizes[file] * (2 if file in packed else 1) for file in wanted)
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"benchmark.download: {size_in_words(needed)} are needed in {folder} (archives and what is in them), "
            f"{size_in_words(free)} are free; let $HVLM_CACHE name a folder with more room"
        )


def _fetch(repo: str, commit: str, files: Sequence[str], folder: Path) -> None:
    from huggingface_hub import snapshot_download

    exactly = [re.sub(r"([*?[])", r"[\1]", file) for file in files]
    _of_the_hub(repo, partial(snapshot_download, repo, repo_type="dataset", revision=commit, local_dir=folder, allow_patterns=exactly))  # fmt: skip  # noqa: E501
    if lacking := [file for file in files if not (folder / file).is_file()]:
        raise UserError(f"benchmark.hub={repo}: {lacking[0]} did not come; start again to go on")


def _of_the_hub(repo: str, call: Any) -> Any:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return call()
    except GatedRepoError as error:
        raise UserError(
            f"benchmark.hub={repo}: the hub asks for an agreement to its licence; give it on the data set's page and "
            "log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"benchmark.hub={repo}: {one_line(error)}; expected owner/name of a data set, and of its revisions"
        ) from error
    except Exception as error:
        known = isinstance(error, HfHubHTTPError | LocalEntryNotFoundError | OSError)
        if not known and not type(error).__module__.startswith("httpx"):  # httpx or httpx2, by the hub's version
            raise
        raise UserError(
            f"benchmark.path=hub: {repo} is not here, and the Hugging Face hub cannot be reached ({one_line(error)}); "
            "go online, or name your local copy with benchmark.path=FOLDER"
        ) from error


class _Joined(io.RawIOBase):
    """Files one behind the other, as ``cat`` gives them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._file: BinaryIO | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._file is not None or self._paths:
            if self._file is None:
                self._file = open(self._paths.pop(0), "rb")
            if count := self._file.readinto(buffer):  # type: ignore[attr-defined]
                return int(count)
            self._file.close()
            self._file = None
        return 0


def _unpack(folder: Path, name: str, parts: Sequence[str]) -> None:
    """An archive beside itself: plain files and folders, nothing of it elsewhere. UserError for one that is damaged,
    holds anything else, or unfolds to more than ``UNFOLDS`` times its size or than there is room for."""
    target, paths = (folder / name).parent, [folder / part for part in parts]
    try:
        most = min(UNFOLDS * max(SMALL, sum(path.stat().st_size for path in paths)), shutil.disk_usage(target).free)
        if not name.endswith(".zip"):
            with (
                io.BufferedReader(_Joined(paths)) as stream,
                tarfile.open(fileobj=stream, mode="r|*", tarinfo=CheckedInfo) as tar,
            ):
                tar.extractall(target, filter=_Allowed(most))
        elif len(paths) == 1:
            _unzip(paths[0], target, most)
        else:
            whole = folder / f".{Path(name).name}"
            try:
                with open(whole, "wb") as out:
                    shutil.copyfileobj(io.BufferedReader(_Joined(paths)), out)
                _unzip(whole, target, most)
            finally:
                whole.unlink(missing_ok=True)
    except _DAMAGED as error:
        raise UserError(
            f"benchmark.download: {folder / name} cannot be unpacked ({one_line(error)}); delete it and start again, "
            "or name a copy that you unpacked yourself with benchmark.path=FOLDER"
        ) from error


def _unzip(path: Path, target: Path, most: int) -> None:
    with zipfile.ZipFile(path) as archive:
        allowed = _Allowed(most)
        for member in archive.infolist():
            allowed.count(member.filename, member.file_size)  # of which zipfile writes no byte more
        archive.extractall(target)  # names that lead out are cut by zipfile, a link becomes a file with its text


class _Allowed:
    """The members of an archive that are unpacked; ValueError or TarError for another. most: bytes of all together."""

    def __init__(self, most: int) -> None:
        self._left = self._most = most

    def __call__(self, member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        if member.issym():  # through which a later member may lead out
            raise ValueError(f"{member.name!r:.80} is a symbolic link")
        self.count(member.name, member.size)
        return tarfile.data_filter(member, path)

    def count(self, name: str, size: int) -> None:
        """Take note of a member."""
        if size < 0:
            raise ValueError(f"{name!r:.80} has {size} bytes")
        self._left -= size
        if self._left < 0:
            raise ValueError(f"it unfolds to more than {size_in_words(self._most)}")
        if MARK in re.split(r"[/\\]", name):
            raise ValueError(f"{MARK} in it is a name of hvlm's own")
