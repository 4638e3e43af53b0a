"""The numbers of a training run as files in its folder: metrics.jsonl, and the same as a table in metrics.csv."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from hvlm.errors import UserError
from hvlm.io.files import METRICS, read_metrics, write_atomically

CSV = "metrics.csv"
CSV_EVERY_S = 30.0


class FileLogger(Logger):
    """metrics.jsonl grows by one line {"step": ..., name: value, ...} per logging step, flushed at once. metrics.csv is
    made from it: when training or a validation ends, and about every half minute on the way.

    A run that was stopped and continues keeps its history (Lightning's CSV logger would start the file anew). Steps
    that were done twice stand twice in the JSONL, and the later value is the valid one; the CSV has one row per step.
    ``fresh``: nothing is continued, so what an earlier attempt left behind goes.
    """

    def __init__(self, folder: Path, fresh: bool = False):
        super().__init__()
        self.folder = Path(folder)
        self._csv_at = time.monotonic()
        self._open(fresh)

    @rank_zero_only
    def _open(self, fresh: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / METRICS
        if fresh:
            path.unlink(missing_ok=True)
            (self.folder / CSV).unlink(missing_ok=True)
        elif path.exists() and not path.read_bytes().endswith(b"\n"):
            with open(path, "a", encoding="utf-8") as file:  # a line that was being written when the process was killed
                file.write("\n")

    @property
    def name(self) -> str:
        return "files"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """The configuration stands in config.yaml beside these files; it is not written a second time."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """JSON has no NaN: what is not finite becomes null."""
        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._room_for(METRICS), open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @rank_zero_only
    def save(self) -> None:
        """Lightning calls this after every logging step."""
        if time.monotonic() - self._csv_at > CSV_EVERY_S:
            self._write_csv()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Lightning calls this at the end of ``fit`` and ``validate``, also when they end with an error."""
        self._write_csv()

    def _write_csv(self) -> None:
        self._csv_at = time.monotonic()
        rows: dict[int, dict[str, Any]] = {}
        for line in read_metrics(self.folder):
            rows.setdefault(line["step"], {}).update(line)
        if not rows:
            return
        names = sorted({name for row in rows.values() for name in row} - {"step"})
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for _, row in sorted(rows.items()))
        with self._room_for(CSV):
            write_atomically(self.folder / CSV, lambda f: f.write(text.getvalue().encode()))

    @contextmanager
    def _room_for(self, name: str) -> Iterator[None]:
        """A disk that is full, or a folder that went away, is one line."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder / name} not written ({error.strerror}); make room there: the same command continues "
                "from the last checkpoint"
            ) from error
