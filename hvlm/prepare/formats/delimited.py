"""CSV and TSV with a line of column names."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hvlm.data.delimiter import delimiter
from hvlm.errors import UserError
from hvlm.prepare.formats import Malformed, Row

LONGEST_CELL = 16 << 20  # characters


@contextmanager
def _long_cells() -> Iterator[None]:
    """Lets csv read cells of ``LONGEST_CELL`` characters. Its limit is the whole process's, and other readers mean
    Python's own: hold this where cells are read, and not across a yield."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class Table:
    about = "CSV or TSV with column names in the first line"
    endings = (".csv", ".tsv")

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                head = file.readline(LONGEST_CELL).decode("utf-8-sig")
            with _long_cells():
                self._mark = "\t" if path.suffix.lower() == ".tsv" else _mark(path, head)
                with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                    names = next(csv.reader(file, delimiter=self._mark), [])
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason}); save the table as UTF-8") from error
        except csv.Error as error:
            raise UserError(f"{path}: {error}; expected a table with column names in its first line") from error
        self.columns = [name.strip() or f"column{i + 1}" for i, name in enumerate(names)]
        if not any(name.strip() for name in names):
            raise UserError(f"{path}: no column names in the first line")
        if twice := sorted({name for name in self.columns if self.columns.count(name) > 1}):
            raise UserError(f"{path}: two columns are called {twice[0]!r}; rename one of them")

    @staticmethod
    def takes(folder: Path) -> bool:
        return False

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        with open(self.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=self._mark)
            with _long_cells():
                next(reader)
            number = 0
            while True:
                try:
                    with _long_cells():
                        cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    number += 1
                    yield self.path.name, number, Malformed(f"not a row of this table ({error})")
                    continue
                if not cells:
                    continue
                number += 1
                if len(cells) != len(self.columns):
                    reason = f"{len(cells)} cells, the table has {len(self.columns)} columns"
                    yield self.path.name, number, Malformed(reason)
                elif any(not c.isascii() and any("\udc80" <= x <= "\udcff" for x in c) for c in cells):
                    yield self.path.name, number, Malformed("not UTF-8")
                else:
                    yield self.path.name, number, dict(zip(self.columns, cells, strict=True))


def _mark(path: Path, head: str) -> str:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return delimiter(head, file)
