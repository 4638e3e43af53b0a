"""Public benchmarks of multiple choice whose questions are a table: a YAML says which column holds what.

``path`` is a copy in the published layout: a local one, or, where that is asked for, the hub's. An answer that cannot
be read is wrong, and counted. docs/benchmarks.md lists the benchmarks and where their protocols differ from published
ones.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hvlm.benchmark import _subtitles
from hvlm.benchmark._base import PREMISE, SCORINGS, QuestionBenchmark, from_text, question_of
from hvlm.benchmark._breakdowns import by_value, said, tasks_asked
from hvlm.benchmark._own import say_missing
from hvlm.benchmark._parsers import PARSERS
from hvlm.benchmark._pictures import Pictures
from hvlm.benchmark._table import COLUMNS, KINDS, Item, Layout, Table, files_of, read_table
from hvlm.config.ranges import PositiveInt
from hvlm.data import hub_copy
from hvlm.data.question_file import Row
from hvlm.data.video_folder import VideoFolder
from hvlm.errors import UserError, first_few
from hvlm.evaluation.predictions import read_predictions
from hvlm.evaluation.scores import Prediction, Question, Try, score_choices
from hvlm.prompts import LETTERS, Prompt

log = logging.getLogger(__name__)

BY_TEXT = ("loglik_mean", "loglik_sum", "pmi")
CLIPS = ("cut", "whole", "precut")


class PublishedTable(QuestionBenchmark):
    """name: of the benchmark. path: of the local copy, or of its one table; ``hub``: that of the repository ``hub`` at
    ``revision`` (None: as it is when it is fetched), of which ``download`` fetches the ``questions`` or ``all``; None:
    nothing. tables: the files of questions in it, as patterns, with ``{split}``. folder: of the videos, below ``path``.
    videos: another place of theirs.
    subtitles: a folder of <video>.srt, .json or .jsonl, in the copy or elsewhere, None: without them. subtitle_lines:
        those ``shown`` with a sampled frame, ``all``, or ``between`` the frames, by LongVideoBench's rule.
    columns: {id, video or picture, question, options, answer, task, context, start, end, subtitles (their file),
        subtitles_from (the second of theirs at which the video begins), duration: the table's names}. ``a|b`` is the
        first that a row has, ``a,b`` an option each; without options they are the question's last lines. ``_part``,
        ``_file`` and ``_row`` are a row's folder, file and place.
    answer: what its column holds; ``any`` is a letter or a text. by: columns by which accuracy is broken down, too.
    clips: ``cut`` asks about start to end of a video, ``whole`` about all of it, ``precut`` of files cut beforehand.
    prompt: of ``{question}`` and ``{options}``; option: a line of these, of ``{letter}`` and ``{text}``; context: what
        stands before the question, of ``{context}``; subtitled: before it all, of ``{subtitles}``; system: a message.
    scoring: ``generate`` reads what the model writes; ``loglik_letter`` takes the likeliest letter; ``loglik_mean``,
        ``loglik_sum`` and ``pmi`` ask without the options and take the likeliest of their texts, per token, in sum, and
        in sum less what it has after "Answer:" alone.
    parser: of what is written; ``strict`` guesses nothing, the others are published ones (docs/benchmarks.md).
    max_new_tokens: of a written answer. split, tasks, batch_size, limit, blind, num_frames, apart: as elsewhere.
    """

    form = "the published tables have its questions"
    expected: tuple[str, ...] = ()  # tasks that the whole benchmark has

    def __init__(
        self,
        *,
        name: str,
        tables: list[str],
        columns: dict[str, str],
        path: str | None = None,
        folder: str = ".",
        videos: str | None = None,
        subtitles: str | None = None,
        subtitle_lines: Literal["shown", "all", "between"] = "shown",
        hub: str | None = None,
        revision: str | None = None,
        download: Literal["questions", "all"] | None = None,
        answer: Literal["any", "letter", "index", "text"] = "any",
        by: list[str] | None = None,
        clips: Literal["cut", "whole", "precut"] = "whole",
        prompt: str = "{question}\n{options}\nAnswer with the option's letter from the given choices directly.",
        option: str = "{letter}. {text}",
        context: str = "{context}\n",
        subtitled: str = "This video's subtitles are listed below: \n{subtitles}\n",
        system: str | None = None,
        scoring: Literal["loglik_mean", "loglik_sum", "loglik_letter", "pmi", "generate"] = "loglik_letter",
        parser: Literal[
            "strict", "letter_priority", "first_letter", "first_word", "starts_with_letter", "first_capital"
        ] = "strict",
        max_new_tokens: PositiveInt = 16,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        for setting, value, known in (
            ("scoring", scoring, SCORINGS), ("parser", parser, tuple(PARSERS)), ("answer", answer, KINDS),
            ("clips", clips, CLIPS), ("subtitle_lines", subtitle_lines, _subtitles.WHICH),
        ):  # fmt: skip
            if value not in known:
                raise UserError(f"benchmark.{setting}={value}: expected one of {', '.join(known)}")
        columns = dict(columns or {})
        if unknown := sorted(set(columns) - set(COLUMNS)):
            raise UserError(f"benchmark.columns has {', '.join(unknown)}: expected some of {', '.join(COLUMNS)}")
        lacking = [each for each in ("question", "answer") if each not in columns]
        lacking += [] if {"video", "picture"} & set(columns) else ["video (or picture)"]
        if lacking:
            raise UserError(
                f"benchmark.columns lacks {', '.join(lacking)}: say what the table calls them, e.g. "
                "benchmark.columns={question: question, options: options, answer: answer, video: video}"
            )
        if "{question}" not in prompt or "{options}" not in prompt:
            raise UserError(f"benchmark.prompt={prompt!r}: expected {{question}} and {{options}} in it")
        if self.split != "test" and not any("{split}" in pattern for pattern in tables):
            raise UserError(
                f"benchmark.split={self.split}: the tables of {name} are of one split; name others by benchmark.tables"
            )
        self.name, self.path, self.patterns, self.columns = name, path, tuple(tables), columns
        if download and path != hub_copy.HUB:
            raise UserError(f"benchmark.download={download}: only with benchmark.path=hub, found benchmark.path={path}")
        if path == hub_copy.HUB and not hub:
            raise UserError(f"benchmark.path=hub: say which data set, benchmark.hub=owner/name, for {name} names none")
        self.hub, self.revision, self.download = hub, revision, download
        self.below, self.videos, self.subtitles, self.subtitle_lines = folder, videos, subtitles, subtitle_lines
        self.answer, self.by, self.clips = answer, tuple(by or ()), clips
        self.prompt, self.option, self.context = prompt, option, context
        self.subtitled, self.system = subtitled, system
        self.scoring, self.parser = scoring, parser
        self.writes, self.max_new_tokens = scoring == "generate", max_new_tokens
        self._table: Table | None = None

    # -- the table -----------------------------------------------------------------------------------------------------

    @cached_property
    def root(self) -> Path:
        """The copy. UserError where nothing says it, or where it would have to be fetched and nothing asks for it."""
        if not self.path:
            here = f", or {self.hub} on the hub, benchmark.path=hub" if self.hub else ""
            raise UserError(
                "benchmark.path= is missing: name the folder of your local copy of the benchmark, with "
                f"{' or '.join(self.patterns)} in it{here}"
            )
        if self.path == hub_copy.HUB:
            assert self.hub is not None
            return hub_copy.copy_of(self.hub, self.revision, self.download, self._wanted())
        return Path(self.path)

    @property
    def folder(self) -> Path:
        """Of the videos: where they are published, else anywhere in the copy."""
        if self.videos:
            return self._place(self.videos)
        if self.root.is_file():
            return self.root.parent
        published = self.root / self.below
        return published if published.is_dir() or self.path != hub_copy.HUB else self.root

    def _wanted(self) -> list[str]:
        return [pattern.replace("{split}", self.split) for pattern in self.patterns]

    @property
    def _spoken(self) -> Path | None:
        """The folder of the subtitles."""
        return self._place(self.subtitles) if self.subtitles else None

    def _place(self, name: str) -> Path:
        """A folder of this name, or one in the copy."""
        here = Path(name)
        return here if here.is_dir() or not self.path or not (self.root / here).is_dir() else self.root / here

    def tables(self) -> list[Path]:
        """The files of the questions."""
        return files_of(self.root, self._wanted())

    @property
    def kept(self) -> tuple[str, ...]:
        """Columns that scores need."""
        return self.by

    def table(self) -> Table:
        """All rows, read once. UserError for what is no such table, and where no row can be asked."""
        if self._table is None:
            layout = Layout(self.columns, self.kept, self.answer, self.context, self.clips == "cut")
            table = read_table(self.root, self.tables(), layout)
            if not table.items:
                wrong = [f"{row} {why}" for row, why in table.refused.items()]
                why = first_few(wrong, "rows") if wrong else f"no row of {', '.join(self.patterns)} has an answer"
                raise UserError(f"benchmark.path={self.path}: no row can be asked: {why}")
            self._table = table
        return self._table

    def place(self, item: Item) -> tuple[str, float | None]:
        """(the video's name from its folder on, the rate of a folder of frames): as published, or the file's name alone
        where the videos do not lie in its folders."""
        path = item.video.replace("\\", "/")
        # os.path: a name that no file system takes is not there
        return (path if os.path.exists(self.folder / path) else path.rpartition("/")[2]), None

    # -- what is asked -------------------------------------------------------------------------------------------------

    def source(self, dataset: Any) -> Any:
        """The videos (or pictures) of the tables. UserError for what is not there, and for what is no such table."""
        table = self.table()
        if "picture" in self.columns:
            return Pictures(self.root, table.items, self.name)
        if self.path == hub_copy.HUB and not self.videos and hub_copy.marked(self.root)["download"] != hub_copy.ALL:
            raise UserError(
                f"benchmark.path=hub: of {self.hub} only the questions are here; name the videos with benchmark.videos="
                "FOLDER, or fetch them with benchmark.download=all"
            )
        rows = []
        for item in table.items:
            video, fps = self.place(item)
            rows.append(Row(item.number, item.question, video, item.section, fps))
        return VideoFolder(self.folder, rows, self.name, "benchmark.videos")

    def missing(self, source: Any) -> Mapping[str, int]:
        """Videos that the tables name and the folder does not hold."""
        return source.missing

    def refused(self) -> Mapping[str, str]:
        """Rows that cannot be asked."""
        return self.table().refused

    def check(self, dataset: Any) -> list[Question]:
        """See ``QuestionBenchmark.check``; says what is not there and what is not asked, too."""
        table = self.table()
        if self._spoken is not None:
            videos = ((item.video, item.subtitles) for item in table.items)
            if lacking := _subtitles.check(self._spoken, videos, f"benchmark.subtitles={self.subtitles}"):
                log.warning("benchmark.subtitles=%s: %s", self.subtitles, lacking)
        found = super().check(dataset)
        say_missing(self.missing(self.source(dataset)), str(self.folder))
        for count, why in (
            (table.unanswered, "no public answer"), (table.unclear, "a right option that stands there twice"),
        ):  # fmt: skip
            if count:
                log.warning("benchmark.path=%s: %d questions have %s and are not asked", self.path, count, why)
        if wrong := [f"{row} {why}" for row, why in table.refused.items()]:
            log.warning("benchmark.path=%s: rows that cannot be asked: %s", self.path, first_few(wrong, "rows"))
        return found

    def all_questions(self, sample: Mapping[str, Any]) -> list[Question]:
        """The questions about one video; its subtitles are those of the frames' seconds where the sample has them."""
        out: list[Question] = []
        lines: dict[_subtitles.Where, str] = {}
        for q in sample["questions"]:
            ((options, gold),) = ((tuple(one["options"]), one["gold"]) for one in q["tries"])
            by_text = self.scoring in BY_TEXT
            where = self.table().subtitles.get(q["id"], _subtitles.ALONE) if self.subtitles else None
            if where is not None and where not in lines:
                lines[where] = self._subtitles_of(sample, where)
            before = "" if where is None else lines[where]
            words = before + (q["question"] if by_text else self._worded(q["question"], options))
            prompt = Prompt(words, system=self.system) if self.system else words
            answers = options if by_text else tuple(LETTERS[: len(options)])
            tries = [Try(prompt, options, answers, gold)]
            tries += [Try(PREMISE, options, answers, gold)] if self.scoring == "pmi" else []
            out.append(question_of(sample, q, tries))
        return out

    def _worded(self, question: str, options: Sequence[str]) -> str:
        lines = [self.option.replace("{letter}", LETTERS[i]).replace("{text}", text) for i, text in enumerate(options)]
        parts = {"{question}": question, "{options}": "\n".join(lines)}
        return re.sub(r"\{question\}|\{options\}", lambda found: parts[found[0]], self.prompt)

    def _subtitles_of(self, sample: Mapping[str, Any], where: _subtitles.Where) -> str:
        folder = self._spoken
        assert folder is not None
        times = sample.get("times")
        if times is not None:
            begin = sample["section"][0] if "section" in sample else 0.0
            times = [begin + float(t) for t in times]
        path = _subtitles.find(folder, str(sample.get("cluster", sample["key"])), where)
        found = _subtitles.said(_subtitles.read_subtitles(path, where), self.subtitle_lines, times)
        return self.subtitled.replace("{subtitles}", found) if path is not None and found else ""

    # -- how it is answered --------------------------------------------------------------------------------------------

    def predict(
        self, question: Question, likelihoods: Mapping[tuple[str, str], Any], variant: str
    ) -> list[Prediction]:  # fmt: skip
        """See ``QuestionBenchmark.predict``."""
        return self._with_about(super().predict(question, likelihoods, variant))

    def read(self, question: Question, written: Mapping[str, str], variant: str) -> list[Prediction]:
        """The prediction from {prompt: what the model wrote}, by the parser."""
        one = question.tries[0]
        made = from_text(question, 0, one, written[one.prompt], variant)
        return self._with_about([self._parsed(made, written[one.prompt])])

    def predictions(self, path: Path, variant: str) -> list[Prediction] | None:
        """A file of predictions, whose texts are read by the parser."""
        found = read_predictions(path, variant)
        return [self._parsed(p, p.text) if p.text is not None and p.options and p.scores is None else p for p in found]

    def _parsed(self, made: Prediction, text: str) -> Prediction:
        reading = PARSERS[self.parser](text, made.options)
        return made._replace(pred=reading.index, problem=reading.problem)

    def _with_about(self, predictions: Iterable[Prediction]) -> list[Prediction]:
        """Predictions with what their rows say of them, where the table is given: a file of them is then enough for
        all scores."""
        about = self.table().about if self.kept and self.path else {}
        return [
            p if p.about else p._replace(about=tuple(about.get(p.question_id.rpartition("/")[2], {}).items()))
            for p in predictions
        ]

    # -- what it is worth ----------------------------------------------------------------------------------------------

    def score(self, predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
        """``accuracy_macro`` (over tasks), ``accuracy_micro``, ``accuracy/<task>``, for each column of ``by``
        ``accuracy/<column>=<value>``, and how many of the tasks were asked."""
        predictions = self._with_about(predictions)
        rows = score_choices(predictions, self.apart)
        for variant in dict.fromkeys(p.variant for p in predictions):
            own = [p for p in predictions if p.variant == variant]
            for column in self.by:
                rows += by_value(column, own)
            if self.expected:
                rows.append(tasks_asked(self.expected, variant, own))
        if lacking := [column for column in self.by if not any(said(p, column) for p in predictions)]:
            log.warning(
                "no accuracy by %s: the predictions do not say it; name the benchmark's copy with benchmark.path=",
                ", ".join(lacking),
            )
        return rows

    def protocol(self) -> dict[str, Any]:
        """What a score depends on beside the model and its frames, for ``protocol.json``."""
        names = ("scoring", "clips", "prompt", "option", "context", "system", "max_new_tokens", "split")
        shown: dict[str, Any] = {"benchmark": self.name, "tasks": self.tasks or "all"}
        shown |= {name: getattr(self, name) for name in names}
        shown |= {"parser": self.parser if self.writes else "none", "unreadable": "wrong, counted"}
        lines = {"shown": "lines of the sampled frames", "all": "all lines", "between": "lines between marks of frames"}
        shown |= {"subtitles": lines[self.subtitle_lines] if self.subtitles else "none"}
        shown |= {"frames": "nearest in time to the middles of equal parts of the clip"}
        shown |= {"means": "accuracy_macro: of tasks, accuracy_micro: of questions"}
        if self.path == hub_copy.HUB:
            shown |= {"hub": f"{self.hub}@{hub_copy.marked(self.root)['commit']}"}
        if self.path:
            table = self.table()
            digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in self.tables()]
            shown |= {
                "tables_sha256": hashlib.sha256("".join(digests).encode()).hexdigest()[:16],
                "questions": len(table.items), "rows_refused": len(table.refused),
                "without_public_answer": table.unanswered, "right_option_twice": table.unclear,
            }  # fmt: skip
        return shown
