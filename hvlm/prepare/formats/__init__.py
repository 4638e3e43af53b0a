"""Tables of every kind, read in one way. A format is a file of this folder with a class ``Table``; nothing lists them.

What a format must do is ``Format``; rows are plain dicts, and media that lie inside a table are ``Blob``s: their sum
and where they lie, so that no pictures are held.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from hvlm.errors import UserError


@dataclass(frozen=True)
class Blob:
    """Encoded bytes inside a table. format: the file of this folder whose ``load`` gives them. part, row, column: where
    they lie in ``file``. name: what the table calls them, may be empty."""

    format: str
    file: str
    part: int
    row: int
    column: str
    name: str
    size: int
    sha256: str
    item: int = -1  # of a list in the cell


@dataclass(frozen=True)
class Malformed:
    """A row that cannot be read. reason: one line."""

    reason: str


Row = dict[str, Any] | Malformed


class Format(Protocol):
    """A table. Class attributes: ``about``, what it is, in a few words; ``endings`` of its files, in small letters.

    ``Table(path)`` opens it; UserError where it is not what its ending says. Attributes: ``path``; ``columns``, in
    their order, of all rows.
    """

    about: str
    endings: tuple[str, ...]
    path: Path
    columns: list[str]

    def __init__(self, path: Path) -> None: ...

    @staticmethod
    def takes(folder: Path) -> bool:
        """Whether a folder as a whole is such a table."""
        ...

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        """(name of the file, number from 1 in it, row)."""
        ...


@cache
def formats() -> dict[str, type[Format]]:
    """{name of the file: its class}, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}").Table for name in names}


def of_file(path: Path) -> type[Format] | None:
    """The format of a file with this ending, if there is one."""
    return next((table for table in formats().values() if path.suffix.lower() in table.endings), None)


def load(blob: Blob) -> bytes:
    """The bytes of a blob. Raises UserError where they are no longer what they were."""
    module = importlib.import_module(f"{__name__}.{blob.format}")
    data: bytes = module.load(blob)
    if not getattr(module, "CHECKED", False) and hashlib.sha256(data).hexdigest() != blob.sha256:
        raise UserError(f"{blob.file}: row {blob.row + 1} of part {blob.part} changed while it was read; start again")
    return data
