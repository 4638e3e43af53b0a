"""Whether a text says what a video shows: the language model reads both together, and one score comes out.

The matching of ALBEF (Li et al. 2021): beside each right pair stand wrong ones, and those of the same batch that the
model itself now takes most nearly for right are the ones that it learns from; several processes choose them among the
texts and clips of all. A batch holds few clips of which nearly
the same is said, so texts of the whole training split can be mined, too (``mined``). It is slower than
``head=retrieve``, which reads video and text apart, and can tell what embeddings of the two cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from hvlm.config.ranges import NonNegativeInt, PositiveInt, Probability
from hvlm.contracts import Head
from hvlm.data.batches import with_rows
from hvlm.data.near_texts import NearTexts
from hvlm.data.question_file import Row as FileRow
from hvlm.data.sample_fields import FieldError, as_number, as_text, shown
from hvlm.data.views import Row, View
from hvlm.errors import UserError
from hvlm.head._errors import with_errors
from hvlm.head._lines import check_each, clip_of
from hvlm.head._pairs import about_of, drawn_texts, number_of, pairs_of, read_pairs
from hvlm.head._pool import state_of_both
from hvlm.head._processes import sharing, summed
from hvlm.head._wrong_pairs import hardest, own, pool, scores, tried
from hvlm.types import Batch, Sequence, Term


@dataclass(frozen=True)
class RightAndWrong(View):
    """A row for each text about a clip, and one for each wrong text beside it. negatives: so many of these are drawn;
    None: all, in order. mined: so many texts of other clips are drawn beside them, of the ``nearest`` in ``others``
    (all right texts of the split). ``n`` of ``rows``: right texts."""

    negatives: int | None
    mined: int = 0
    nearest: int = 16
    others: NearTexts | None = field(default=None, repr=False, compare=False)
    name = "pairs of video and text"

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        about = about_of(sample) | {"task": "match"}
        return [
            row_of(text, about | {"of": texts[0]}, text == texts[0])
            for texts in drawn_texts(sample, rng, n, self.negatives)
            for text in [*texts, *self._mined(sample, texts[0], rng)]
        ]

    def _mined(self, sample: Mapping[str, Any], text: str, rng: np.random.Generator) -> list[str]:
        """What is said of other clips and not of this one, in words most like ``text``."""
        if self.others is None:
            return []
        near = self.others.near(text, self.nearest, {pair["text"] for pair in pairs_of(sample)})
        return [near[i] for i in rng.permutation(len(near))[: self.mined].tolist()]

    def among(self, samples: Callable[[], Iterable[dict[str, Any]]] | None) -> View:
        if not self.mined:
            return self
        if samples is None:
            raise UserError(
                f"head.mined={self.mined}: dataset.access=stream cannot be searched for similar texts before it is "
                "read; use head.mined=0, or dataset.access=index"
            )
        return replace(self, others=NearTexts(pair["text"] for sample in samples() for pair in pairs_of(sample)))

    def targets(self, rows: SequenceOf[Mapping[str, Any]], chat: Any) -> dict[str, Tensor]:
        """``right`` float [K]; ``said`` int64 [K], equal for equal texts; ``further`` bool [K]: whether a row was added
        after the clips were read."""
        said = torch.tensor([number_of(row.get("text", "")) for row in rows], dtype=torch.int64)
        right = torch.tensor([float(row.get("right", False)) for row in rows])
        return {"right": right, "said": said, "further": torch.zeros(len(rows), dtype=torch.bool)}

    def scoring(self) -> View:
        return replace(self, negatives=None, mined=0, others=None)


def row_of(text: str, about: Mapping[str, Any], right: bool) -> Row:
    """The text as it is read, without an answer."""
    return Row(text, None, {**about, "text": text, "right": right})


class Match(Head):
    """hidden: width of the layer before the score. negatives: wrong texts of a clip that are drawn to train it.
    candidates: each right text is tried with so many other clips of the batch, those whose own texts have most words
    and pairs of words in common with it; the one that goes with it best, and for each clip the text that does, are
    learned as wrong. 0: none. mined: so many texts of other clips are drawn to train it, each time anew out of the
    ``nearest``, which have most words and pairs of words in common with the right one in the whole training split; 0:
    none. dropout: before the score, in training. reads: the ``language`` model's state that has
    seen everything, the ``fusion``'s of both, or ``both`` behind each other.
    """

    measures = ("accuracy",)

    def __init__(
        self,
        *,
        text_dim: int,
        hidden: PositiveInt = 128,
        negatives: NonNegativeInt = 1,
        candidates: NonNegativeInt = 4,
        mined: NonNegativeInt = 0,
        nearest: PositiveInt = 16,
        dropout: Probability = 0.0,
        reads: Literal["language", "fusion", "both"] = "language",
    ):
        super().__init__()
        if mined > nearest:
            raise UserError(f"head.mined={mined}: more than head.nearest={nearest}, of which they are drawn")
        self.view = RightAndWrong(negatives, mined, nearest)
        self.candidates = candidates
        self.reads, self.reads_fusion = reads, "" if reads == "language" else f"head.reads={reads}"
        width = 2 * text_dim if reads == "both" else text_dim
        self.score_of = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
        )

    def forward(self, hidden_KLD: Tensor, sequence: Sequence) -> Tensor:
        """Float32 scores [K], logits of whether they belong together, of the state that has seen text and video."""
        return self.score_of(state_of_both(self.reads, hidden_KLD, sequence)).squeeze(-1).float()

    # -- learning ------------------------------------------------------------------------------------------------------

    def units(self, batch: Batch) -> int:
        return len(batch.input_ids_KS)

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Binary cross-entropy, summed over all rows; units are the rows that were read, without those that
        ``further`` added. Right rows weigh as much as all others together, over all processes that learn together."""
        assert batch.targets is not None, "a batch of the head's own view"
        right, units = batch.targets["right"], (~batch.targets["further"]).sum()
        each = F.binary_cross_entropy_with_logits(output, right, reduction="none")
        yes, no, read = right.sum(), (1 - right).sum(), units.to(each.dtype)
        if sharing():
            yes, no, read = summed(torch.stack([yes, no, read])).unbind()
        if bool(yes) and bool(no):
            each = each * torch.where(right > 0, read / (2 * yes), read / (2 * no))
        else:
            each = each * read / (yes + no)
        correct = ((output > 0) == (right > 0)).sum() * read / (yes + no)
        return each.sum(), units.to(each.dtype), {"accuracy": correct.detach()}

    def absent(self, batch: Batch) -> Term:
        """See ``Head.absent``; the rows of all processes are counted."""
        if sharing():
            summed(torch.zeros(3, device=batch.clip_K.device))
        return super().absent(batch)

    def further(self, batch: Batch, answer: Callable[[Batch], Any]) -> Batch:
        """See ``Head.further``: right texts beside the clips of others."""
        assert batch.targets is not None or not len(batch.clip_K), "a batch of the head's own view"
        shared = sharing()
        if not self.candidates or not (shared or len(batch.clip_K)):
            return batch
        with torch.no_grad():
            found = pool(batch, shared)
            text_J, clip_J = tried(found, self.candidates)
            if not len(text_J):
                return batch
            chosen = hardest(text_J, clip_J, scores(found, text_J, clip_J, answer))
            text_J, clip_J = text_J[chosen], clip_J[chosen]
            if shared:
                chosen = own(found, clip_J)
                text_J, clip_J = text_J[chosen], clip_J[chosen]
            if not len(text_J):
                return batch
            targets = {
                "right": torch.zeros(len(text_J), device=text_J.device),
                "said": found.said_R[text_J],
                "further": torch.ones(len(text_J), dtype=torch.bool, device=text_J.device),
            }
            return with_rows(batch, found.pairs(text_J, clip_J)._replace(targets=targets))

    # -- answering -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, output: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """{key, uid, text, of, right, score}: the text, the right one that it is a wrong form of, and the probability
        that it says what is shown."""
        if not bool(torch.isfinite(output).all()):
            raise UserError("head=match: scores are not numbers (NaN): training went wrong; lower its rates")
        return [
            {name: row.get(name, "") for name in ("key", "uid", "text", "of")}
            | {"right": bool(row.get("right")), "score": round(score, 6)}
            for row, score in zip(batch.rows or [], output.sigmoid().tolist(), strict=True)
        ]

    def metrics(self) -> dict[str, Metric]:
        return {"accuracy": MeanMetric(), "hard_negatives": MeanMetric()}

    def update(self, metrics: Mapping[str, Metric], lines: SequenceOf[Mapping[str, Any]]) -> None:
        """``accuracy``: the mean of right and of wrong pairs' share of right answers; ``hard_negatives``: how often a
        right text is scored above all of its wrong ones."""
        for name, found in self._each(lines).items():
            for value, _ in found:
                metrics[name].update(value)

    def _each(self, lines: SequenceOf[Mapping[str, Any]]) -> dict[str, list[tuple[float, Any]]]:
        """{metric: (value, clip) of what it is the mean of}."""
        groups: dict[tuple[str, str], dict[bool, list[float]]] = {}
        for line in lines:
            of = groups.setdefault((clip_of(line), line["of"]), {True: [], False: []})
            of[line["right"]].append(line["score"])
        found: dict[str, list[tuple[float, Any]]] = {"accuracy": [], "hard_negatives": []}
        for (clip, _), of in groups.items():
            shares = [
                sum((score > 0.5) == right for score in scores) / len(scores) for right, scores in of.items() if scores
            ]
            found["accuracy"].append((sum(shares) / len(shares), clip))
            if of[True] and of[False]:
                found["hard_negatives"].append((float(min(of[True]) > max(of[False])), clip))
        return found

    def score(self, lines: SequenceOf[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """See ``Head.score``; means over right texts."""
        return with_errors(super().score(lines), self._each(lines))

    def check_lines(self, lines: Mapping[int, Mapping[str, Any]], path: Path) -> None:
        """See ``Head.check_lines``."""

        def name_of(line: Mapping[str, Any]) -> None:
            clip_of(line)
            for name in ("text", "of"):
                as_text(line.get(name), name)
            if not isinstance(line.get("right"), bool):
                raise FieldError(f"right is {shown(line.get('right'))}, expected true or false")
            as_number(line.get("score"), "score")

        check_each(lines, path, name_of)

    def read(self, path: Path, setting: str) -> list[FileRow]:
        """A list of pairs; see ``read_pairs``."""
        return read_pairs(path, setting)
