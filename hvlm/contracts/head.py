"""What comes out: the head, and the stage that learns it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from hvlm.contracts.room import Module, Room
from hvlm.errors import UserError
from hvlm.types import Batch, Sequence, Term

if TYPE_CHECKING:
    from pathlib import Path

    from torchmetrics import Metric

    from hvlm.data.question_file import Row
    from hvlm.data.views import View


class Stage(Room, group="stage"):
    """Batch to loss. ``hvlm.stage._base.Stage`` adds what a LightningModule needs.

    view: what the reader shows (``hvlm.data.views``); None leaves it to the head (``Head.view``). Where it needs
    labels, the constructor is given ``labels``, the dataset's number of classes by name. cells: labels are those of
    each patch's ``cells`` x ``cells`` parts. shallow: its own queries read the encoder's last layer alone.
    rooms: {group: word} of what it needs in place of the usual rooms.
    """

    view: ClassVar[View | None] = None
    rooms: ClassVar[Mapping[str, str]] = {}
    cells: int = 1
    shallow: bool = False

    def prepare(self, every_pair: Callable[[], Iterable[Batch]]) -> None:
        """Work before ``fit`` with the starting weights in the model; by default there is none.

        Args:
            every_pair: makes an iterable of batches with all preference pairs of the training and validation splits.
        """


class Head(Module, ABC, group="head"):
    """What comes out, with all that is its own: what the reader shows, targets, loss, answers, metrics.

    view: what the reader shows to train it (``hvlm.data.views``), with the targets that it makes of it
    (``View.targets``), where the stage leaves that to the head; None: the stage must say it. writes: it scores the next
    token, so that text can be generated with it and is scored by benchmarks that ask questions; others are scored by
    ``benchmark=head``. names: which of the dataset's lists of names its ``labels`` are by default (``Dataset.names``):
    ``events``, ``answers``, or "" where it has no labels. measures: the names of the further sums of its ``loss``.
    reads_fusion: the setting because of which it reads the state of video and text that the fusion makes
    (``Sequence.fused``); empty where it does not.
    """

    part = "head"
    view: View | None = None
    writes: bool = False
    names: ClassVar[str] = ""
    measures: ClassVar[tuple[str, ...]] = ()
    reads_fusion: str = ""

    @abstractmethod
    def forward(self, hidden_KLD: Tensor, sequence: Sequence) -> Any:
        """The head's output.

        Args:
            hidden_KLD: the language model's states of the whole laid-out rows.
            sequence: what was laid out, with the places of text and video, and the visual tokens themselves; in
                ``alone`` the states of what ``texts`` asked for.
        """

    def texts(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """(ids, whether a token stands there), int64 and bool [M, S]: texts that the language model is to read by
        themselves, which no video can change; None: of none."""
        return None

    def logits(self, h: Tensor) -> Tensor:
        """States [..., dim] -> float32 logits of the next token [..., vocabulary], where the head ``writes``."""
        raise ValueError(f"{type(self).__name__} gives no logits of tokens; use head=text")

    # -- learning ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(sum of the loss over its units, number of units, further sums to be divided by the same number, named
        ``measures``)."""

    def units(self, batch: Batch) -> int:
        """The number of units as ``loss`` counts them, without a pass through the model; what is learned in parts
        (``trainer.accumulate``) needs it. UserError where it cannot be told from the batch."""
        raise UserError(
            f"trainer.accumulate: head={self.task} does not count its units without the model; use trainer.accumulate=1"
        )

    def further(self, batch: Batch, answer: Callable[[Batch], Any]) -> Batch:
        """The batch with further text rows at its end, to be learned beside those that were read; by default none. They
        must change no number of units.

        A head that looks for them among the rows of all processes is asked by each of them, also where it has no rows
        (``head=several``); the batch then has none, and no targets.

        Args:
            batch: of its own view.
            answer: gives the head's output of text rows about clips of this batch. Every process must ask as often as
                the others, or its part of weights that are divided among them would be waited for.
        """
        return batch

    @property
    def task(self) -> str:
        """The word for what it does: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of its ``terms``, as ``stage.weights`` has them."""
        return (self.task,)

    def terms(self, output: Any, batch: Batch) -> dict[str, Term]:
        """The terms of ``stage=task``'s loss by name: one, by its own name, unless there are several heads in it."""
        return {self.task: Term(*self.loss(output, batch))}

    def units_of_terms(self, batch: Batch) -> dict[str, float]:
        """{term: number of its units}, as ``units`` counts them."""
        return {self.task: float(self.units(batch))}

    def asked(self) -> Head:
        """The head that an evaluation asks: this one, unless one of several in it was chosen."""
        return self

    def absent(self, batch: Batch) -> Term:
        """Its term of a batch that has rows of other heads alone: nothing. A loss that asks for the rows of all
        processes must ask here, too, for others may have some."""
        nothing = torch.zeros((), device=batch.clip_K.device)
        return Term(nothing, nothing, dict.fromkeys(self.measures, nothing))

    def divisor(self, term: str, units: Tensor) -> Tensor:
        """What a term's sum is divided by, of the units of a whole optimiser step (of all its parts and processes);
        called once a step. By default these units themselves: the mean."""
        return units

    # -- answering -----------------------------------------------------------------------------------------------------

    def predict(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        """What it answers, a line of plain values for each text row: what it found, and what is right where that is
        known, so that lines can be scored without the model or the data. UserError where it has no answers of its
        own."""
        raise UserError(f"head={self.task}: has no answers of its own; use a benchmark that asks (benchmark=needles)")

    def metrics(self) -> dict[str, Metric]:
        """Fresh ones, by name (torchmetrics). One that computes a mapping gives several figures, ``name/key``."""
        return {}

    def update(self, metrics: Mapping[str, Metric], lines: SequenceOf[Mapping[str, Any]]) -> None:
        """Feed lines of ``predict`` to its metrics."""

    def score(self, lines: SequenceOf[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of scores, {metric, value, stderr, n, chance}: by default what its metrics compute of all lines.
        A head that knows how sure they are adds ``stderr``, over videos."""
        metrics = self.metrics()
        self.update(metrics, lines)
        found = {name: metric.compute() for name, metric in metrics.items() if metric.update_called}
        flat = {
            name if key is None else f"{name}/{key}": value
            for name, values in found.items()
            for key, value in (values.items() if isinstance(values, Mapping) else [(None, values)])
        }
        return [
            {"metric": name, "value": float(value), "stderr": None, "n": len(lines), "chance": None}
            for name, value in flat.items()
            if math.isfinite(value)  # what nothing was said of is not measured
        ]

    def read(self, path: Path, setting: str) -> list[Row]:
        """Somebody's own file of what is right, as ``benchmark=head`` reads it: of each video (or a part of one) its
        questions, or in ``about`` what a sample's JSON says of it.

        Args:
            path: of the file.
            setting: whose value the path is, for messages.

        Raises:
            UserError: one line, with the place in the file, what was found and what was expected.
        """
        raise UserError(f"{setting}={path}: head={self.task} reads no file of its own; use the dataset's split")

    @classmethod
    def settle(cls, settings: Mapping[str, Any], names: Callable[[str], list[str]]) -> dict[str, Any]:
        """Its settings with what they leave to the dataset: labels that are None become those that ``names`` knows."""
        left = bool(cls.names) and settings.get("labels") is None
        return {**settings, **({"labels": names(cls.names)} if left else {})}

    def check_lines(self, lines: Mapping[int, Mapping[str, Any]], path: Path) -> None:
        """Look at lines of a file that are to be scored, by their number in it. UserError, one line, for such as
        ``predict`` cannot have written (``hvlm.head._lines``)."""
