"""Ask a benchmark's questions and write down the answers and the scores.

Two files per evaluation: ``predictions.jsonl`` (every try with what was offered and chosen; ``score_predictions`` makes
the same figures from such a file, whoever wrote it) and ``results.json`` (``hvlm.evaluation.results``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hvlm.contracts import Benchmark
from hvlm.data import samples
from hvlm.data.optical_flow import motion_energy
from hvlm.data.quarantine import Quarantine, SampleError
from hvlm.data.sampling import is_shown
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.answers import AMBIGUOUS, MISSING, UNREAD
from hvlm.evaluation.asking import Answer, Query
from hvlm.evaluation.likelihood import ByLikelihood
from hvlm.evaluation.predictions import read_predictions, write_predictions
from hvlm.evaluation.scores import Prediction, Question, score
from hvlm.io.json_lines import write_lines
from hvlm.rebuild import Loaded
from hvlm.types import InputSpec
from hvlm.viz.media import contact_sheet

log = logging.getLogger(__name__)

BLIND = "blind"
PREDICTIONS, RESULTS = "predictions.jsonl", "results.json"
BY_LIKELIHOOD = ByLikelihood()
PAIRS_PER_CLIP = 16  # prompts with an answer that a clip usually has: what the blind control's batches are counted in


class Asked(NamedTuple):
    """The predictions about all clips, clip by clip; questions: those that were asked; clips: a few, for pictures."""

    predictions: list[Prediction]
    questions: list[Question]
    clips: list[tuple[Query, list[Prediction]]]


def evaluate(
    loaded: Loaded,
    benchmark: Benchmark,
    label: results.Label,
    out_dir: Path,
    *,
    answer: Answer = BY_LIKELIHOOD,
    max_bad_rate: float = 0.01,
    contact_sheets: int = 4,
    memory: dict[int, Any] | None = None,
) -> list[results.Record]:
    """Run ``benchmark`` and return its records, having written both files into ``out_dir``.

    Args:
        loaded: the model, left in eval mode; the dataset, how the model wants its clips, and the precision.
        label: stands in the records; those of the blind control have the variant ``blind``.
        answer: the way to answer.
        max_bad_rate: share of clips that may be unreadable (named in ``out_dir/quarantine.jsonl``) before it stops.
        contact_sheets: so many asked clips become ``out_dir/clips/<n>.png`` with their answers in ``clips.jsonl``
            beside them.
        memory: an empty dict keeps the clips for further calls with the same benchmark and inputs.

    Questions whose evidence the sampled frames do not show are not asked; how many is logged. The blind control asks
    exactly the questions that were asked with frames.

    Raises:
        UserError: nothing can be asked.
    """
    if label.variant == BLIND:
        raise ValueError(f"variant={BLIND!r} is the name of the control without frames; choose another")
    out_dir = Path(out_dir)
    started = time.monotonic()
    asked = ask(loaded, benchmark, label.variant, out_dir, answer, max_bad_rate, contact_sheets, memory)
    predictions, seconds = asked.predictions, {label.variant: time.monotonic() - started}
    if benchmark.blind:
        started = time.monotonic()
        predictions = predictions + ask_blind(loaded, benchmark, asked.questions, answer)
        seconds[BLIND] = time.monotonic() - started
    warn_of_problems(predictions)
    write_predictions(out_dir / PREDICTIONS, predictions)
    _write_sheets(out_dir / "clips", asked.clips)
    records = [_record(row, label, seconds[row["variant"]]) for row in benchmark.score(predictions)]
    results.write(out_dir / RESULTS, records)
    return records


def ask(
    loaded: Loaded,
    benchmark: Benchmark,
    variant: str,
    out_dir: Path,
    answer: Answer = BY_LIKELIHOOD,
    max_bad_rate: float = 0.01,
    pictured: int = 0,
    memory: dict[int, Any] | None = None,
) -> Asked:
    """Put every question of the benchmark to the model; see ``evaluate``. Bad clips are named in ``out_dir``."""
    loaded = loaded._replace(inputs=benchmark.inputs(loaded.inputs))
    loaded.model.eval()
    source = benchmark.source(loaded.data)
    indices = benchmark.select(len(source))
    quarantine = Quarantine(max_bad_rate, Path(out_dir) / "quarantine.jsonl")
    clips, found, shown = _Reading(source, benchmark, answer, quarantine, loaded.inputs, memory), [], []
    with _bar() as bar:
        for chunk in bar.track(_chunks(indices, benchmark.batch_size), description=f"asking ({variant})"):
            seen = clips.read(chunk)
            for clip, predictions in zip(seen, answer(loaded, benchmark, seen, variant), strict=True):
                found += predictions
                if len(shown) < pictured:
                    shown.append((clip, predictions))
    if not found:
        raise UserError(
            f"benchmark: nothing to ask in {len(indices)} clips of split {benchmark.split!r} with "
            f"tasks={benchmark.tasks} and {loaded.inputs.num_frames} frames ({clips.hidden} questions need frames that "
            f"are not sampled, {clips.without} clips have no question of this benchmark); widen benchmark.tasks or "
            "raise dataset.num_frames"
        )
    log.info("%d questions asked; %d need a frame that is not sampled", len(clips.asked), clips.hidden)
    if clips.without:
        log.info("%d of %d clips have no question of this benchmark", clips.without, len(indices))
    return Asked(found, clips.asked, shown)


def ask_blind(
    loaded: Loaded, benchmark: Benchmark, questions: Sequence[Question], answer: Answer = BY_LIKELIHOOD
) -> list[Prediction]:
    """Answers to the questions without any video, in the order of the questions.

    Without frames all clips look the same, so a prompt that many questions share is asked once in each batch.
    """
    found: dict[str, list[Prediction]] = {}
    for chunk in blind_batches(questions, PAIRS_PER_CLIP * benchmark.batch_size):
        (predictions,) = answer(loaded, benchmark, [Query(None, None, chunk)], BLIND)
        for p in predictions:
            found.setdefault(p.question_id, []).append(p)
    return [p for question in questions for p in found[question.id]]


def blind_batches(questions: Sequence[Question], pairs: int) -> Iterator[list[Question]]:
    """The questions in batches of at most ``pairs`` distinct prompts with an answer; equal prompts come together."""
    first: dict[str, int] = {}
    for question in questions:
        first.setdefault(question.tries[0].prompt, len(first))
    batch: list[Question] = []
    seen: set[tuple[str, str]] = set()
    for question in sorted(questions, key=lambda q: first[q.tries[0].prompt]):
        own = {(one.prompt, answer) for one in question.tries for answer in one.answers}
        if batch and not own <= seen and len(seen | own) > pairs:
            yield batch
            batch, seen = [], set()
        batch.append(question)
        seen |= own
    if batch:
        yield batch


def score_predictions(
    path: Path, label: results.Label, out_dir: Path, benchmark: Benchmark | None = None
) -> list[results.Record]:
    """Score a predictions file, whoever made it, and write ``out_dir/results.json``.

    Args:
        path: the file; a question that it leaves out cannot be missed.
        label: its variant names lines that name none.
        benchmark: whose rules count; None: accuracy.
    """
    started = time.monotonic()
    predictions = read_predictions(path, label.variant)
    warn_of_problems(predictions)
    rows = score(predictions) if benchmark is None else benchmark.score(predictions)
    records = [_record(row, label, time.monotonic() - started) for row in rows]
    results.write(Path(out_dir) / RESULTS, records)
    return records


def warn_of_problems(predictions: Iterable[Prediction]) -> None:
    """One line for each kind of answer that counts as wrong without having been a choice, with an example."""
    predictions = list(predictions)
    for problem, said in (
        (MISSING, "have no answer (null, empty, or scores that are not finite numbers: the model diverged)"),
        (UNREAD, "are none of the options"),
        (AMBIGUOUS, "could mean two options"),
    ):
        if found := [p for p in predictions if p.problem == problem]:
            texts = list(dict.fromkeys(p.text[:60] for p in found if p.text and p.text.strip()))[:3]
            examples = f", e.g. {', '.join(map(repr, texts))} (question {found[0].question_id})" if texts else ""
            log.warning("%d of %d answers %s and count as wrong%s", len(found), len(predictions), said, examples)


# ------------------------------------------------------------------------------------------------------------- parts


class _Reading:
    """Reads, decodes and filters; remembers what was asked and how many questions were not answerable."""

    def __init__(
        self,
        split: Any,
        benchmark: Benchmark,
        answer: Answer,
        quarantine: Quarantine,
        inputs: InputSpec,
        memory: dict[int, Any] | None = None,
    ):
        self.split, self.benchmark, self.quarantine, self.inputs = split, benchmark, quarantine, inputs
        self.open_questions, self.memory = answer.open_questions, memory
        self.asked: list[Question] = []
        self.hidden = self.without = 0

    def read(self, indices: Sequence[int]) -> list[Query]:
        """The clips with at least one question to ask."""
        out = []
        for index in indices:
            key = self.split.keys[index]
            self.quarantine.count_read()
            try:
                clip, questions = (self.memory or {}).get(index) or self._read(index, key)
            except SampleError as error:
                self.quarantine.add(self.split.shards[index], key, error, self.split.uid(index))
                continue
            if self.memory is not None:
                self.memory[index] = clip, questions
            self.hidden += questions - len(clip.questions)
            self.without += not questions
            if clip.questions:
                self.asked += clip.questions
                out.append(clip)
        return out

    def _read(self, index: int, key: str) -> tuple[Query, int]:
        """The clip with what its frames can answer, and how many questions there are."""
        members = self.split.read(index)
        sample = samples.parse(members, key, self.split.domains[index], self.split.uid(index))
        try:
            questions = self.benchmark.questions(sample, self.open_questions)
        except (ValueError, LookupError, TypeError) as error:
            raise SampleError(key, "json", f"{type(error).__name__}: {error}") from error
        if not questions:
            return Query(
                np.empty(0), np.empty(0), [], uid=self.split.uid(index)
            ), 0  # nothing to ask, so nothing to decode
        frames, times = samples.frames(members, sample, self.inputs.num_frames, self.inputs.size)
        answerable = [q for q in questions if is_shown(q.evidence, times)]
        grid = self.inputs.motion
        moving = motion_energy(frames, grid) if grid is not None and answerable else None
        return Query(frames, times, answerable, moving, self.split.uid(index)), len(questions)


def _chunks(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("batches"))
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())


def _record(row: Mapping[str, Any], label: results.Label, seconds: float) -> results.Record:
    columns = {**label.columns, **({"left_out": row["left_out"]} if "left_out" in row else {})}
    return label._replace(variant=row["variant"], columns=columns).record(
        row["metric"], row["value"], stderr=row["stderr"], n=row["n"], chance=row["chance"], seconds=seconds
    )


def _write_sheets(folder: Path, shown: Sequence[tuple[Query, list[Prediction]]]) -> None:
    """Contact sheets of a few clips and, in clips.jsonl, what was asked about them and answered on the first try."""
    if not shown:
        return
    lines = []
    for i, (clip, predictions) in enumerate(shown):
        contact_sheet(clip.frames_TCHW, folder / f"{i}.png")
        prompts = {q.id: q.tries[0].prompt for q in clip.questions}
        for p in (p for p in predictions if p.attempt == 0):
            chosen = p.text if p.pred is None else p.options[p.pred]
            line = {"sheet": f"{i}.png", "key": p.key, "task": p.task, "question": prompts[p.question_id]}
            lines.append(line | {"answer": p.options[p.gold] if p.options else p.answer, "prediction": chosen})
    write_lines(folder / "clips.jsonl", lines)
