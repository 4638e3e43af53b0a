"""Where questions of one's own come from: the dataset's split, other shards, or a file beside a folder of videos."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hvlm.benchmark._base import QuestionBenchmark
from hvlm.data.question_file import Row, read_questions
from hvlm.data.shard_folder import index_folder, manifest_of
from hvlm.data.video_folder import VideoFolder
from hvlm.errors import UserError
from hvlm.evaluation.scores import Question

log = logging.getLogger(__name__)


def say_missing(missing: Mapping[str, int], folder: str) -> None:
    """Warns of videos that questions name and ``folder`` does not hold: {name: how many questions}."""
    if missing:
        names = ", ".join(list(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        log.warning(
            "benchmark.videos=%s: %d videos are not there (%s); their %d questions will not be asked",
            folder, len(missing), names, sum(missing.values()),
        )  # fmt: skip


class OwnQuestions(QuestionBenchmark):
    """path: a folder of shards, in place of the dataset's. questions: a file of questions in their place, about the
    videos (or stills) of the folder ``videos``, by default the file's own. choices: whether questions need options."""

    choices: ClassVar[bool]

    def __init__(
        self, *, path: str | None = None, questions: str | None = None, videos: str | None = None, **rest: Any
    ) -> None:
        super().__init__(**rest)
        if path and questions:
            raise UserError("benchmark.path and benchmark.questions both say what is asked; give one of them")
        if videos and not questions:
            raise UserError(f"benchmark.videos={videos}: needs the questions about them, benchmark.questions=FILE")
        self.path, self.file, self.videos = path, questions, videos

    def source(self, dataset: Any) -> Any:
        """The clips that are asked about. UserError for what is not there, and for malformed rows of the file."""
        if self.file:
            file = Path(self.file)
            rows = self.rows(file)
            folder = Path(self.videos) if self.videos else file.parent
            return VideoFolder(folder, rows, f"questions/{file.stem}", "benchmark.videos")
        if not self.path:
            return super().source(dataset)
        folder = Path(self.path)
        if not folder.is_dir():
            raise UserError(f"benchmark.path={folder}: no such folder; name one of *.tar")
        index_folder(folder, "general", "benchmark.path")
        return self.split_of(manifest_of(folder), f"benchmark.path={folder}")

    def rows(self, file: Path) -> list[Row]:
        """What a file of one's own asks. UserError for what is malformed in it."""
        return read_questions(file, "benchmark.questions", self.choices)

    def missing(self, source: Any) -> Mapping[str, int]:
        """Videos that the file names and the folder does not hold."""
        return source.missing if isinstance(source, VideoFolder) else {}

    def check(self, dataset: Any) -> list[Question]:
        """See ``QuestionBenchmark.check``; says how many videos are not there, too."""
        found = super().check(dataset)
        say_missing(self.missing(self.source(dataset)), self.videos or str(Path(str(self.file)).parent))
        return found
