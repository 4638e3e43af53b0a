"""Bad samples: named, counted and written down; the run stops when there are too many of them.

A *sample* that cannot be used (an unreadable video, malformed JSON, a missing member) is skipped and counted. A damaged
*shard* is another matter and always stops the run (``shard_index.py``).
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from pathlib import Path

from hvlm.errors import UserError

log = logging.getLogger(__name__)


class SampleError(UserError):
    """One sample cannot be used. ``name``: its key or file; ``field``: the member at fault; ``reason``: one line."""

    def __init__(self, name: str, field: str, reason: str) -> None:
        super().__init__(f"{name}: {field}: {reason}")
        self.name, self.field, self.reason = name, field, reason


class Quarantine:
    """Counts over all worker processes of this rank.

    ``max_rate``: share of the samples read that may be bad; up to ``always_allowed`` bad samples pass whatever the
    rate, so that a single one at the start does not stop a run. ``path``: JSON Lines file that gets one line per bad
    sample {time, rank, uid, shard, key, field, error}, or None.
    """

    def __init__(self, max_rate: float, path: Path | None = None, rank: int = 0, always_allowed: int = 20) -> None:
        self.max_rate, self.path, self.rank, self.always_allowed = max_rate, path, rank, always_allowed
        self._read = multiprocessing.Value("q", 0)  # shared with the workers, which inherit it
        self._bad = multiprocessing.Value("q", 0)
        self._unanswerable = multiprocessing.Value("q", 0)
        self._decoded = multiprocessing.Value("q", 0)

    @property
    def read(self) -> int:
        return self._read.value

    @property
    def bad(self) -> int:
        return self._bad.value

    @property
    def unanswerable(self) -> int:
        """Clips passed over because the sampled frames show the evidence of none of their texts."""
        return self._unanswerable.value

    @property
    def decoded(self) -> int:
        """Clips whose frames were decoded, not found in memory."""
        return self._decoded.value

    def count_read(self) -> None:
        with self._read:
            self._read.value += 1

    def count_decoded(self) -> None:
        with self._decoded:
            self._decoded.value += 1

    def count_unanswerable(self) -> None:
        with self._unanswerable:
            self._unanswerable.value += 1

    def add(self, shard: str, key: str, error: SampleError, uid: str) -> None:
        """Record one bad sample; UserError once there are more than allowed.

        Args:
            shard: path or URL. key: the sample's in it. uid: the sample's one name within its data.
        """
        with self._bad:
            self._bad.value += 1
            bad, read = self._bad.value, self._read.value
        log.warning("skipped a bad sample (%d of %d read): %s, %s", bad, read, shard, error)
        self._write(uid, shard, key, error.field, error.reason)
        if bad > max(self.always_allowed, self.max_rate * read):
            where = f"; all of them are listed in {self.path}" if self.path is not None else ""
            raise UserError(
                f"{bad} of {read} samples read are bad, more than the {self.max_rate:g} that may be; the last one: "
                f"{shard}, {error}{where}. Repair these samples, or leave them out of the shards"
            )

    def note(self, shard: str, name: str, reason: str) -> None:
        """Write down what was never a sample, so that it is not counted: a file that is not there.

        Args:
            shard: path of the folder. name: the file's in it. reason: one line.
        """
        self._write(name, shard, name, "", reason)

    def _write(self, uid: str, shard: str, key: str, field: str, reason: str) -> None:
        if self.path is None:
            return
        row = {"time": time.time(), "rank": self.rank, "uid": uid, "shard": shard, "key": key}
        row |= {"field": field, "error": reason}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
