"""Questions and captions about pictures as their makers publish them: VQAv2, GQA, VizWiz, TextVQA, Flickr30K.

A set is a file of this folder with ``TITLE``, ``is_one(head)`` and ``read(path)``; nothing lists them. A file is known
by what stands in it, whatever it is called. ``hvlm prepare`` makes shards of them, and ``benchmark.annotations`` scores
on them as they are. A picture is a clip of one frame where ``dataset.num_frames`` is 1.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from hvlm.data.sample_fields import FieldError, each_once
from hvlm.errors import UserError

HEAD = 1 << 20  # bytes that tell what a file is
ENDINGS = (".json", ".token", ".csv")
FEW = 200  # tables beside each other; where there are more, they are texts of videos


@dataclass(frozen=True)
class Entry:
    """What one row says of a picture. picture: its path or name, perhaps without ending. question: as in a sample's
    JSON. captions: texts. split: train, val, test, or "" where the file does not say."""

    picture: str
    question: Mapping[str, Any] | None = None
    captions: tuple[str, ...] = field(default=())
    split: str = ""


class Set(Protocol):
    """A module of this folder. TITLE: what the set is called."""

    TITLE: str

    def is_one(self, head: str) -> bool:
        """Whether a file that begins like this is one of the set's, with answers or captions in it."""
        ...

    def read(self, path: Path) -> Iterator[tuple[int, Entry | str]]:
        """(number from 1, what the row says, or in one line what is wrong with it). UserError where it is none."""
        ...


@cache
def sets() -> dict[str, Any]:
    """{name: its module}, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def titles() -> str:
    """What is known, in words."""
    return ", ".join(one.TITLE for one in sets().values())


def set_of(path: Path) -> str | None:
    """The name of the set that a file belongs to, by its first megabyte; None: of none."""
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD).decode("utf-8-sig", "replace")
    except OSError:
        return None
    return next((name for name, one in sets().items() if one.is_one(head)), None)


def files_in(folder: Path) -> list[Path]:
    """The files of one set in a folder and in those directly below it. Of GQA's those with balanced questions, and of
    Flickr30K's the one that says the splits, where there are both. UserError where they are of several sets."""
    found: dict[str, list[Path]] = {}
    if not folder.is_dir():
        return []
    for where in [folder, *sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))]:
        names = sorted(e.name for e in os.scandir(where) if os.path.splitext(e.name)[1].lower() in ENDINGS)
        for path in (where / name for name in names[:FEW] if len(names) <= FEW and not name.startswith(".")):
            if name := set_of(path):
                found.setdefault(name, []).append(path)
    if len(found) > 1:
        names = ", ".join(f"{paths[0].name} ({sets()[name].TITLE})" for name, paths in found.items())
        raise UserError(f"{folder}: files of several sets: {names}; name one of them with table=")
    for name, paths in found.items():
        chosen = getattr(sets()[name], "chosen", None)
        return chosen(paths) if chosen else paths
    return []


def each(items: Iterable[Any], entry: Callable[[Any, int], Entry]) -> Iterator[tuple[int, Entry | str]]:
    """``Set.read`` of rows that are in memory; ``entry``: what one says, by its place from 0, or a ``FieldError``."""
    for place, item in enumerate(items):
        try:
            yield place + 1, entry(item, place)
        except FieldError as error:
            yield place + 1, str(error)


def read(path: Path, name: str) -> Iterator[tuple[int, Entry | str]]:
    """The rows of a file of a set; see ``Set.read``."""
    return sets()[name].read(path)


def loaded(path: Path, where: str | None = None) -> Any:
    """A JSON file. UserError where it is none; it begins with ``where``, by default the path."""
    where = where or str(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=each_once)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
