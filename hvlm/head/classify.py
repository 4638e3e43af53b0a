"""One of a closed set of answers: scores of all of them at once, learned from soft targets.

The usual head of closed-set visual question answering (Antol et al. 2015; Teney et al. 2018): the frequent answers are
classes, each with a sigmoid of its own, and the target of an answer is how right it is, so that several can be right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from hvlm.config.ranges import PositiveInt, Probability
from hvlm.contracts import Head
from hvlm.data.question_file import Row as FileRow
from hvlm.data.sample_fields import as_number, as_object, as_text
from hvlm.data.sample_targets import as_published, as_weights
from hvlm.data.sampling import is_shown
from hvlm.data.views import Row, View, in_context
from hvlm.head._closed_answers import read_answers
from hvlm.head._errors import with_errors
from hvlm.head._labels import Labels
from hvlm.head._lines import check_each, label_in, listed
from hvlm.head._pool import state_of_both
from hvlm.metrics import published
from hvlm.metrics.text import SoftVQAAccuracy
from hvlm.metrics.vqa import VARIANTS, vqa_accuracy
from hvlm.types import Batch, Sequence


@dataclass(frozen=True)
class ClosedQuestions(View):
    """Questions of which an answer is among the labels: one row each, without the answer.

    every: also those of which none is, which cannot be answered; for scoring.
    """

    labels: tuple[str, ...]
    every: bool = False
    name = "questions with an answer among head.labels"

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        found = []
        for q in sample["questions"]:
            weights = weights_of(q)
            if is_shown(q["evidence"], times) and (self.every or set(weights) & set(self.labels)):
                found.append((q, weights))
        if n is not None:
            found = [found[i] for i in rng.permutation(len(found))[:n]]
        about = {"key": sample["key"], "uid": sample["uid"], "domain": sample.get("domain", "")}
        return [
            Row(in_context(q["question"], q), None, about | {
                "task": q["task"], "question_id": f"{sample['uid']}/{q['id']}", "question": q["question"],
                "weights": weights, "people": q.get("people", []), "cluster": sample.get("cluster", sample["uid"]),
                **({"published": q["published"]} if "published" in q else {}),
            })
            for q, weights in found
        ]  # fmt: skip

    def scoring(self) -> View:
        return replace(self, every=True)

    def targets(self, rows: SequenceOf[Mapping[str, Any]], chat: Any) -> dict[str, Tensor]:
        """``answers``: how right each label is, float32 [K, labels]."""
        right = [[row.get("weights", {}).get(label, 0.0) for label in self.labels] for row in rows]
        return {"answers": torch.tensor(right, dtype=torch.float32)}


def weights_of(q: Mapping[str, Any]) -> dict[str, float]:
    """{answer: how right it is} of a question."""
    return dict(q["weights"]) if "weights" in q else dict.fromkeys(q.get("answers", [q["answer"]]), 1.0)


class Classify(Head):
    """labels: the answers that it can give, in order; None stands for the dataset's, which training puts in its place.
    hidden: width of the layer before the scores. dropout: there, in training. reads: the ``language`` model's state
    that has seen everything, the ``fusion``'s of video and question, or ``both`` behind each other.
    """

    names = "answers"
    measures = ("accuracy",)

    def __init__(
        self,
        *,
        text_dim: int,
        labels: list[str] | None = None,
        hidden: PositiveInt = 128,
        dropout: Probability = 0.0,
        reads: Literal["language", "fusion", "both"] = "language",
    ):
        super().__init__()
        self.labels = Labels(labels, "answers")
        self.view = ClosedQuestions(tuple(self.labels.names))
        self.reads, self.reads_fusion = reads, "" if reads == "language" else f"head.reads={reads}"
        width = 2 * text_dim if reads == "both" else text_dim
        self.scores = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, len(self.labels)),
        )  # fmt: skip

    def forward(self, hidden_KLD: Tensor, sequence: Sequence) -> Tensor:
        """Float32 scores [K, labels] of the state that has seen the whole question and the video."""
        return self.scores(state_of_both(self.reads, hidden_KLD, sequence)).float()

    def units(self, batch: Batch) -> int:
        return len(batch.input_ids_KS)

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Binary cross-entropy with the soft targets, summed over the labels, and how right the best one is."""
        assert batch.targets is not None, "a batch of the head's own view"
        right = batch.targets["answers"]
        total = F.binary_cross_entropy_with_logits(output, right, reduction="sum")
        chosen = right.gather(1, output.argmax(1, keepdim=True)).sum()
        return total, total.new_tensor(len(right)), {"accuracy": chosen}

    def predict(self, output: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """{question_id, key, task, question, cluster, answer, score, weights, people}: the likeliest label and its
        probability; null where the scores are no numbers. Of questions of published sets with ``published``, and with
        the probability of the label ``unanswerable``, where there is one."""
        scores, places = output.sigmoid().max(1)
        unable = self.labels.place.get(published.UNANSWERABLE)
        lines = []
        for k, (place, score) in enumerate(zip(places.tolist(), scores.tolist(), strict=True)):
            row = (batch.rows or [])[k]
            line = {name: row.get(name) for name in ("question_id", "key", "task", "question", "cluster")}
            known = math.isfinite(score)  # else no label is the likeliest
            line |= {"answer": self.labels.names[place] if known else None, "score": round(score, 6) if known else None}
            line |= {"weights": row.get("weights", {}), "people": row.get("people", [])}
            if "published" in row:
                line["published"] = row["published"]
                if unable is not None and known:
                    line[published.UNANSWERABLE] = round(float(output[k, unable].sigmoid()), 6)
            lines.append(line)
        return lines

    def check_lines(self, lines: Mapping[int, Mapping[str, Any]], path: Path) -> None:
        """See ``Head.check_lines``."""

        def name_of(line: Mapping[str, Any]) -> str:
            if "answer" not in line or line["answer"] is not None:
                label_in(self.labels, line.get("answer"), "answer")
            as_weights(as_object(line.get("weights"), "weights"), "weights")
            for i, one in enumerate(listed(line, "people")):
                if one != "":
                    as_text(one, f"people[{i}]")
            if "published" in line:
                as_published(line["published"], "published")
            if published.UNANSWERABLE in line:
                as_number(line[published.UNANSWERABLE], published.UNANSWERABLE)
            return as_text(line.get("question_id"), "question_id")

        check_each(lines, path, name_of)

    def read(self, path: Path, setting: str) -> list[FileRow]:
        """A published file, annotations in VQA's form or a file of questions; see ``read_answers``."""
        return read_answers(path, setting)

    def metrics(self) -> dict[str, Metric]:
        accuracies: dict[str, Metric] = {f"vqa_{variant}": SoftVQAAccuracy(variant) for variant in VARIANTS}
        return {"accuracy": MeanMetric(), "answerable": MeanMetric(), **accuracies}

    def update(self, metrics: Mapping[str, Metric], lines: SequenceOf[Mapping[str, Any]]) -> None:
        """How right the answers are, the share of questions that any label answers, and, where it is known what many
        people said, VQA's accuracy in both variants."""
        for line in lines:
            for name, value in self.each(line).items():
                if name in ("accuracy", "answerable"):
                    metrics[name].update(value)
                else:
                    metrics[name].update([line["answer"] or published.NOBODYS], [line["people"]])

    def each(self, line: Mapping[str, Any]) -> dict[str, float]:
        """What a question adds to the mean of each metric that it belongs to."""
        found = {
            "accuracy": line["weights"].get(line["answer"], 0.0),
            "answerable": float(bool(set(line["weights"]) & set(self.labels.names))),
        }
        people = line["people"]
        said = line["answer"] or published.NOBODYS
        return found | {f"vqa_{v}": vqa_accuracy(said, people, v) for v in (VARIANTS if people else ())}

    def score(self, lines: SequenceOf[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """See ``Head.score``; those of ``Classify.metrics`` are means over questions. Of published sets also their
        official figures, by the set's name (``hvlm.metrics.published``)."""
        each: dict[str, list[tuple[float, Any]]] = {}
        for line in lines:
            for name, value in self.each(line).items():
                each.setdefault(name, []).append((value, line.get("cluster") or line.get("question_id")))
        official = published.means(lines)
        rows = super().score(lines)
        rows += [_row(name, sum(v for v, _ in of) / len(of), len(of)) for name, of in official.items()]
        rows += [_row(name, value, len(lines)) for name, value in published.of_all(lines).items()]
        return with_errors(rows, each | official)


def _row(metric: str, value: float, n: int) -> dict[str, Any]:
    return {"metric": metric, "value": value, "stderr": None, "n": n, "chance": None}
