"""Anybody's held-out open questions: the model writes its answer, which is compared with one or several right ones.

The questions come from where those of ``choices`` come from. One with options is asked without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hvlm.benchmark._base import question_of
from hvlm.benchmark._own import OwnQuestions
from hvlm.config.ranges import NonNegativeFloat, PositiveInt, Share
from hvlm.data.views import in_context
from hvlm.evaluation.open_scores import score_open
from hvlm.evaluation.scores import Prediction, Question, Try


class Open(OwnQuestions):
    """split: of the dataset or of ``path``. path: a folder of shards. questions: a file of questions (.jsonl, .json,
    .csv, .tsv). videos: the folder of its videos, None: the file's own.
    with_options: whether questions that have options are asked, too, without these.
    instruction: a line after every question, such as "Answer with a single word or phrase."; None: none.
    max_new_tokens: of an answer. num_beams: of beam search, 1: word by word. temperature: 0 takes the likeliest word,
    above words are drawn by chance (of ``seed=``), among the likeliest that together have the probability top_p.
    tasks: names of those to ask, None: all. batch_size: clips per forward pass. limit: that many clips, evenly spread.
    blind: also ask everything without frames. num_frames: sampled per clip, None: as many as the model was trained
    with. apart: tasks that the means leave out; their names then say so.
    """

    form = 'the JSON needs "questions" with "answer" or "answers"'
    choices = False
    writes = True

    def __init__(
        self,
        *,
        with_options: bool = True,
        instruction: str | None = None,
        max_new_tokens: PositiveInt = 32,
        num_beams: PositiveInt = 1,
        temperature: NonNegativeFloat = 0.0,
        top_p: Share = 1.0,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.with_options, self.instruction, self.max_new_tokens = with_options, instruction, max_new_tokens
        self.num_beams, self.temperature, self.top_p = num_beams, temperature, top_p

    def all_questions(self, sample: Mapping[str, Any]) -> list[Question]:
        """The questions of one sample, without their options where they have some."""
        out = []
        for q in sample["questions"]:
            if "tries" in q and not self.with_options:
                continue
            prompt = f"{q['question']}\n{self.instruction}" if self.instruction else q["question"]
            one = Try(in_context(prompt, q), (), tuple(q.get("answers", [q["answer"]])), 0)
            out.append(question_of(sample, q, [one]))
        return out

    def score(self, predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
        """Exact, normalised and f1 per task and in both means; see ``hvlm.evaluation.open_scores``."""
        return score_open(predictions, self.apart)
