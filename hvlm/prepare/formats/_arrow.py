"""What tables that pyarrow reads have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from hvlm.errors import UserError
from hvlm.prepare.formats import Blob


def pyarrow() -> Any:
    """The package. Raises UserError with the command that installs it."""
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            "parquet and Hugging Face datasets are read by pyarrow, which is not installed: pip install 'hvlm[data]' "
            "or pip install 'pyarrow>=15'"
        ) from None
    return pyarrow


def rows_of(batch: Any, format: str, file: str, part: int, first: int) -> Iterator[dict[str, Any]]:
    """The rows of a record batch, with media as blobs. first: number of its first row in the part."""
    columns = {name: batch.column(i) for i, name in enumerate(batch.schema.names)}
    for i in range(batch.num_rows):
        yield {name: _plain(column[i].as_py(), format, file, part, first + i, name) for name, column in columns.items()}


def value_of(cell: Any, item: int) -> bytes:
    """The bytes of a cell, bare or in {bytes, path}; of a list's ``item`` where that is not negative."""
    value = (cell if item < 0 else cell[item]).as_py()
    return value["bytes"] if isinstance(value, dict) else value


def _plain(value: Any, format: str, file: str, part: int, row: int, column: str, item: int = -1) -> Any:
    if isinstance(value, list) and item < 0:
        return [_plain(v, format, file, part, row, column, i) for i, v in enumerate(value)]
    data, name = value, ""
    if isinstance(value, dict) and "bytes" in value and set(value) <= {"bytes", "path"}:
        if value["bytes"] is None:
            return value.get("path")
        data, path = value["bytes"], value.get("path")
        name = path if isinstance(path, str) else ""  # a path of another kind names nothing
    if isinstance(data, bytes):
        return Blob(format, file, part, row, column, name, len(data), hashlib.sha256(data).hexdigest(), item)
    return value
