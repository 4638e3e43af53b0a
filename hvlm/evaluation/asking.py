"""What the ways of answering share: a benchmark's clips as the reader gives them, with the questions about each."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from hvlm.contracts import Benchmark
from hvlm.data.batches import clip_frames
from hvlm.data.fitting import shortened, turns_of
from hvlm.data.loader import Loader
from hvlm.data.quarantine import SampleError
from hvlm.data.sampling import is_shown
from hvlm.data.views import Row, View
from hvlm.evaluation.scores import Prediction, Question
from hvlm.rebuild import Loaded
from hvlm.types import Batch


@dataclass(frozen=True)
class Asked(View):
    """The questions of a benchmark that the sampled frames can answer: one row each, with its first try's prompt and
    right answer. Its meta holds the ``question`` itself, and ``hidden``, how many of the clip need other frames.

    open_questions: those without options, too.
    """

    benchmark: Benchmark
    open_questions: bool = False
    name = "questions of the benchmark"

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        questions = self._questions(sample | {"times": times})
        shown = [q for q in questions if is_shown(q.evidence, times)]
        about = {"key": sample["key"], "uid": sample["uid"], "hidden": len(questions) - len(shown)}
        return [
            Row(first.prompt, first.answers[first.gold], about | {
                "task": q.task, "question_id": q.id.removeprefix(f"{sample['uid']}/"),
                "answer": first.answers[first.gold], "question": q,
            })
            for q, first in ((q, q.tries[0]) for q in shown)
        ]  # fmt: skip

    def fitted(self, rows: list[Row], fits: Callable[[str, str], bool], cut: bool) -> list[Row] | None:
        """A question of which no way to ask it, with any answer, is too long. Only the oldest exchanges of its
        conversation can be cut: without a part of itself or of its options it would be another question."""
        (row,) = rows
        question: Question = row.meta["question"]
        longest = max(turns_of(row._replace(prompt=one.prompt)) for one in question.tries) if cut else 0
        for turns in range(longest + 1):
            tries = tuple(
                one._replace(prompt=shortened(row._replace(prompt=one.prompt), turns).prompt) for one in question.tries
            )
            if all(fits(one.prompt, answer) for one in tries for answer in one.answers):
                meta = row.meta | {"question": question._replace(tries=tries)}
                return [row._replace(prompt=tries[0].prompt, meta=meta)]
        return None

    def passes_over(self, sample: dict[str, Any]) -> bool:
        return not self._questions(sample)

    def _questions(self, sample: dict[str, Any]) -> list[Question]:
        try:
            return self.benchmark.questions(sample, self.open_questions)
        except (ValueError, LookupError, TypeError) as error:
            raise SampleError(sample["key"], "json", f"{type(error).__name__}: {error}") from error


def clips_of(
    loaded: Loaded,
    benchmark: Benchmark,
    view: View | None = None,
    *,
    batch_size: int | None = None,
    limit: int | None = None,
    quarantine: Path | None = None,
    skip: Container[int] = (),
) -> Loader:
    """Batches of the clips that a benchmark asks about: the one place that opens them.

    Args:
        loaded: its dataset may be where the clips come from; its model says how they are read.
        benchmark: its source, selection and number of frames.
        view: what is shown of them; None: the benchmark's own rows, or all its questions, open ones, too.
        batch_size: clips of a batch; None: the benchmark's.
        limit: of clips, where the benchmark has none.
        quarantine: file that names bad clips.
        skip: indices of clips that are not read; the others keep their batches.
    """
    source, view = benchmark.source(loaded.data), view or benchmark.view
    reader = loaded._replace(inputs=benchmark.inputs(loaded.inputs)).reader(quarantine)
    indices = benchmark.select(len(source), limit)
    return reader.read(source, view or Asked(benchmark, True), None, batch_size or benchmark.batch_size, indices, skip)


class Query(NamedTuple):
    """A clip and what is asked about it.

    frames_TCHW: uint8, and time_T: float32 seconds, or None without a video (the blind control). questions: each about
    this clip, or without a video about any. motion_TYX: float32 where the model wants it. uid: the sample's one name,
    for features that are kept.
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


def queries(batch: Batch) -> Iterator[Query]:
    """The clips of a batch that the view ``Asked`` made."""
    assert batch.rows is not None and batch.uids is not None
    clip_K = batch.clip_K.tolist()
    for i in range(batch.num_clips):
        questions = [row["question"] for clip, row in zip(clip_K, batch.rows, strict=True) if clip == i]
        seen = batch.frame_mask_BT[i]
        motion = None if batch.motion_BTYX is None else batch.motion_BTYX[i][seen].numpy()
        yield Query(clip_frames(batch, i), batch.frame_time_BT[i][seen].numpy(), questions, motion, batch.uids[i])


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
