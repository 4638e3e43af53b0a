"""Pictures that stand in a table beside their questions, read as shards are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hvlm.benchmark._table import Item
from hvlm.data.sources import Source
from hvlm.data.video_folder import RowClips


class Pictures(RowClips):
    """A clip is one picture with its question. Equal pictures are one cluster."""

    def __init__(self, folder: Path, items: Iterable[Item], name: str) -> None:
        samples: dict[str, dict[str, Any]] = {}
        self._pictures: list[bytes] = []
        for item in items:
            picture = item.picture or b""
            cluster = hashlib.sha256(picture).hexdigest()[:16]
            samples[item.question["id"]] = {"cluster": cluster, "questions": [item.question]}
            self._pictures.append(picture)
        super().__init__(folder, name, samples, list(samples))

    def sources(self, index: int) -> dict[str, Source]:
        """The JSON and the picture."""
        return {"json": self._texts[index], "jpg": self._pictures[index]}
