"""A folder that Hugging Face's ``datasets`` wrote with ``save_to_disk``: arrow files beside a state.json, or one such
folder for each split beside a dataset_dict.json. Read by pyarrow; ``datasets`` itself is not needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from hvlm.errors import UserError
from hvlm.prepare.formats import Blob, Row
from hvlm.prepare.formats._arrow import pyarrow, rows_of, value_of

STATE, SPLITS = "state.json", "dataset_dict.json"
SPLIT = "split"  # the column that holds the names of several splits


class Table:
    about = "a folder of Hugging Face datasets (save_to_disk)"
    endings = (".arrow",)

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts = _parts(path)
        schemas = [_schema(file) for file, _ in self._parts]
        self.columns = list(dict.fromkeys(name for schema in schemas for name in schema.names))
        self._split = any(split for _, split in self._parts) and SPLIT not in self.columns
        if self._split:
            self.columns.append(SPLIT)

    @staticmethod
    def takes(folder: Path) -> bool:
        return (folder / STATE).is_file() or (folder / SPLITS).is_file()

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        for file, split in self._parts:
            number, name = 0, file.relative_to(self.path if self.path.is_dir() else file.parent).as_posix()
            for part, batch in enumerate(_batches(str(file))):
                for row in rows_of(batch, "datasets_folder", str(file), part, 0):
                    number += 1
                    more = {SPLIT: split} if self._split else {}
                    yield name, number, row | more


def load(blob: Blob) -> bytes:
    """The bytes of a blob."""
    batch = _batches(blob.file)[blob.part]
    return value_of(batch.column(batch.schema.names.index(blob.column))[blob.row], blob.item)


def _parts(path: Path) -> list[tuple[Path, str]]:
    """(arrow file, its split or nothing) in order."""
    if path.is_file():
        return [(path, "")]
    try:
        if (path / SPLITS).is_file():
            names = json.loads((path / SPLITS).read_text(encoding="utf-8"))["splits"]
            return [(file, name) for name in names for file, _ in _parts(path / name)]
        files = json.loads((path / STATE).read_text(encoding="utf-8"))["_data_files"]
        parts = [(path / file["filename"], "") for file in files]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not a folder that datasets wrote with save_to_disk ({error})") from error
    for file, _ in parts:
        if file.parent != path or not file.is_file():
            raise UserError(f"{path / STATE}: it names {file.name}, which is not in this folder")
    return parts


@lru_cache(maxsize=4)
def _batches(file: str) -> Any:
    """The record batches; the file is mapped, not read."""
    arrow = pyarrow()
    try:
        source = arrow.memory_map(file)
        try:
            batches = arrow.ipc.open_stream(source).read_all().to_batches()
        except arrow.ArrowInvalid:
            opened = arrow.ipc.open_file(source)
            batches = [opened.get_batch(i) for i in range(opened.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)  # an offset that leads elsewhere ends the process when its cell is read
        return batches
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable arrow file ({str(error).splitlines()[0]})") from error


def _schema(file: Path) -> Any:
    batches = _batches(str(file))
    if not batches:
        raise UserError(f"{file}: no rows in it")
    return batches[0].schema
