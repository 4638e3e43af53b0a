"""Files of published sets of questions and captions (``hvlm.data.published``), as a table with a row for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hvlm.data import published
from hvlm.errors import UserError
from hvlm.prepare.formats import Malformed, Row


class Table:
    about = f"a published file of {published.titles()}, or a folder with some of one set"
    endings = ()  # known by what stands in it

    def __init__(self, path: Path) -> None:
        name = published.set_of(path)
        if name is None:
            raise UserError(f"{path}: not a published file of {published.titles()} with answers or captions")
        self.path, self._name = path, name
        self.about = f"{published.sets()[name].TITLE}, {path.name}"
        entries = [entry for _, entry in published.read(path, name) if isinstance(entry, published.Entry)]
        has = {"question" if entry.question else "caption" for entry in entries}
        self.columns = ["video", *sorted(has)] + (["split"] if any(entry.split for entry in entries) else [])

    @staticmethod
    def takes(folder: Path) -> bool:
        return bool(published.files_in(folder))

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        for number, entry in published.read(self.path, self._name):
            if isinstance(entry, str):
                yield self.path.name, number, Malformed(entry)
                continue
            row: dict[str, object] = {"video": entry.picture}
            row |= {"question": [entry.question]} if entry.question else {"caption": list(entry.captions)}
            yield self.path.name, number, row | ({"split": entry.split} if entry.split else {})
