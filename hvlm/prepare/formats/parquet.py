"""Parquet: one file, or a folder of them as the hub has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from hvlm.errors import UserError
from hvlm.prepare.formats import Blob, Row
from hvlm.prepare.formats._arrow import pyarrow, rows_of, value_of


class Table:
    about = "Parquet, also with the pictures or videos inside"
    endings = (".parquet",)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns = list(_open(path).schema_arrow.names)

    @staticmethod
    def takes(folder: Path) -> bool:
        return False

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        file, number = _open(self.path), 0
        for part in range(file.num_row_groups):
            first = 0
            with _readable(self.path):
                for batch in file.iter_batches(batch_size=64, row_groups=[part]):
                    for row in rows_of(batch, "parquet", str(self.path), part, first):
                        number += 1
                        yield self.path.name, number, row
                    first += batch.num_rows


def load(blob: Blob) -> bytes:
    """The bytes of a blob."""
    return value_of(_group(blob.file, blob.part, blob.column)[blob.row], blob.item)


@lru_cache(maxsize=2)
def _group(file: str, part: int, column: str) -> Any:
    path = Path(file)
    with _readable(path):
        return _open(path).read_row_group(part, columns=[column]).column(0)


def _open(path: Path) -> Any:
    pyarrow()
    from pyarrow.parquet import ParquetFile

    with _readable(path):
        return ParquetFile(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Names the file where Arrow cannot read it: its index may be whole and its pages damaged."""
    try:
        yield
    except (pyarrow().ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from error
