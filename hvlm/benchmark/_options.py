"""What MVBench, Video-MME and ScienceQA share: prompts, parsers, subtitles, pictures and breakdowns of tables.

The table and the videos are the user's local copy, in the layout in which they are published (docs/benchmarks.md).
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hvlm.benchmark import _table
from hvlm.benchmark._base import PREMISE, SCORINGS, QuestionBenchmark, from_text, question_of
from hvlm.benchmark._own import say_missing
from hvlm.benchmark._parsers import PARSERS
from hvlm.benchmark._pictures import Pictures
from hvlm.benchmark._subtitles import read_subtitles, shown_at
from hvlm.config.ranges import PositiveInt
from hvlm.data.video_folder import VideoFolder
from hvlm.errors import UserError, first_few
from hvlm.evaluation.predictions import read_predictions
from hvlm.evaluation.scores import Prediction, Question, Try, score_choices
from hvlm.prompts import LETTERS, Prompt

log = logging.getLogger(__name__)


class OptionsBenchmark(QuestionBenchmark):
    """annotations: the table (.parquet, .json, .jsonl, .csv, .tsv), or a folder whose tables begin with ``split``.
    videos: the folder of its videos, None: the table's own. subtitles: a folder of <video>.srt, None: without them.
    columns: {id, video or picture, question, options, answer, task, context, start, end: the table's names}; options
        may be several columns with commas between. groups: columns by which accuracy is broken down, too.
    answer: what its column holds. clips: ``cut`` asks about start to end of a video, ``whole`` about all of it.
    prompt: of ``{question}`` and ``{options}``; option: a line of these, of ``{letter}`` and ``{text}``; context: what
        stands before the question, of ``{context}``; subtitled: before it all, of ``{subtitles}``; system: a message.
    scoring: ``generate`` reads what the model writes; ``loglik_letter`` takes the likeliest letter; ``loglik_mean``,
        ``loglik_sum`` and ``pmi`` ask without the options and take the likeliest of their texts, per token, in sum, and
        in sum less what it has after "Answer:" alone.
    parser: of what is written; ``strict`` guesses nothing, the others are published ones (docs/benchmarks.md).
    max_new_tokens: of a written answer. split, tasks, batch_size, limit, blind, num_frames, apart: as elsewhere.
    """

    form = "a published table has its questions"
    expected: tuple[str, ...] = ()  # tasks that the whole benchmark has

    def __init__(
        self,
        *,
        annotations: str | None = None,
        videos: str | None = None,
        subtitles: str | None = None,
        columns: dict[str, str] | None = None,
        groups: list[str] | None = None,
        answer: Literal["letter", "index", "text"] = "letter",
        clips: Literal["cut", "whole", "precut"] = "cut",
        prompt: str = "{question}\n{options}\nAnswer with the option's letter from the given choices directly.",
        option: str = "{letter}. {text}",
        context: str = "{context}\n",
        subtitled: str = "This video's subtitles are listed below: \n{subtitles}\n",
        system: str | None = None,
        scoring: Literal["loglik_mean", "loglik_sum", "loglik_letter", "pmi", "generate"] = "generate",
        parser: Literal["strict", "letter_priority", "first_letter", "first_word", "starts_with_letter"] = "strict",
        max_new_tokens: PositiveInt = 16,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        for name, value, known in (
            ("scoring", scoring, SCORINGS), ("parser", parser, tuple(PARSERS)),
            ("answer", answer, ("letter", "index", "text")), ("clips", clips, ("cut", "whole", "precut")),
        ):  # fmt: skip
            if value not in known:
                raise UserError(f"benchmark.{name}={value}: expected one of {', '.join(known)}")
        if unknown := sorted(set(columns or {}) - set(_table.COLUMNS)):
            raise UserError(f"benchmark.columns has {', '.join(unknown)}: expected some of {', '.join(_table.COLUMNS)}")
        if "{question}" not in prompt or "{options}" not in prompt:
            raise UserError(f"benchmark.prompt={prompt!r}: expected {{question}} and {{options}} in it")
        self.annotations, self.videos, self.subtitles = annotations, videos, subtitles
        self.columns, self.groups, self.answer, self.clips = dict(columns or {}), tuple(groups or ()), answer, clips
        self.prompt, self.option, self.context = prompt, option, context
        self.subtitled, self.system = subtitled, system
        self.scoring, self.parser = scoring, parser
        self.writes, self.max_new_tokens = scoring == "generate", max_new_tokens
        self._items: list[_table.Item] | None = None

    # -- what is asked -------------------------------------------------------------------------------------------------

    def items(self) -> list[_table.Item]:
        """All rows of the table, those that cannot be asked among them. UserError for what is no such table."""
        if self._items is None:
            if not self.annotations:
                raise UserError(
                    "benchmark.annotations= is missing: name the published table of questions, and with "
                    "benchmark.videos= the folder of its videos"
                )
            self._items = self.read_items(Path(self.annotations))
            names: dict[str, int] = {}
            for item in self._items:
                if item.row.question is not None:
                    name = item.row.question["id"]
                    if names.setdefault(name, item.row.number) != item.row.number:
                        raise UserError(
                            f"benchmark.annotations={self.annotations}: the id {name!r} of row {item.row.number} is "
                            f"that of row {names[name]}, too; say another column with benchmark.columns.id"
                        )
        return self._items

    def read_items(self, path: Path) -> list[_table.Item]:
        """The rows of the file or folder."""
        if needed := [name for name in _table.NEEDED if name not in self.columns]:
            raise UserError(
                f"benchmark.columns lacks {', '.join(needed)}: say what the table calls them, e.g. "
                "benchmark.columns={question: question, options: options, answer: answer, video: video}"
            )
        layout = _table.Layout(
            self.columns, self.groups, self.answer, self.context, self.clips == "cut", task="question"
        )
        return [item for file in _table.files_of(path, self.split) for item in _table.read_table(file, layout)]

    def source(self, dataset: Any) -> Any:
        """The videos (or pictures) of the table. UserError for what is not there, and for what is no such table."""
        asked = [item for item in self.items() if not item.refused]
        name = type(self).__module__.rpartition(".")[2]
        folder = self.folder
        if not asked:
            refused = first_few([item.refused for item in self.items()])
            raise UserError(f"benchmark.annotations={self.annotations}: no row can be asked: {refused}")
        if self.subtitles and not Path(self.subtitles).is_dir():
            raise UserError(f"benchmark.subtitles={self.subtitles}: no such folder; name the one of the .srt files")
        if "picture" in self.columns:
            return Pictures(folder, asked, name)
        return VideoFolder(folder, [item.row for item in asked], name, "benchmark.videos")

    @property
    def folder(self) -> Path:
        """Of the videos."""
        path = Path(str(self.annotations))
        return Path(self.videos) if self.videos else path if path.is_dir() else path.parent

    def missing(self, source: Any) -> Mapping[str, int]:
        """Videos that the table names and the folder does not hold, and rows that cannot be asked."""
        refused = {item.refused: 1 for item in self.items() if item.refused and not self._without_picture(item)}
        return {**source.missing, **refused}

    def _without_picture(self, item: _table.Item) -> bool:
        """ScienceQA-IMG is defined as the rows that have one; the others are no fault."""
        return "picture" in self.columns and item.refused.endswith("has no picture")

    def check(self, dataset: Any) -> list[Question]:
        """See ``QuestionBenchmark.check``; says what is not there, too."""
        found = super().check(dataset)
        say_missing(self.missing(self.source(dataset)), str(self.folder))
        return found

    def all_questions(self, sample: Mapping[str, Any]) -> list[Question]:
        """The questions about one video; its subtitles are those of the frames' seconds where the sample has them."""
        said = self._subtitles_of(sample)
        out = []
        for q in sample["questions"]:
            ((options, gold),) = ((tuple(one["options"]), one["gold"]) for one in q["tries"])
            by_text = self.scoring in ("loglik_mean", "loglik_sum", "pmi")
            if by_text and len(set(options)) < len(options):
                raise ValueError(f"question {q['id']!r} has equal options, whose texts cannot be told apart")
            words = said + (q["question"] if by_text else self._worded(q["question"], options))
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

    def _subtitles_of(self, sample: Mapping[str, Any]) -> str:
        if not self.subtitles:
            return ""
        video = Path(str(sample.get("cluster", sample["key"]))).stem
        times = sample.get("times")
        if times is not None:
            begin = sample["section"][0] if "section" in sample else 0.0
            times = [begin + float(t) for t in times]
        said = shown_at(read_subtitles(Path(self.subtitles) / f"{video}.srt"), times)
        return self.subtitled.replace("{subtitles}", said) if said else ""

    # -- how it is answered --------------------------------------------------------------------------------------------

    def read(self, question: Question, written: Mapping[str, str], variant: str) -> list[Prediction]:
        """The prediction from {prompt: what the model wrote}, by the parser."""
        one = question.tries[0]
        made = from_text(question, 0, one, written[one.prompt], variant)
        reading = PARSERS[self.parser](written[one.prompt], one.options)
        return [made._replace(pred=reading.index, problem=reading.problem)]

    def predictions(self, path: Path, variant: str) -> list[Prediction] | None:
        """A file of predictions, whose texts are read by the parser."""
        out = []
        for p in read_predictions(path, variant):
            if p.text is not None and p.options and p.scores is None:
                reading = PARSERS[self.parser](p.text, p.options)
                p = p._replace(pred=reading.index, problem=reading.problem)
            out.append(p)
        return out

    def score(self, predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
        """``score_choices``, the accuracy of each value of ``groups``, and how many of the tasks were asked."""
        predictions = list(predictions)
        rows = score_choices(predictions, self.apart)
        groups = {i.row.question["id"]: i.groups for i in self._known() if i.row.question is not None}
        for variant in dict.fromkeys(p.variant for p in predictions):
            own = [p for p in predictions if p.variant == variant]
            for column in self.groups:
                values: dict[str, list[Prediction]] = {}
                for p in own:
                    about = groups.get(p.question_id.rpartition("/")[2], {})
                    if column in about:
                        values.setdefault(about[column], []).append(p)
                for value, of in sorted(values.items()):
                    micro = next(r for r in score_choices(of) if r["metric"] == "accuracy_micro")
                    rows.append(micro | {"metric": f"accuracy/{column}={value}"})
            if self.expected:
                left = [task for task in self.expected if task not in {p.task for p in own}]
                asked = len(self.expected) - len(left)
                more = f"; not asked: {', '.join(left)}" if left else ""
                log.info("%s: %d of %d tasks%s", variant, asked, len(self.expected), more)
                rows.append(
                    {
                        "variant": variant, "metric": "tasks_asked", "value": float(asked), "stderr": None,
                        "n": len(self.expected), "videos": len({p.key for p in own}), "chance": None,
                    }
                )  # fmt: skip
        return rows

    def _known(self) -> list[_table.Item]:
        """The table, where it is given: a file of predictions is scored without it, too, without breakdowns."""
        return self.items() if self.annotations else []

    def protocol(self) -> dict[str, Any]:
        """What the figures depend on, beside the model and its frames."""
        shown = {
            name: getattr(self, name)
            for name in ("scoring", "clips", "prompt", "option", "context", "system", "max_new_tokens", "split")
        }
        shown |= {"parser": self.parser if self.writes else "none", "unreadable": "wrong, counted"}
        shown |= {"subtitles": "lines of the sampled frames" if self.subtitles else "none"}
        shown |= {"frames": "nearest in time to the middles of equal parts of the clip"}
        shown |= {"means": "accuracy_macro: of tasks, accuracy_micro: of questions"}
        if self.annotations:
            digests = [hashlib.sha256(f.read_bytes()).hexdigest() for f in self.tables() if f.is_file()]
            shown["annotations_sha256"] = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        return shown

    def tables(self) -> list[Path]:
        """The files of the questions."""
        return _table.files_of(Path(str(self.annotations)), self.split)
