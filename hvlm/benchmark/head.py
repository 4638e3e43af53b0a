"""The head's own benchmark: what it answers about the clips of a split, or of a file of one's own, and its metrics.

Nothing here knows one head from another: the head says which rows there are (``Head.view``), what it answers
(``Head.predict``), how that is scored (``Head.score``) and how somebody's file is read (``Head.read``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvlm.benchmark._base import QuestionBenchmark
from hvlm.config.ranges import NonNegativeInt, PositiveInt
from hvlm.contracts import Head
from hvlm.data.video_folder import VideoFolder
from hvlm.errors import UserError
from hvlm.evaluation.scores import Question


class HeadBenchmark(QuestionBenchmark):
    """split: of the dataset. annotations: a file of what is right, in place of it. videos: the folder of its videos,
    None: the file's own. batch_size: clips per forward pass. limit: that many clips, evenly spread. blind: also answer
    with black frames. rerank: so many of the nearest candidates that ``head=retrieve`` finds are ranked anew by
    ``head=match``, where both are among several; 0: none. num_frames: sampled per clip, None: as many as the model was
    trained with.
    """

    asks = False
    form = "what the head is trained on"

    def __init__(
        self,
        *,
        annotations: str | None = None,
        videos: str | None = None,
        batch_size: PositiveInt = 16,
        blind: bool = False,
        rerank: NonNegativeInt = 0,
        **rest: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, blind=blind, **rest)
        if self.tasks:
            raise UserError("benchmark.tasks: benchmark=head asks nothing, so it has no tasks to choose from")
        if videos and not annotations:
            raise UserError(f"benchmark.videos={videos}: needs what is right of them, benchmark.annotations=FILE")
        self.annotations, self.videos, self.rerank = annotations, videos, rerank
        self.head: Head | None = None

    def of(self, head: Head) -> HeadBenchmark:
        """The same for a head. UserError for one that is scored by questions."""
        if head.view is None or head.writes:
            raise UserError(
                f"benchmark=head scores heads that do not write; head={head.task} is scored by questions "
                "(benchmark=needles, open, choices, vnbench)"
            )
        self.head, self.view = head, head.view.scoring()
        return self

    def source(self, dataset: Any) -> Any:
        """The clips that the head is scored on. UserError for what is not there, and for a malformed file."""
        if not self.annotations:
            return super().source(dataset)
        head = self._head()
        file = Path(self.annotations)
        rows = head.read(file, "benchmark.annotations")
        folder = Path(self.videos) if self.videos else file.parent
        return VideoFolder(folder, rows, f"annotations/{file.stem}", "benchmark.videos")

    def missing(self, source: Any) -> Mapping[str, int]:
        """Videos that the file names and the folder does not hold."""
        return source.missing if isinstance(source, VideoFolder) else {}

    def all_questions(self, sample: Mapping[str, Any]) -> list[Question]:
        return []

    def check(self, dataset: Any) -> list[Question]:
        """Only that there are clips: what can be asked about each shows when it is read."""
        self.source(dataset)
        return []

    def _head(self) -> Head:
        if self.head is None:
            raise UserError("benchmark=head scores what a head answers; head=text is scored by questions")
        return self.head
