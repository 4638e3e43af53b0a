"""What every benchmark is: where its clips come from, what it asks about them, and how answers become a score.

A benchmark knows nothing about models. It owns its data: by default a split of the configured dataset, but ``source``
may open anything that the reader can read. There are two ways to answer, and both give predictions: by the likelihood
of the offered answers (``predict``) and in the model's own words (``read``).
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hvlm.config.ranges import PositiveInt
from hvlm.contracts import Benchmark
from hvlm.data import samples
from hvlm.data.quarantine import SampleError
from hvlm.data.shard_index import Manifest, ShardSplit
from hvlm.data.tar import TEXT_FIELDS
from hvlm.errors import UserError
from hvlm.evaluation.answers import MISSING, read_answer
from hvlm.evaluation.scores import Likelihood, Prediction, Question, Try, choose, score
from hvlm.types import InputSpec

PREMISE = "Answer:"  # asked instead of the question, for scoring="pmi"
SCORINGS = ("loglik_mean", "loglik_sum", "loglik_letter", "pmi", "generate")
PEEKED = 64  # clips whose questions are looked at before any work


class QuestionBenchmark(Benchmark):
    """split: of the dataset. tasks: names of those to ask, None: all. batch_size: clips per forward pass. limit: that
    many clips, evenly spread, or None: all. blind: also ask everything without frames. num_frames: sampled per clip,
    None: as many as the model was trained with. apart: tasks that the means over tasks leave out.

    form: what a sample must hold so that there is something to ask, in words for whoever writes shards. scoring: how
    likelihoods become a choice.
    """

    form: ClassVar[str]
    scoring: str = "loglik_mean"

    def __init__(
        self,
        *,
        split: str = "test",
        tasks: list[str] | None = None,
        batch_size: PositiveInt = 32,
        limit: PositiveInt | None = None,
        blind: bool = True,
        num_frames: PositiveInt | None = None,
        apart: Sequence[str] = (),
    ) -> None:
        self.split, self.tasks, self.batch_size, self.limit, self.blind = split, tasks, batch_size, limit, blind
        self.num_frames, self.apart = num_frames, tuple(apart)

    # -- what is asked -------------------------------------------------------------------------------------------------

    def source(self, dataset: Any) -> Any:
        """The clips that are asked about, as the reader takes them.

        Args:
            dataset: the configured one. It is prepared here if its split is what the benchmark asks about.

        Raises:
            UserError: the dataset has no such split.
        """
        if dataset.access != "index":
            raise UserError(
                f"dataset.access={dataset.access} has no split that a benchmark could ask about; use "
                "dataset.access=index, or train with evaluate=false"
            )
        dataset.prepare()
        return self.split_of(dataset.manifest(), "the dataset")

    def split_of(self, manifest: Manifest, whose: str) -> ShardSplit:
        """The benchmark's split of some shards; whose: what has them, for messages."""
        if self.split not in manifest.splits:
            raise UserError(
                f"benchmark.split={self.split}: {whose} has no such split, it has {', '.join(manifest.splits)}; "
                "set benchmark.split to one of them, or train with evaluate=false"
            )
        manifest.verify(full=False)
        return manifest.split(self.split)

    def select(self, num_clips: int, limit: int | None = None) -> list[int]:
        """Indices of the clips to ask about, out of ``num_clips`` of the source; ``limit``: where the benchmark has
        none of its own."""
        limit = self.limit or limit
        if limit is None or limit >= num_clips:
            return list(range(num_clips))
        return np.linspace(0, num_clips - 1, limit).round().astype(int).tolist()

    def inputs(self, inputs: InputSpec) -> InputSpec:
        """How clips are read: as the model wants them, with the benchmark's number of frames."""
        return inputs if self.num_frames is None else inputs._replace(num_frames=self.num_frames)

    @abstractmethod
    def all_questions(self, sample: Mapping[str, Any]) -> list[Question]:
        """What can be asked about one sample (its JSON): [] where it holds no question of this benchmark.

        Raises ValueError, LookupError or TypeError for a sample that is malformed.
        """

    def questions(self, sample: Mapping[str, Any], open_questions: bool = False) -> list[Question]:
        """The questions of the wanted tasks; those without options only where these can be answered."""
        asked = [q for q in self.all_questions(sample) if self.tasks is None or q.task in self.tasks]
        return [q for q in asked if open_questions or all(one.options for one in q.tries)]

    def check(self, dataset: Any) -> list[Question]:
        """Look at the source until there is something to ask, so that what cannot be asked is said before any work.

        Returns:
            Questions about some clips, of the kind that will be asked.

        Raises:
            UserError: no such split, or no question (of the wanted tasks) in it.
        """
        clips = self.source(dataset)
        wanted, tasks = set(self.tasks or ()), set[str]()
        found: list[Question] = []
        asked = 0
        chosen = self.select(len(clips))
        # A task that none of the chosen clips has is rare, or misspelt: the other clips say which.
        others = sorted(set(range(len(clips))) - set(chosen)) if self.tasks else []
        for place, index in enumerate([*chosen, *others]):
            seen_enough = asked == PEEKED or place >= len(chosen)
            if seen_enough and (wanted <= tasks or not found):
                break
            key, domain, uid = clips.keys[index], clips.domains[index], clips.uid(index)
            try:
                sample = samples.parse(clips.read(index, TEXT_FIELDS), key, domain, uid)
                tasks |= {q.task for q in self.all_questions(sample) if q.tries[0].options or self.writes}
                questions = [] if seen_enough else self.questions(sample, self.writes)
            except (SampleError, ValueError, LookupError, TypeError):
                continue  # it is named and counted when it is asked about
            found += questions
            asked += bool(questions)
        unknown = sorted(wanted - tasks)
        if found and not unknown:
            return found
        if not tasks:
            raise UserError(
                f"benchmark: {len(chosen)} clips of {clips.name!r} in {clips.folder} hold no question of "
                f"{type(self).__name__} ({self.form}); choose another benchmark or split, or set evaluate=false"
            )
        near = ""
        for word in unknown[:1]:
            alike = difflib.get_close_matches(word, tasks, n=1)
            near = f" {word!r} is none of them" + (f"; did you mean {alike[0]!r}?" if alike else "")
        raise UserError(
            f"benchmark.tasks=[{','.join(self.tasks or ())}]: the questions are of the tasks "
            f"{', '.join(sorted(tasks))};{near}".rstrip(";")
        )

    # -- how it is answered --------------------------------------------------------------------------------------------

    def predict(
        self, question: Question, likelihoods: Mapping[tuple[str, str], Likelihood], variant: str
    ) -> list[Prediction]:
        """One prediction per try, from {(prompt, answer): Likelihood} of its clip: the likeliest answer, per token or,
        with ``scoring="loglik_sum"``, in sum; with ``scoring="pmi"`` in sum, less what it has after ``PREMISE`` in
        place of the question, which is then the last try and gives no prediction."""
        out = []
        tries = question.tries[:-1] if self.scoring == "pmi" else question.tries
        for attempt, one in enumerate(tries):
            found = [likelihoods[one.prompt, answer] for answer in one.answers]
            scores = [f.logp if self.scoring in ("loglik_sum", "pmi") else f.logp / f.tokens for f in found]
            if self.scoring == "pmi":
                alone = question.tries[-1].prompt
                scores = [s - likelihoods[alone, answer].logp for s, answer in zip(scores, one.answers, strict=True)]
            out.append(from_scores(question, attempt, one, scores, variant))
        return out

    def read(self, question: Question, written: Mapping[str, str], variant: str) -> list[Prediction]:
        """One prediction per try, from {prompt: what the model wrote} of its clip."""
        return [from_text(question, i, one, written[one.prompt], variant) for i, one in enumerate(question.tries)]

    def score(self, predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
        """Accuracy per task, their mean and the 4-of-4 score; see ``hvlm.evaluation.scores.score``."""
        return score(predictions, self.apart)


def cluster_of(sample: Mapping[str, Any]) -> str:
    """What the errors of a sample's questions are clustered by: its ``cluster``, which parts of a video share."""
    return sample.get("cluster", sample["uid"])


def question_of(sample: Mapping[str, Any], q: Mapping[str, Any], tries: Sequence[Try]) -> Question:
    """One of a sample's questions, put to the model in these tries."""
    evidence = tuple((float(start), float(stop)) for start, stop in q["evidence"])
    return Question(f"{sample['uid']}/{q['id']}", cluster_of(sample), q["task"], tuple(tries), evidence, q["question"])


def from_scores(question: Question, attempt: int, one: Try, scores: Sequence[float], variant: str) -> Prediction:
    """The option with the best score; none where a score is not a finite number."""
    pred = choose(scores)
    return Prediction(
        question.id, question.key, question.task, attempt, one.options, one.gold, pred, tuple(scores), variant,
        problem=MISSING if pred is None else "", question=question.words, depth=question.depth, length=question.length,
    )  # fmt: skip


def from_text(question: Question, attempt: int, one: Try, text: str, variant: str) -> Prediction:
    """What the model wrote, and the option that it means if there are options."""
    shared = (question.id, question.key, question.task, attempt)
    if not one.options:
        problem = "" if text.strip() else MISSING
        return Prediction(*shared, (), None, None, None, variant, text, one.answers, problem, question.words)
    reading = read_answer(text, one.options, one.lettered)
    return Prediction(
        *shared, one.options, one.gold, reading.index, None, variant, text, problem=reading.problem,
        question=question.words, depth=question.depth, length=question.length,
    )  # fmt: skip
