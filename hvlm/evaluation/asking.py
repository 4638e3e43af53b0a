"""What the two ways of answering share: a clip with its questions, and what a way of answering is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from hvlm.contracts import Benchmark
from hvlm.evaluation.scores import Prediction, Question
from hvlm.rebuild import Loaded


class Query(NamedTuple):
    """A clip and what is asked about it.

    frames_TCHW: uint8, and time_T: float32 seconds, or None without a video (the blind control). questions: each about
    this clip, or without a video about any. motion_TYX: float32 where the model wants it. uid: the sample's one
    name, for features that are kept.
    """

    frames_TCHW: np.ndarray | None
    time_T: np.ndarray | None
    questions: Sequence[Question]
    motion_TYX: np.ndarray | None = None
    uid: str = ""

    @property
    def answers(self) -> dict[str, list[str]]:
        """prompt -> the distinct answers over all tries of all questions, in order of appearance."""
        out: dict[str, dict[str, None]] = {}
        for one in (t for q in self.questions for t in q.tries):
            out.setdefault(one.prompt, {}).update(dict.fromkeys(one.answers))
        return {prompt: list(answers) for prompt, answers in out.items()}


class Answer(Protocol):
    """A way to answer: ``likelihood.ByLikelihood``, ``generate.InWords``.

    open_questions: it can answer questions without options.
    """

    open_questions: bool

    def __call__(
        self, loaded: Loaded, benchmark: Benchmark, clips: Sequence[Query], variant: str
    ) -> list[list[Prediction]]:
        """The predictions about each clip, in the order of its questions. The model is in eval mode."""
        ...
