"""Videos of a folder with questions about them, read as shards are.

A clip is a video (or a part of it that questions name), with all questions about it. Stills go, too: a picture is a
clip of one frame, a folder of pictures one of as many.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hvlm.data.question_file import Row
from hvlm.data.samples import natural
from hvlm.data.sources import Source
from hvlm.data.tar import FIELDS, TEXT_FIELDS
from hvlm.errors import UserError

STILLS = ("jpg", "jpeg", "png")
VIDEOS = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "ts", "flv", "wmv", "ogv", "3gp")


class RowClips:
    """Takes the place of a ``ShardSplit``: random access by index to clips whose questions stand in a table's rows.

    missing: {name of a video that is not there: how many questions are about it}; these are not among the clips.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        samples: Mapping[str, Mapping[str, Any]],
        shards: Sequence[str],
        missing: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """
        Args:
            folder: that holds them.
            name: of the whole, first part of every clip's name.
            samples: {key: what the clip's JSON says}.
            shards: where in the folder each clip lies.
            missing: see above.
        """
        self.folder, self.name, self.missing = folder, name, Counter(missing)
        self.keys, self.shards = list(samples), list(shards)
        self.domains = ["general"] * len(self.keys)
        self._texts = [json.dumps(sample).encode() for sample in samples.values()]
        self.identity = hashlib.sha256(b"\n".join([str(folder).encode(), *self._texts])).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.keys)

    def uid(self, index: int) -> str:
        """The one name of a clip."""
        return f"{self.name}/{self.keys[index]}"

    def read(self, index: int, endings: Sequence[str] = FIELDS) -> dict[str, bytes]:
        """The JSON of clip ``index``; its pictures are named by ``sources``."""
        return {"json": self._texts[index]} if set(endings) & set(TEXT_FIELDS) else {}


class VideoFolder(RowClips):
    """Clips that are the videos and stills of a folder, or parts of them."""

    def __init__(self, folder: Path, rows: Iterable[Row], name: str, setting: str) -> None:
        """
        Args:
            folder: of the videos.
            rows: the questions.
            name: of the whole, first part of every clip's name.
            setting: whose value the folder is, for messages.

        Raises:
            UserError: no such folder, none of the videos in it, a name that leads out of it, or two names of one video
                where each row says all of its own.
        """
        if not folder.is_dir():
            raise UserError(f"{setting}={folder}: no such folder; name the one that holds the videos")
        folder = Path(os.path.normpath(folder.absolute()))
        missing: Counter[str] = Counter()
        by_stem: dict[str, list[str]] | None = None
        samples: dict[str, dict[str, Any]] = {}
        shards: list[str] = []
        for row in rows:
            video = _inside(folder, row, setting)
            if video is None:
                if by_stem is None:
                    by_stem = _by_stem(folder)
                found = by_stem.get(row.video) or by_stem.get(f"v_{row.video}", [])  # ActivityNet's files and ids
                video = found[0] if len(found) == 1 else None
            if video is None:
                missing[row.video] += 1
                continue
            part = "" if row.section is None else "@{:g}-{:g}".format(*row.section)
            key = video + part
            if key in samples and row.about:
                raise UserError(
                    f"{setting}={folder}: {row.video!r} of row {row.number} is {key!r}, of which another row says "
                    "everything already; name each video once, in one way"
                )
            if key not in samples:
                samples[key] = {"cluster": video, "questions": [], **row.about}
                shards.append(video)
                samples[key] |= {} if row.section is None else {"section": list(row.section)}
                samples[key] |= {} if row.fps is None else {"fps": row.fps}
            if row.question is not None:
                samples[key]["questions"].append(row.question)
        if not samples:
            names = ", ".join(list(missing)[:3])
            raise UserError(f"{setting}={folder}: none of the {len(missing)} videos is there ({names}, ...)")
        super().__init__(folder, name, samples, shards, missing)

    def sources(self, index: int) -> dict[str, Source]:
        """The JSON, and where the video or the stills are."""
        path = self.folder / self.shards[index]
        if path.is_dir():
            stills = sorted((f for f in path.iterdir() if _ending(f.name) in STILLS), key=lambda f: natural(f.name))
            found: dict[str, Source] = {f"{i:06d}.jpg": still for i, still in enumerate(stills)}
        else:
            found = {"jpg" if _ending(path.name) in STILLS else "mp4": path}  # what it is the decoder looks up itself
        return {"json": self._texts[index], **found}


def _inside(folder: Path, row: Row, setting: str) -> str | None:
    """The video's name from the folder on, None where it is not there. UserError for one that leads out of it."""
    path = Path(os.path.normpath(folder / row.video))
    if not path.is_relative_to(folder):
        raise UserError(f"{setting}={folder}: row {row.number} names {row.video!r}, which does not lie in this folder")
    try:
        there = path.is_file() or (path.is_dir() and any(_ending(f.name) in STILLS for f in path.iterdir()))
    except (OSError, ValueError):  # a name that no file can have, a folder that nobody may look into
        return None
    return path.relative_to(folder).as_posix() if there else None


def _by_stem(folder: Path) -> dict[str, list[str]]:
    """{name without ending, and without folders: the files that have it}."""
    found: dict[str, list[str]] = {}
    for where, _, files in os.walk(folder):
        for file in files:
            if _ending(file) in (*VIDEOS, *STILLS) and not file.startswith("."):
                path = (Path(where) / file).relative_to(folder)
                for name in {path.stem, path.name, path.with_suffix("").as_posix()}:
                    found.setdefault(name, []).append(path.as_posix())
    return found


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower()
