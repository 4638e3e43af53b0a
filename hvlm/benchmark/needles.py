"""The held-out questions of a needles dataset: four tries, a blind control.

Each question carries tries, the same question with its options permuted or drawn anew. Easy and hard sets: the prompt
is the bare question and each distinct option is scored once as the answer; a try chooses the best of its own options.
VNBench set: the prompt lists the options with letters, as VideoNIAH's own evaluation does, and the letter is scored.

A sample's JSON holds ``questions``, each one of

    {"id", "question", "tries": [{"options": [...], "gold": 0}, ...], "task", "evidence": [[t0, t1], ...]}
    {"id", "question", "options": [...], "answer": "one of them", "task", "evidence"}

``task`` (default "question") and ``evidence`` (default none: any frames will do) may be left out. A question without
options is open: it is asked where the model writes its answers itself (``task=generate``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from hvlm.benchmark._base import QuestionBenchmark, question_of
from hvlm.config.ranges import Ge, Le
from hvlm.data.views import in_context
from hvlm.errors import UserError
from hvlm.evaluation.scores import Question, Try
from hvlm.prompts import LETTERS, lettered_prompt


class Needles(QuestionBenchmark):
    """split: of the dataset. tasks: names to ask about, or None for all.
    tries: how many of a question's tries are asked, if it has so many; the 4-of-4 score needs four.
    scoring: ``loglik_mean`` (mean over the answer's tokens) or ``loglik_sum`` over them; ``loglik_letter`` lists the
        options in every prompt and scores the letter (what the VNBench set does under any scoring).
    batch_size: clips per forward pass. limit: that many clips, evenly spread over the split, or None for all.
    blind: also ask everything without frames. num_frames: sampled per clip, None: as many as the model was trained
    with. apart: tasks that are reported, but left out of accuracy_mean and accuracy_4of4.
    """

    form = 'the JSON needs "questions" with "tries" or "options"'

    def __init__(
        self,
        *,
        tries: Annotated[int, Ge(1), Le(4)] = 4,
        scoring: Literal["loglik_mean", "loglik_sum", "loglik_letter"] = "loglik_mean",
        apart: Sequence[str] = ("direction",),
        **rest: Any,
    ) -> None:
        super().__init__(apart=apart, **rest)
        if scoring not in ("loglik_mean", "loglik_sum", "loglik_letter"):
            raise UserError(f"benchmark.scoring={scoring}: expected loglik_mean, loglik_sum or loglik_letter")
        self.tries, self.scoring = tries, scoring

    def all_questions(self, sample: Mapping[str, Any]) -> list[Question]:
        """The questions of one sample (as ``hvlm.data.samples.parse`` gives it), as they are put to the model."""
        out = []
        for q in sample["questions"]:
            lettered = self.scoring == "loglik_letter" or q["lettered"]
            tries = q.get("tries", [])[: self.tries]
            offered = [_try(q["question"], t["options"], t["gold"], lettered) for t in tries]
            asked = offered or [Try(in_context(q["question"], q), (), (q["answer"],), 0)]
            out.append(question_of(sample, q, asked))
        return out


def _try(question: str, options: Iterable[str], gold: int, lettered: bool) -> Try:
    options = tuple(options)
    if lettered:
        return Try(lettered_prompt(question, options), options, tuple(LETTERS[: len(options)]), gold)
    return Try(question, options, options, gold)
