"""Which visitor's the uploaded files are."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path


class Uploads:
    """The files of each visitor, removed when the visitor leaves.

    folder: where uploads lie, ``folder/<sum of the content>/<name>``. Nothing else is ever removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._of: dict[str, set[Path]] = {}
        self._lock = threading.Lock()

    def holds(self, file: str | Path) -> bool:
        """Whether it is an uploaded file."""
        path = Path(file)
        return path.resolve() == path and path.parent.parent == self.folder and path.is_file()

    def add(self, visitor: str, file: str) -> bool:
        """Whether it is an uploaded file; if so, it is the visitor's from now on."""
        if not self.holds(file):
            return False
        with self._lock:
            self._of.setdefault(visitor, set()).add(Path(file))
        return True

    def remove(self, visitor: str) -> None:
        """Files of one visitor. What two visitors have uploaded under one name is one file, and stays until both have
        left; under two names it lies in one folder."""
        with self._lock:
            mine = self._of.pop(visitor, set())
            for file in mine.difference(*self._of.values()):
                file.unlink(missing_ok=True)
                with suppress(OSError):
                    file.parent.rmdir()
