"""What a head that writes no text answers about a benchmark's clips, written down and scored.

Two files, as with questions: ``head.jsonl`` (a line for each row of the head's view, with what is right), of
which the same figures can be made again, and ``results.json``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hvlm.contracts import Benchmark, Head
from hvlm.data.sample_fields import each_once
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.ask import BLIND
from hvlm.evaluation.asking import clips_of
from hvlm.evaluation.evaluate import RESULTS
from hvlm.evaluation.predictions import lines_of
from hvlm.io.json_lines import write_lines
from hvlm.precision import autocast
from hvlm.rebuild import Loaded
from hvlm.types import Batch

LINES = "head.jsonl"

log = logging.getLogger(__name__)


def evaluate_head(loaded: Loaded, benchmark: Benchmark, label: results.Label, out_dir: Path) -> list[results.Record]:
    """Score the model's head on ``benchmark`` (``benchmark=head``), and return the records, having written both files.

    Raises:
        UserError: nothing to score.
    """
    head = loaded.model.head
    out_dir = Path(out_dir)
    if benchmark.rerank:  # imported here, for it brings torchmetrics, which everybody else loads without
        from hvlm.evaluation.rerank import heads_of, rerank

        heads_of(head)
    records: list[results.Record] = []
    every: list[dict[str, Any]] = []
    for blind in (False, True)[: 1 + benchmark.blind]:
        started = time.monotonic()
        variant = BLIND if blind else label.variant
        lines = answers(loaded, benchmark, out_dir, blind)
        seconds = time.monotonic() - started
        every += [line | {"variant": variant} for line in lines]
        own = label._replace(variant=variant)
        records += scored(head, lines, own, seconds)
        if benchmark.rerank:
            rows = rerank(loaded, benchmark, lines, benchmark.rerank, blind)
            records += [own.of_row(row, time.monotonic() - started - seconds) for row in rows]
    write_lines(out_dir / LINES, every)
    results.write(out_dir / RESULTS, records)
    return records


@torch.no_grad()
def answers(loaded: Loaded, benchmark: Benchmark, out_dir: Path, blind: bool = False) -> list[dict[str, Any]]:
    """The head's lines about the benchmark's clips, in their order; ``blind``: with black frames."""
    model = loaded.model.eval()
    loader = clips_of(loaded, benchmark, quarantine=out_dir / "quarantine.jsonl")
    lines: list[dict[str, Any]] = []
    for batch in loader:
        batch = batch.to(loaded.device)
        if blind:
            batch = without_pictures(batch)
        with autocast(loaded.device, loaded.precision):
            output = model.output(batch)
        lines += model.head.predict(output, batch)
    count, clips = loader.reader.quarantine, loader.reader.clips
    missing = benchmark.missing(clips)
    for name in missing:
        count.note(str(clips.folder), name, "not there")
    if missing:
        log.warning("%d videos are not there, and nothing is asked about them: %s", len(missing), _first(missing))
    if not lines:
        raise UserError(
            f"benchmark: {count.read} clips hold nothing for head={model.head.task} ({loader.reader.show.view.name}), "
            f"{count.bad} of them cannot be read; name another split or file"
        )
    if count.bad:
        log.warning("%d of %d clips cannot be read; they are named in %s", count.bad, count.read, out_dir)
    return lines


def _first(names: Iterable[str]) -> str:
    some = list(names)
    return ", ".join(some[:3]) + (", ..." if len(some) > 3 else "")


def without_pictures(batch: Batch) -> Batch:
    """The same clips, all of them black."""
    return batch._replace(frames_BTCHW=torch.zeros_like(batch.frames_BTCHW))


def scored(head: Head, lines: Sequence[Mapping[str, Any]], label: results.Label, seconds: float) -> list[Any]:
    """The records of a head's lines. UserError where there is nothing right in them to compare with."""
    rows = head.score(lines)
    if not rows:
        raise UserError(
            f"head={head.task}: nothing of what is right stands in these {len(lines)} lines, so they cannot be scored; "
            "name another split or file"
        )
    return [label.of_row(row, seconds) for row in rows]


def score_lines(path: Path, head: Head, label: results.Label, out: Path) -> list[results.Record]:
    """Score a file of a head's lines, and write the results; see ``hvlm.evaluation.evaluate.score_predictions``."""
    started = time.monotonic()
    by_variant: dict[str, dict[int, dict[str, Any]]] = {}
    for number, line in read_lines_of(path).items():
        by_variant.setdefault(str(line.get("variant", label.variant)), {})[number] = line
    records = []
    for variant, found in by_variant.items():
        head.check_lines(found, path)
        try:
            records += scored(head, list(found.values()), label._replace(variant=variant), time.monotonic() - started)
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # of a head that checks no lines
            raise UserError(
                f"predictions={path}: head={head.task} cannot score these lines ({type(error).__name__}: {error}); "
                "give lines that it wrote"
            ) from error
    results.write(out if out.suffix == ".json" else out / RESULTS, records)
    return records


def read_lines_of(path: Path) -> dict[int, dict[str, Any]]:
    """The objects of a JSONL file by the number of their line. UserError with the line that is none."""
    found = {}
    for number, text in lines_of(Path(path)):
        try:
            value = json.loads(text, object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            raise UserError(f"predictions={path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(value, dict):
            raise UserError(f"predictions={path}, line {number}: expected an object")
        found[number] = value
    return found
