"""Held-out captions: the model describes the clip, and what it writes is compared with one or several references.

The clips are those of the dataset's split, of other shards (``path``), or videos of a folder with a file of captions
(``questions``, ``videos``); docs/evaluation.md says the fields. Captions of a clip that answer one prompt are
references of one caption.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hvlm.benchmark._base import cluster_of
from hvlm.benchmark._own import OwnQuestions
from hvlm.config.ranges import NonNegativeFloat, PositiveInt, Share
from hvlm.data.caption_file import read_captions
from hvlm.data.question_file import Row
from hvlm.data.views import in_context
from hvlm.evaluation.caption_scores import score_captions
from hvlm.evaluation.scores import Prediction, Question, Try


class Captions(OwnQuestions):
    """split: of the dataset or of ``path``. path: a folder of shards. questions: a file of captions (.jsonl, .json,
    .csv, .tsv). videos: the folder of its videos, None: the file's own.
    max_new_tokens: of a caption. num_beams: of beam search, 1: word by word. temperature: 0 takes the likeliest word,
    above words are drawn by chance (of ``seed=``), among the likeliest that together have the probability top_p.
    tasks: domains whose clips are captioned, None: all. batch_size: clips per forward pass. limit: that many clips,
    evenly spread. blind: also caption without frames. num_frames: sampled per clip, None: as many as the model was
    trained with. apart: domains that the means leave out; their names then say so.
    """

    form = 'the JSON needs "captions"'
    choices = False
    writes = True

    def __init__(
        self,
        *,
        max_new_tokens: PositiveInt = 64,
        num_beams: PositiveInt = 1,
        temperature: NonNegativeFloat = 0.0,
        top_p: Share = 1.0,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.max_new_tokens, self.num_beams = max_new_tokens, num_beams
        self.temperature, self.top_p = temperature, top_p

    def rows(self, file: Path) -> list[Row]:
        """The captions of a file. UserError for what is malformed in it."""
        return read_captions(file, "benchmark.questions")

    def all_questions(self, sample: Mapping[str, Any]) -> list[Question]:
        """One for each prompt that the captions of a sample answer; its task is the sample's domain."""
        if self.file:
            said = [(q["question"], q["answers"], q["evidence"]) for q in sample["questions"]]
        else:
            said = [
                (in_context(c["prompt"], c), [c["text"], *c.get("references", ())], c["evidence"])
                for c in sample["captions"]
            ]
        by_prompt: dict[str, tuple[list[str], list[tuple[float, float]]]] = {}
        for prompt, texts, evidence in said:
            references, shown = by_prompt.setdefault(prompt, ([], []))
            references += texts
            shown += [(float(start), float(stop)) for start, stop in evidence]
        return [
            Question(
                f"{sample['uid']}/caption{i}", cluster_of(sample), sample["domain"],
                (Try(prompt, (), tuple(dict.fromkeys(references)), 0),), tuple(dict.fromkeys(shown)), str(prompt),
            )
            for i, (prompt, (references, shown)) in enumerate(by_prompt.items())
        ]  # fmt: skip

    def score(self, predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
        """CIDEr-D, BLEU, METEOR (exact + stem) and ROUGE-L; see ``hvlm.evaluation.caption_scores``."""
        return score_captions(predictions, self.apart)
