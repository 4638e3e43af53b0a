"""The held-out questions of a needles dataset: multiple choice by log-likelihood, four tries, a blind control.

Each question carries four tries, the same question with its options permuted or drawn anew. Easy and hard sets: the
prompt is the bare question and each distinct option is scored once as the answer; a try chooses the best of its own
options. VNBench set: the prompt lists the options with letters, as VideoNIAH's own evaluation does, and the letter is
scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np

from hvlm.config.ranges import Ge, Le, PositiveInt
from hvlm.contracts import Benchmark
from hvlm.errors import UserError
from hvlm.evaluation.scores import Likelihood, Prediction, Question, Try, choose, score
from hvlm.prompts import LETTERS, lettered_prompt


class Needles(Benchmark):
    """split: of the dataset. tasks: names to ask about, or None for all.
    tries: how many of a question's four tries are asked; the 4-of-4 score needs all.
    scoring: ``loglik_mean`` (mean over the answer's tokens) or ``loglik_sum`` over them; ``loglik_letter`` lists the
        options in every prompt and scores the letter (what the VNBench set does under any scoring).
    batch_size: clips per forward pass. limit: that many clips, evenly spread over the split, or None for all.
    blind: also ask everything without frames.
    """

    def __init__(
        self,
        split: str = "test",
        tasks: list[str] | None = None,
        tries: Annotated[int, Ge(1), Le(4)] = 4,
        scoring: Literal["loglik_mean", "loglik_sum", "loglik_letter"] = "loglik_mean",
        batch_size: PositiveInt = 32,
        limit: PositiveInt | None = None,
        blind: bool = True,
    ):
        if scoring not in ("loglik_mean", "loglik_sum", "loglik_letter"):
            raise UserError(f"benchmark.scoring={scoring}: expected loglik_mean, loglik_sum or loglik_letter")
        self.split, self.tasks, self.tries, self.scoring = split, tasks, tries, scoring
        self.batch_size, self.limit, self.blind = batch_size, limit, blind

    def select(self, num_clips: int) -> list[int]:
        """Indices of the clips to ask about, out of ``num_clips`` of the split."""
        if self.limit is None or self.limit >= num_clips:
            return list(range(num_clips))
        return np.linspace(0, num_clips - 1, self.limit).round().astype(int).tolist()

    def questions(self, sample: Mapping[str, Any]) -> list[Question]:
        """The questions of one sample (as ``hvlm.data.samples.parse`` gives it), of the wanted tasks, as they are put
        to the model."""
        out = []
        for q in sample["questions"]:
            if self.tasks is not None and q["task"] not in self.tasks:
                continue
            if len(q["tries"]) < self.tries:
                raise UserError(
                    f"benchmark.tries={self.tries}: {sample['uid']}/{q['id']} has {len(q['tries'])}; ask for fewer"
                )
            lettered = self.scoring == "loglik_letter" or q["lettered"]
            tries = tuple(_try(q["question"], t["options"], t["gold"], lettered) for t in q["tries"][: self.tries])
            evidence = tuple((float(start), float(stop)) for start, stop in q["evidence"])
            out.append(Question(f"{sample['uid']}/{q['id']}", sample["uid"], q["task"], tries, evidence))
        return out

    def predict(
        self, question: Question, likelihoods: Mapping[tuple[str, str], Likelihood], variant: str
    ) -> list[Prediction]:
        """One prediction per try, from {(prompt, answer): Likelihood} of its clip."""
        out = []
        for attempt, (prompt, options, answers, gold) in enumerate(question.tries):
            found = [likelihoods[prompt, answer] for answer in answers]
            scores = tuple(f.logp if self.scoring == "loglik_sum" else f.logp / f.tokens for f in found)
            out.append(
                Prediction(
                    question.id, question.key, question.task, attempt, options, gold, choose(scores), scores, variant
                )
            )
        return out

    def score(self, predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
        """Accuracy per task, their mean and the 4-of-4 score; see ``hvlm.evaluation.scores.score``."""
        return score(predictions)


def _try(question: str, options: Iterable[Any], gold: int, lettered: bool) -> Try:
    options = tuple(str(option) for option in options)
    if lettered:
        return Try(lettered_prompt(question, options), options, tuple(LETTERS[: len(options)]), gold)
    return Try(question, options, options, gold)
