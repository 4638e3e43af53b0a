"""VNBench (VideoNIAH, arXiv:2406.09367): needles in a haystack of video, four tries of a question, all must be right.

The published release and what ``python -m hvlm.benchmark.niah`` makes are read alike: an annotation file and a folder
of videos. Files of predictions in the authors' own line formats are scored without either. docs/vnbench.md says more.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hvlm.benchmark import _vnbench_lines
from hvlm.benchmark._base import QuestionBenchmark, from_text, question_of
from hvlm.benchmark._own import say_missing
from hvlm.benchmark._vnbench_annotations import TRIES, Video, read_annotations, source_of, stem_of
from hvlm.benchmark._vnbench_scores import absent, score_vnbench
from hvlm.config.ranges import PositiveInt
from hvlm.data.question_file import Row
from hvlm.data.video_folder import VideoFolder
from hvlm.errors import UserError, first_few
from hvlm.evaluation.scores import Prediction, Question, Try
from hvlm.prompts import LETTERS, lettered_prompt

log = logging.getLogger(__name__)

NAMED = 5  # of what is missing, in a message


class VNBench(QuestionBenchmark):
    """annotations: VNBench-main-4try.json (or VNBench-annotations.json), or what ``hvlm.benchmark.niah`` wrote; needed
    to ask a model. videos: the folder of the videos, None: the file's own.
    scoring: ``generate`` reads what the model writes, as published; ``loglik_letter`` takes the likeliest letter.
    parser: of what is written. ``official``: the first of A, B, C, D, in this order, that stands anywhere before the
        first full stop, so that "Answer: B" is A; ``first``: the first character; ``strict``: as elsewhere in this
        program. The score under the other reading stands beside it.
    max_new_tokens: of a written answer. tasks: names of those to ask, None: all nine. batch_size: clips per forward
    pass. limit: that many videos, evenly spread. blind: also ask everything without frames. num_frames: sampled per
    video, None: as many as the model was trained with (published figures: 64).
    """

    form = "an annotation file has its questions"

    def __init__(
        self,
        annotations: str | None = None,
        videos: str | None = None,
        scoring: Literal["generate", "loglik_letter"] = "generate",
        parser: Literal["official", "first", "strict"] = "official",
        tasks: list[str] | None = None,
        max_new_tokens: PositiveInt = 5,
        batch_size: PositiveInt = 8,
        limit: PositiveInt | None = None,
        blind: bool = True,
        num_frames: PositiveInt | None = None,
    ):
        super().__init__(
            split="test", tasks=tasks, batch_size=batch_size, limit=limit, blind=blind, num_frames=num_frames
        )
        for name, value, known in (
            ("scoring", scoring, ("generate", "loglik_letter")), ("parser", parser, _vnbench_lines.PARSERS),
        ):  # fmt: skip
            if value not in known:
                raise UserError(f"benchmark.{name}={value}: expected one of {', '.join(known)}")
        self.annotations, self.videos = annotations, videos
        self.scoring, self.parser = scoring, parser
        self.writes, self.max_new_tokens = scoring == "generate", max_new_tokens

    # -- what is asked -------------------------------------------------------------------------------------------------

    def source(self, dataset: Any) -> VideoFolder:
        """The videos of the annotation file. UserError for what is not there, and for malformed rows of the file."""
        if not self.annotations:
            raise UserError(
                "benchmark.annotations= is missing: name VNBench-main-4try.json, published or made with "
                "`python -m hvlm.benchmark.niah`, and with benchmark.videos= the folder of its videos"
            )
        file = Path(self.annotations)
        folder = Path(self.videos) if self.videos else file.parent
        rows = [_row(i, video, folder) for i, video in enumerate(read_annotations(file), start=1)]
        return VideoFolder(folder, rows, "vnbench", "benchmark.videos")

    def missing(self, source: Any) -> Mapping[str, int]:
        """Videos that the file names and the folder does not hold."""
        return source.missing

    def check(self, dataset: Any) -> list[Question]:
        """See ``QuestionBenchmark.check``; says which videos and tries are not there, too."""
        found = super().check(dataset)
        say_missing(self.missing(self.source(dataset)), self.videos or str(Path(str(self.annotations)).parent))
        videos = read_annotations(Path(str(self.annotations)))
        if short := [video.path for video in videos if len(video.tries) < TRIES]:
            log.warning(
                "benchmark.annotations=%s: %d videos have fewer than four tries and count as wrong: %s",
                self.annotations, len(short), _listed(short),
            )  # fmt: skip
        return found

    def all_questions(self, sample: Mapping[str, Any]) -> list[Question]:
        """The question of one video, in its four orders of options."""
        depth, length = (sample.get(name) for name in ("needle_depth", "needle_length"))
        out = []
        for q in sample["questions"]:
            tries = [
                Try(
                    lettered_prompt(q["question"], one["options"]), tuple(one["options"]),
                    tuple(LETTERS[: len(one["options"])]), one["gold"],
                )
                for one in q["tries"]
            ]  # fmt: skip
            out.append(question_of(sample, q, tries)._replace(depth=depth, length=length))
        return out

    # -- how it is answered --------------------------------------------------------------------------------------------

    def read(self, question: Question, written: Mapping[str, str], variant: str) -> list[Prediction]:
        """One prediction per try, from {prompt: what the model wrote}, by the parser."""
        out = []
        for i, one in enumerate(question.tries):
            reading = _vnbench_lines.parse(written[one.prompt], one.options, self.parser)
            made = from_text(question, i, one, written[one.prompt], variant)
            out.append(made._replace(pred=reading.index, problem=reading.problem))
        return out

    def score(self, predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
        """All four tries of a video must be right; see ``hvlm.benchmark._vnbench_scores``."""
        return score_vnbench(predictions, self.parser)

    def predictions(self, path: Path, variant: str) -> list[Prediction] | None:
        """A file in one of the authors' line formats; says what of it is null, and what it lacks."""
        if not _vnbench_lines.is_published(path):
            return None
        videos = read_annotations(Path(self.annotations)) if self.annotations else []
        found = _vnbench_lines.read_published(path, variant, self.parser, _vnbench_lines.by_name(videos))
        if self.tasks is not None:
            known = sorted({p.task for p in found})
            found = [p for p in found if p.task in self.tasks]
            if unknown := sorted(set(self.tasks) - set(known)):
                raise UserError(f"benchmark.tasks: {path} has no {', '.join(unknown)}; it has {', '.join(known)}")
        null = sum(p.text is None or not p.text.strip() for p in found)
        log.info("%s: %d predictions, %d of them null (null or empty ones count as wrong)", path, len(found), null)
        if short := absent(found):
            log.warning("%s: %d videos lack tries and count as wrong: %s", path, len(short), _listed(short))
        self._say_absent(videos, found, path)
        return found

    def _say_absent(self, videos: Sequence[Video], found: Sequence[Prediction], path: Path) -> None:
        """Videos of the annotations that the file says nothing of: the rule's denominator is the file's videos."""
        names = _vnbench_lines.by_name(videos)
        about = (names.get((stem_of(p.question_id), p.task)) for p in found)
        seen = {video.path for video in about if video is not None}
        left = [v for v in videos if v.path not in seen and (self.tasks is None or v.task in self.tasks)]
        if left:
            per_task = ", ".join(f"{task} {count}" for task, count in sorted(Counter(v.task for v in left).items()))
            log.warning(
                "%s: nothing about %d of the %d annotated videos (%s; %s); they are left out of every figure, as in "
                "the official scorer", path, len(left), len(videos), per_task, _listed([v.path for v in left]),
            )  # fmt: skip


def _row(number: int, video: Video, folder: Path) -> Row:
    """A video as a row of a file of questions. The path in the release begins with a folder that the videos need not
    lie in: the file's name finds it, too."""
    tries = [{"options": list(options), "gold": gold} for _, (options, gold) in sorted(video.tries.items())]
    path = video.path if os.path.isfile(folder / video.path) else video.path.replace("\\", "/").rpartition("/")[2]
    options, gold = next(iter(video.tries.values()))
    question = {
        "id": video.task, "question": video.question, "task": video.task, "tries": tries, "lettered": True,
        "answer": options[gold],
    }  # fmt: skip
    about = {"cluster": source_of(video.stem), "needle_depth": video.depth, "needle_length": video.length}
    return Row(number, question, path, None, None, {name: value for name, value in about.items() if value is not None})


def _listed(names: Sequence[str]) -> str:
    return first_few(names, most=NAMED)
