"""Pictures that stand in a table beside their questions, read as shards are."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from hvlm.benchmark._table import Item
from hvlm.data.sources import Source
from hvlm.data.tar import FIELDS, TEXT_FIELDS


class Pictures:
    """Takes the place of a ``ShardSplit``: a clip is one picture with its question. Equal pictures are one cluster."""

    def __init__(self, folder: Path, items: Iterable[Item], name: str) -> None:
        self.folder, self.name = folder, name
        self.missing: Counter[str] = Counter()
        self.keys: list[str] = []
        self._texts: list[bytes] = []
        self._pictures: list[bytes] = []
        for item in items:
            picture = item.picture or b""
            about = {"cluster": hashlib.sha256(picture).hexdigest()[:16], "questions": [item.row.question]}
            self.keys.append(item.row.video)
            self._texts.append(json.dumps(about).encode())
            self._pictures.append(picture)
        self.shards, self.domains = list(self.keys), ["general"] * len(self.keys)
        self.identity = hashlib.sha256(b"\n".join(self._texts)).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.keys)

    def uid(self, index: int) -> str:
        """The one name of a clip."""
        return f"{self.name}/{self.keys[index]}"

    def read(self, index: int, endings: Sequence[str] = FIELDS) -> dict[str, bytes]:
        """The JSON of clip ``index``."""
        return {"json": self._texts[index]} if set(endings) & set(TEXT_FIELDS) else {}

    def sources(self, index: int) -> dict[str, Source]:
        """The JSON and the picture."""
        return {"json": self._texts[index], "jpg": self._pictures[index]}
