"""Which samples the weights of a run have learnt from, step by step, however often it was stopped."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from hvlm.types import Batch

START = "SOAK_START"  # environment: the number of this start of the run, the same in all its processes

Steps = dict[int, list[str]]  # {step: its samples, in their order, of all processes}


class Seen(Callback):
    """``folder/rank<r>.jsonl``: a line when training begins, {start, from, world}, and one for each batch that was
    learnt from, {start, step, samples}, a sample being the name of a text row: clip (or text) and question."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.start = folder, int(os.environ[START])
        self._step = 0

    def _write(self, trainer: Trainer, line: Mapping[str, Any]) -> None:
        with open(file_of(self.folder, trainer.global_rank), "a", encoding="utf-8") as file:
            file.write(json.dumps({"start": self.start, **line}) + "\n")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(trainer, {"from": trainer.global_step, "world": trainer.world_size})

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._write(trainer, {"step": self._step, "samples": names(batch)})


def names(batch: Batch) -> list[str]:
    """The text rows of a batch: whose they are, and which question."""
    uids = batch.uids or []
    clips = batch.clip_K.tolist()
    return [
        f"{uids[clip] if clip < len(uids) else ''}|{row['key']}|{row.get('question_id')}"
        for row, clip in zip(batch.rows or [], clips, strict=True)
    ]


def file_of(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    """Of a file that may be missing; a line that is being written is not there yet."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class Learnt(NamedTuple):
    """steps: what the weights at the end have learnt from. redone: how many steps were done again, because what had
    learnt from them was killed before it was saved."""

    steps: Steps
    redone: int


def learnt(folder: Path) -> Learnt:
    """Each start counts up to the step from which the next one that came to training went on."""
    ranks = [lines(path) for path in sorted(folder.glob("rank*.jsonl"))]
    begun = {line["start"]: line["from"] for line in (ranks or [[]])[0] if "from" in line}
    order = sorted(begun)
    until = {start: begun[after] for start, after in zip(order, order[1:], strict=False)}
    steps: Steps = {}
    lost: set[tuple[int, int]] = set()
    for rank, found in enumerate(ranks):
        for line in found:
            if "step" not in line:
                continue
            if line["step"] < until.get(line["start"], line["step"] + 1):
                steps.setdefault(line["step"], []).extend(line["samples"])
            elif rank == 0:
                lost.add((line["start"], line["step"]))
    return Learnt(steps, len(lost))


class Compared(NamedTuple):
    """Samples that were seen once more than they should have been, and such that were not; steps whose samples are the
    right ones in another order."""

    repeated: int
    missed: int
    turned: int


def compare(steps: Steps, whole: Steps) -> Compared:
    """With the run that nobody stopped, each step with the same step."""
    repeated = missed = turned = 0
    for step in steps.keys() | whole.keys():
        mine, theirs = steps.get(step, []), whole.get(step, [])
        more, less = Counter(mine) - Counter(theirs), Counter(theirs) - Counter(mine)
        repeated += more.total()
        missed += less.total()
        turned += not more and not less and mine != theirs
    return Compared(repeated, missed, turned)
