"""Checkpoints in pieces: every process writes the rows that it holds, and an index says what they belong to.

``x.ckpt`` is the index: a checkpoint like any other, in which a divided tensor stands as ``{"rows": its path, "shape":
..., "dtype": ...}``. Beside it, in ``x.ckpt.shards/``, stands one file of each process: {path: (first row, rows)}. The
index holds the name and the sha256 of every piece and is written last, so that a kill leaves the old checkpoint or the
new one. Index and pieces are plain tensors and values (``weights_only=True``); the format of
``torch.distributed.checkpoint`` is not used, because its ``.metadata`` is a pickle, which may run code.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvlm.errors import UserError
from hvlm.io.files import PART, file_sha256, is_plain_name, remember_sha256, sync_folder
from hvlm.io.pretrained import one_line

SHARDS = ".shards"
KEY = "sharded"  # of the index: [{"name", "sha256", "bytes"}, ...]
ENDS = ".pt"


def load_archive(path: Path, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """What ``torch.save`` wrote, tensors and plain values only; else ``UserError``. No sum is looked at."""
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as e:  # unpickling raises whatever the bytes lead to
        reason = one_line(e)  # torch's own words end with how to let such a file run code
        if not zipfile.is_zipfile(path):  # torch's own words are about its options
            reason = "it is no zip archive, as torch.save writes them"
        raise UserError(f"{path} is not a readable checkpoint of tensors and plain values: {reason}") from e


def folder_of(path: Path) -> Path:
    """Where the pieces of the checkpoint ``path`` stand."""
    return path.with_name(path.name + SHARDS)


def is_index(content: Any) -> bool:
    return isinstance(content, Mapping) and KEY in content


def map_tree(value: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """``value`` with ``change(path, leaf)`` for its leaves; mappings that stand for rows are leaves."""
    if isinstance(value, dict) and not _stands_for_rows(value):
        return {key: map_tree(item, change, f"{path}/{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map_tree(item, change, f"{path}/{i}") for i, item in enumerate(value))
    return change(path, value)


def _stands_for_rows(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"rows", "shape", "dtype"}


def stand_in(path: str, tensor: Tensor) -> dict[str, Any]:
    """What the index holds in place of a divided tensor."""
    return {"rows": path, "shape": list(tensor.shape), "dtype": tensor.dtype}


# ---------------------------------------------------------------------------------------------------- writing


def write_piece(path: Path, name: str, rows: Mapping[str, tuple[int, Tensor]]) -> dict[str, Any]:
    """One process's piece of the checkpoint ``path``; its entry in the index. Raises OSError or RuntimeError."""
    folder = folder_of(path)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / (name + ENDS)
    part = file.with_name(f"{file.name}.{os.getpid()}{PART}")
    try:
        with open(part, "wb") as f:
            torch.save(dict(rows), f)
            f.flush()
            os.fsync(f.fileno())
        digest = file_sha256(part)
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    remember_sha256(file, digest)
    return {"name": name, "sha256": digest, "bytes": file.stat().st_size}


def drop_others(path: Path, names: set[str]) -> None:
    """Remove the pieces of ``path`` that its index does not name; without names the folder, too. A link to a folder is
    none of ours, and nothing behind it is touched."""
    folder = folder_of(path)
    if folder.is_symlink():
        return
    if not names:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for file in folder.glob("*"):
        if file.name.removesuffix(ENDS) not in names:
            file.unlink(missing_ok=True)


def named_by(index: Path) -> set[str] | None:
    """The pieces that the file ``index`` names; None: it cannot be read."""
    if not index.exists():
        return set()
    try:
        content = load_archive(index, mmap=True)
    except UserError:
        return None
    try:
        return {entry["name"] for entry in content[KEY]} if is_index(content) else set()
    except (KeyError, TypeError):
        return None


def clean_pieces(folder: Path) -> None:
    """Remove what a kill left of checkpoints in pieces. Only while nobody writes into ``folder``."""
    for pieces in folder.glob(f"*{SHARDS}"):
        index = pieces.with_name(pieces.name.removesuffix(SHARDS))
        names = named_by(index)
        if names is not None:  # else damaged: whoever mends it may want the pieces
            drop_others(index, names)


# ---------------------------------------------------------------------------------------------------- reading


def problem_of(path: Path, content: Mapping[str, Any]) -> str | None:
    """What is wrong with the pieces of an index that itself is sound; None: nothing."""
    try:
        entries = [(entry["name"], entry["sha256"]) for entry in content[KEY]]
    except (KeyError, TypeError):
        return "its list of pieces is none"
    for name, digest in entries:
        if not is_plain_name(name):
            return f"its piece {name!r} has no plain name"
        file = folder_of(path) / (name + ENDS)
        if not file.is_file():
            return f"its piece {file.parent.name}/{file.name} is not there (copy the folder beside the file)"
        if file_sha256(file) != digest:
            return f"its piece {file.parent.name}/{file.name} differs from its checksum (cut short or altered)"
    return None


class Pieces:
    """The pieces of one checkpoint, opened so that only rows that are asked for are read."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        if problem := problem_of(path, content):
            raise UserError(f"{path}: {problem}; use another checkpoint of that run")
        self.path = path
        self._files = [load_archive(folder_of(path) / (entry["name"] + ENDS), mmap=True) for entry in content[KEY]]

    def rows(self, wanted: Mapping[str, Any], start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of a divided tensor; ``wanted`` is what the index has for it. A copy.

        Raises:
            UserError: the pieces do not hold these rows.
        """
        found: list[tuple[int, Tensor]] = []
        for file in self._files:
            first, held = file.get(wanted["rows"], (0, None))
            if held is not None and list(held.shape[1:]) == wanted["shape"][1:] and held.dtype == wanted["dtype"]:
                low, high = max(first, start), min(first + len(held), stop)
                if low < high:
                    found.append((low - start, held[low - first : high - first]))
        there = sum(len(held) for _, held in found)
        if there != stop - start:
            raise UserError(f"{self.path}: its pieces hold {there} of {stop - start} rows of {wanted['rows']}")
        tensor = torch.empty((stop - start, *wanted["shape"][1:]), dtype=wanted["dtype"])
        for low, held in found:
            tensor[low : low + len(held)] = held
        return tensor

    def whole(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """``content`` with every divided tensor whole: what one file would hold."""

        def change(path: str, value: Any) -> Any:
            return self.rows(value, 0, value["shape"][0]) if _stands_for_rows(value) else value

        return {key: map_tree(value, change) for key, value in content.items() if key != KEY}


def without_pieces(content: dict[str, Any], path: Path, keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    """``content`` as one whole file would hold it; of an index, only ``keys`` are put together, where given, and other
    values stay as they stand there."""
    if not is_index(content):
        return content
    rest = {key: value for key, value in content.items() if key != KEY}
    try:
        return rest | Pieces(path, content).whole({k: v for k, v in content.items() if keys is None or k in keys})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path}: is no index of pieces that training wrote ({one_line(error)})") from error
