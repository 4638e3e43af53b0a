"""Public benchmarks of multiple choice whose questions are a table: a YAML says which column holds what.

``path`` is a local copy in the published layout; nothing is downloaded. An answer that cannot be read is wrong, and
counted. docs/benchmarks.md lists the benchmarks and where their protocols differ from published ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from hvlm.benchmark._base import QuestionBenchmark, question_of
from hvlm.benchmark._own import say_missing
from hvlm.benchmark._tables import PART, cell, options_of, place_of, rows_of
from hvlm.config.ranges import PositiveInt
from hvlm.data.question_file import Row
from hvlm.data.video_folder import VideoFolder
from hvlm.errors import UserError, first_few
from hvlm.evaluation.scores import Prediction, Question, Try, score_choices
from hvlm.prompts import LETTERS

log = logging.getLogger(__name__)

MARKS = {"A.": "{}. {}", "(A)": "({}) {}"}
YES_NO = ["yes", "no"]


class PublishedTable(QuestionBenchmark):
    """path: of the local copy. tables: the files of questions in it, as patterns. videos: its folder of videos.
    question, answer, video, task, start, end: the columns' names (``a|b``: the first that a row has). options: columns
    with an option each, or one with all; without one, the question's last lines are the options. absent: an option
    that means that there is none. counts: the answer is a place from 0, not a letter or a text. by: columns whose
    values have an accuracy of their own.
    marks: before an option in the prompt, ``A.`` or ``(A)``. before, after: text around the question with its options.
    scoring: ``generate`` reads what the model writes (strictly: what cannot be read is wrong), ``loglik_letter`` takes
    the likeliest letter, ``loglik_mean`` and ``loglik_sum`` the likeliest option of the bare question.
    max_new_tokens: of a written answer. tasks: names of those to ask, None: all. batch_size: clips per forward pass.
    limit: that many clips, evenly spread. blind: also ask everything without frames. num_frames: sampled per clip,
    None: as many as the model was trained with. apart: tasks that the means leave out.
    """

    form = "the published tables have its questions"

    def __init__(
        self,
        *,
        path: str | None = None,
        tables: list[str],
        videos: str = ".",
        question: str = "question",
        options: list[str],
        answer: str = "answer",
        video: str = "video",
        task: str | None = None,
        start: str | None = None,
        end: str | None = None,
        by: list[str],
        absent: str | None = None,
        counts: bool = False,
        marks: Literal["A.", "(A)"] = "A.",
        before: str = "",
        after: str = "",
        scoring: Literal["generate", "loglik_letter", "loglik_mean", "loglik_sum"] = "loglik_letter",
        max_new_tokens: PositiveInt = 16,
        tasks: list[str] | None = None,
        batch_size: PositiveInt = 8,
        limit: PositiveInt | None = None,
        blind: bool = True,
        num_frames: PositiveInt | None = None,
        apart: list[str],
    ) -> None:
        super().__init__(
            split="test", tasks=tasks, batch_size=batch_size, limit=limit, blind=blind, num_frames=num_frames,
            apart=apart,
        )  # fmt: skip
        for name, value, known in (
            ("scoring", scoring, ("generate", "loglik_letter", "loglik_mean", "loglik_sum")),
            ("marks", marks, ("A.", "(A)")),
        ):
            if value not in known:
                raise UserError(f"benchmark.{name}={value}: expected one of {', '.join(known)}")
        self.path, self.tables, self.videos = path, tuple(tables), videos
        self.columns = {"question": question, "answer": answer, "video": video, "task": task}
        self.span, self.options, self.by = (start, end), tuple(options), tuple(by)
        self.absent, self.counts, self.marks, self.before, self.after = absent, counts, marks, before, after
        self.scoring, self.writes, self.max_new_tokens = scoring, scoring == "generate", max_new_tokens
        self.about: dict[str, dict[str, Any]] = {}  # question -> what its row says beside it
        self.unanswered = self.unclear = 0  # rows without a public answer, and with two equal options

    # -- what is asked -------------------------------------------------------------------------------------------------

    def source(self, dataset: Any) -> VideoFolder:
        """The videos of the tables. UserError for what is not there, and for rows that cannot be asked."""
        return VideoFolder(self.folder, self._rows(), type(self).__name__.lower(), "benchmark.videos")

    @property
    def folder(self) -> Path:
        """Of the videos."""
        if not self.path:
            raise UserError(
                "benchmark.path= is missing: name the folder of your local copy of the benchmark, with "
                f"{' or '.join(self.tables)} in it"
            )
        return Path(self.path) / self.videos

    def missing(self, source: Any) -> Mapping[str, int]:
        """Videos that the tables name and the folder does not hold."""
        return source.missing

    def check(self, dataset: Any) -> list[Question]:
        """See ``QuestionBenchmark.check``; says which videos are not there, and what has no public answer, too."""
        found = super().check(dataset)
        say_missing(self.missing(self.source(dataset)), str(self.folder))
        for count, why in ((self.unanswered, "no public answer"), (self.unclear, "two equal options")):
            if count:
                log.warning(f"benchmark.path={self.path}: {count} questions have {why} and are not asked")
        return found

    def _rows(self) -> list[Row]:
        folder, rows, wrong = self.folder, [], []
        self.about, self.unanswered, self.unclear = {}, 0, 0
        for number, (file, line, value) in enumerate(rows_of(folder_of(self.path), self.tables), start=1):
            if cell(value, self.columns["answer"]) is None:
                self.unanswered += 1
                continue
            try:
                row = self._row(number, value, folder)
            except (ValueError, LookupError, TypeError) as error:
                wrong.append(f"{file} row {line} has {error}")
                continue
            assert row.question is not None, "rows of questions"
            if len(set(row.question["options"])) < len(row.question["options"]):
                self.unclear += 1
                continue
            rows.append(row)
            self.about[str(number)] = {name: str(cell(value, name)) for name in self.kept_columns}
        if wrong:
            raise UserError(f"benchmark.path={self.path}: {first_few(wrong, 'rows')}")
        if not rows:
            raise UserError(f"benchmark.path={self.path}: no row of {', '.join(self.tables)} has an answer")
        return rows

    @property
    def kept_columns(self) -> tuple[str, ...]:
        """Of a row, for scores."""
        return self.by

    def _row(self, number: int, value: Mapping[str, Any], folder: Path) -> Row:
        asked, named = cell(value, self.columns["question"]), cell(value, self.columns["video"])
        if asked is None or named is None:
            lacks = self.columns["question" if asked is None else "video"]
            raise LookupError(f"no {lacks}; its columns are {', '.join(k for k in value if k != PART)}")
        asked, options = options_of(value, self.options, self.absent, str(asked).strip())
        answer = cell(value, self.columns["answer"])
        if not options and str(answer).strip().lower().rstrip(".") in YES_NO:
            options, answer = YES_NO, str(answer).strip().lower().rstrip(".")
        if not 2 <= len(options) <= len(LETTERS):
            raise ValueError(f"{len(options)} options, expected 2 to {len(LETTERS)}")
        gold = place_of(answer, options, self.counts)
        task = cell(value, self.columns["task"]) if self.columns["task"] else None
        question = {
            "id": str(number), "question": asked, "options": options, "gold": gold, "lettered": True,
            "task": "question" if task is None else str(task if not isinstance(task, list) else task[0]),
        }  # fmt: skip
        start, end = (cell(value, name) if name else None for name in self.span)
        section = None if start is None and end is None else (float(start or 0), 1e9 if end is None else float(end))
        if section is not None and section[1] <= section[0]:
            raise ValueError(f"its end {section[1]:g} s before its start {section[0]:g} s")
        return Row(number, question, _found(str(named), folder), section, None)

    def all_questions(self, sample: Mapping[str, Any]) -> list[Question]:
        """The questions of one video."""
        return [question_of(sample, q, [self._try(q, one) for one in q["tries"]]) for q in sample["questions"]]

    def _try(self, q: Mapping[str, Any], one: Mapping[str, Any]) -> Try:
        options = tuple(one["options"])
        if self.scoring in ("loglik_mean", "loglik_sum"):
            return Try(q["question"], options, options, one["gold"])
        letters = tuple(LETTERS[: len(options)])
        lines = [MARKS[self.marks].format(*pair) for pair in zip(letters, options, strict=True)]
        return Try(self.before + "\n".join([q["question"], *lines]) + self.after, options, letters, one["gold"])

    # -- what it is worth ----------------------------------------------------------------------------------------------

    def score(self, predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
        """``accuracy_macro`` (over tasks), ``accuracy_micro``, ``accuracy/<task>``, and for each column of ``by``
        ``accuracy/<column>=<value>``."""
        predictions = list(predictions)
        rows = score_choices(predictions, self.apart)
        for column in self.by:
            values = [p._replace(task=f"{column}={self.said(p, column)}") for p in predictions if self.said(p, column)]
            rows += [r for r in score_choices(values) if r["metric"].startswith("accuracy/")]
        return rows

    def said(self, prediction: Prediction, column: str) -> str | None:
        """What the row of a question says in a column."""
        if not self.about and self.path:
            self._rows()
        return self.about.get(prediction.question_id.rpartition("/")[2], {}).get(column)

    def protocol(self) -> dict[str, Any]:
        """What a score depends on beside the model, for ``protocol.json``."""
        return {
            "benchmark": type(self).__name__, "path": self.path, "tables": list(self.tables),
            "clips": "part of the file from start to end" if any(self.span) else "whole files",
            "num_frames": self.num_frames or "as the model was trained",
            "frames": "nearest in time to the middles of so many equal parts of the clip",
            "prompt": self.before + "{question}\n" + MARKS[self.marks].format("A", "{option}") + " ..." + self.after,
            "scoring": self.scoring, "parser": "strict" if self.writes else "none: the likeliest",
            "unreadable": "wrong, and counted (answers_unread, answers_ambiguous, answers_missing)",
            "means": "accuracy_macro over tasks, accuracy_micro over questions", "tasks": self.tasks or "all",
            "without_public_answer": self.unanswered, "with_equal_options": self.unclear, "questions": len(self.about),
        }  # fmt: skip


def folder_of(path: str | None) -> Path:
    return Path(str(path))


def _found(name: str, folder: Path) -> str:
    """The path as published, or the file's name where the videos do not lie in its folders."""
    path = name.replace("\\", "/")
    return path if (folder / path).exists() else path.rpartition("/")[2]
