"""A set that is made of its settings: once, in a folder whose name says them, by one process at a time."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvlm.contracts import Dataset
from hvlm.data.shard_index import MANIFEST, Manifest, load_manifest
from hvlm.errors import UserError
from hvlm.io.lock import waiting

log = logging.getLogger(__name__)

Wanted = Mapping[str, tuple[str, range]]  # shard -> its split, and the numbers of its samples there


class GeneratedSet(Dataset):
    """kind: first part of the folder's name. root: where sets stand. counts: {split: samples}. per_shard: so many
    samples in a shard."""

    kind: str
    root: Path
    counts: Mapping[str, int]
    per_shard: int

    @property
    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Everything that decides the bytes of the shards, apart from files of the user's own, as plain values."""

    @abstractmethod
    def make(self, wanted: Wanted, progress: bool) -> None:
        """Make the shards that are missing, then the manifest. UserError about what they are made from.

        Args:
            wanted: all shards of the set.
            progress: whether to show a bar.
        """

    @property
    def folder(self) -> Path:
        """Where the set stands."""
        digest = hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()
        return self.root / f"{self.kind}-{digest[:8]}"

    def manifest(self) -> Manifest:
        """See ``hvlm.contracts.Dataset``."""
        return load_manifest(self.folder)

    def prepare(self, progress: bool = True) -> None:
        """Make the shards that are missing or have another length than the manifest says, then the manifest.

        Safe to call from several processes: the second waits and finds everything made.

        Raises:
            UserError: ``root`` cannot be written, or what the set is made from is not there or does not do.
        """
        wanted = self._wanted()
        if self._is_made(wanted):
            return  # nothing is written, so that a set in a read-only folder can be used
        if not self.root.exists():
            log.info(
                f"dataset.root={self.root}: a new folder, {self.root.resolve()}; sets that were made elsewhere are "
                "found with dataset.root=FOLDER, or HVLM_DATA=FOLDER in the environment"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".lock").touch()
        except OSError as error:
            raise UserError(
                f"dataset.root={self.root}: the set {self.folder.name} is not there, and cannot be made: "
                f"{error.strerror}; name a folder that you may write"
            ) from error
        with waiting(self.folder / ".lock"):
            if not self._is_made(wanted):
                self.make(wanted, progress)

    def _wanted(self) -> Wanted:
        return {
            f"{split}-{i:06d}.tar": (split, range(start, min(count, start + self.per_shard)))
            for split, count in self.counts.items()
            for i, start in enumerate(range(0, count, self.per_shard))
        }

    def _is_made(self, wanted: Wanted) -> bool:
        if not (self.folder / MANIFEST).is_file():
            return False
        shards = self.manifest().shards
        return {name for name, entry in shards.items() if self.is_whole(name, entry)} == wanted.keys()

    def is_whole(self, name: str, entry: Mapping[str, Any]) -> bool:
        """Whether a shard is there with the length that its entry in a manifest says."""
        path = self.folder / name
        return path.is_file() and path.stat().st_size == entry["bytes"]
