"""Anybody's held-out multiple choice: 2 to 26 options, any mixture of numbers of options.

The questions are those of the dataset's split, of other shards (``path``), or of a file beside a folder of videos
(``questions``, ``videos``); docs/evaluation.md says the fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from hvlm.benchmark._base import PREMISE, SCORINGS, question_of
from hvlm.benchmark._own import OwnQuestions
from hvlm.config.ranges import PositiveInt
from hvlm.data.views import in_context
from hvlm.errors import UserError
from hvlm.evaluation.scores import Prediction, Question, Try, score_choices
from hvlm.prompts import LETTERS, bare_options, lettered_prompt


class Choices(OwnQuestions):
    """split: of the dataset or of ``path``. path: a folder of shards. questions: a file of questions (.jsonl, .json,
    .csv, .tsv). videos: the folder of its videos, None: the file's own.
    scoring: ``loglik_mean`` (of the option's text, mean over its tokens), ``loglik_sum`` over them; ``loglik_letter``
        lists the options in the prompt and scores their letters (as questions that say ``lettered`` are scored under
        the others); ``pmi`` as ``loglik_sum``, less what the option has after "Answer:" alone; ``generate`` lists
        them, too, and reads what the model writes.
    tasks: names of those to ask, None: all. tries: how many of a question's orders of options are asked.
    max_new_tokens: of a written answer. batch_size: clips per forward pass. limit: that many clips, evenly spread.
    blind: also ask everything without frames. num_frames: sampled per clip, None: as many as the model was trained
    with. apart: tasks that the means leave out; their names then say so.
    """

    form = 'the JSON needs "questions" with "options" and "answer"'
    choices = True

    def __init__(
        self,
        *,
        scoring: Literal["loglik_mean", "loglik_sum", "loglik_letter", "pmi", "generate"] = "loglik_mean",
        tries: PositiveInt = 4,
        max_new_tokens: PositiveInt = 32,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if scoring not in SCORINGS:
            raise UserError(f"benchmark.scoring={scoring}: expected one of {', '.join(SCORINGS)}")
        self.scoring, self.tries = scoring, tries
        self.writes, self.max_new_tokens = scoring == "generate", max_new_tokens

    def all_questions(self, sample: Mapping[str, Any]) -> list[Question]:
        """The questions of one sample that have options. ValueError where there is nothing to choose."""
        out = []
        for q in sample["questions"]:
            if "tries" not in q:
                continue
            lettered = q["lettered"] or self.scoring in ("loglik_letter", "generate")
            tries = [_try(q, one, lettered) for one in q["tries"][: self.tries]]
            if self.scoring == "pmi":
                every = tuple(dict.fromkeys(answer for one in tries for answer in one.answers))
                tries.append(Try(PREMISE, every, every, 0))
            out.append(question_of(sample, q, tries))
        return out

    def score(self, predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
        """Accuracy per task and both means; see ``hvlm.evaluation.scores.score_choices``."""
        return score_choices(predictions, self.apart)


def _try(q: Mapping[str, Any], one: Mapping[str, Any], lettered: bool) -> Try:
    options = tuple(one["options"])
    if len(options) < 2 or len(set(options)) < len(options):
        raise ValueError(f"question {q['id']!r} has the options {options}, expected two or more, all different")
    if not lettered:
        return Try(in_context(q["question"], q), options, options, one["gold"])
    options = bare_options(options)
    prompt = in_context(lettered_prompt(q["question"], options), q)
    return Try(prompt, options, tuple(LETTERS[: len(options)]), one["gold"])
