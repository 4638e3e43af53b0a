"""What a comparison of heads measures at a time, and its file: what is there is not measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.io.files import write_atomically

RANDOM = "random"


class Cell(NamedTuple):
    """One measurement. share: of the heads that keep everything, or of the bytes; draw: of the random heads."""

    variant: str
    share: float
    draw: int = 0

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.share:g}" + (f"-{self.draw}" if self.variant == RANDOM else "")

    def write(self, path: Path, value: dict[str, Any]) -> None:
        """The cell with what was measured of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"cell": self._asdict(), **value})
        write_atomically(path, lambda file: file.write(text.encode()))
