"""Ask a benchmark's questions and write down the answers and the scores.

Two files per evaluation: ``predictions.jsonl`` (every try with its options and scores; ``score_predictions`` makes the
same figures from such a file, whoever wrote it) and ``results.json`` (``hvlm.evaluation.results``).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hvlm.data import samples
from hvlm.data.optical_flow import motion_energy
from hvlm.data.quarantine import Quarantine, SampleError
from hvlm.data.sampling import is_shown
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.likelihood import Query, answer_likelihoods
from hvlm.evaluation.scores import Likelihood, Prediction, Question, read_predictions, score, write_predictions
from hvlm.rebuild import Loaded
from hvlm.types import InputSpec
from hvlm.viz.media import contact_sheet

log = logging.getLogger(__name__)

BLIND = "blind"
PREDICTIONS, RESULTS = "predictions.jsonl", "results.json"


class Benchmark(Protocol):
    """What a benchmark is; ``hvlm.benchmark.needles.Needles`` documents the methods."""

    split: str
    tasks: list[str] | None
    batch_size: int
    blind: bool

    def select(self, num_clips: int) -> list[int]: ...

    def questions(self, sample: Mapping[str, Any]) -> list[Question]: ...

    def predict(
        self, question: Question, likelihoods: Mapping[tuple[str, str], Likelihood], variant: str
    ) -> list[Prediction]: ...

    def score(self, predictions: Sequence[Prediction]) -> list[dict[str, Any]]: ...


class _Clip(NamedTuple):
    """A decoded clip and those of its questions that its sampled frames can answer."""

    frames_TCHW: np.ndarray
    time_T: np.ndarray
    questions: list[Question]
    uid: str
    hidden: int = 0  # questions that its sampled frames do not answer
    motion_TYX: np.ndarray | None = None


def evaluate(
    loaded: Loaded,
    benchmark: Benchmark,
    label: results.Label,
    out_dir: Path,
    *,
    max_bad_rate: float = 0.01,
    contact_sheets: int = 4,
    memory: dict[int, Any] | None = None,
) -> list[results.Record]:
    """Run ``benchmark`` over the dataset and return its records, having written both files into ``out_dir``.

    loaded: the model (``token_logprobs`` and ``next_token_logprobs`` are asked), left in eval mode; the dataset, which
        is prepared; how the model wants its clips, and the precision.
    label: stands in the records; those of the blind control have the variant ``blind``.
    max_bad_rate: share of clips that may be unreadable (named in ``out_dir/quarantine.jsonl``) before it stops.
    memory: an empty dict keeps the clips for further calls with the same dataset, benchmark and inputs.
    contact_sheets: so many asked clips become ``out_dir/clips/<n>.png`` with their answers in ``clips.jsonl`` beside
        them.

    Questions whose evidence the sampled frames do not show are not asked; how many is logged. The blind control asks
    exactly the questions that were asked with frames. Raises UserError when nothing can be asked.
    """
    variant, inputs = label.variant, loaded.inputs
    if variant == BLIND:
        raise ValueError(f"variant={BLIND!r} is the name of the control without frames; choose another")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    manifest = loaded.data.manifest()
    manifest.verify(full=False)
    split = manifest.split(benchmark.split)
    loaded.model.eval()

    def ask(clips: list[Query]) -> list[dict[tuple[str, str], Likelihood]]:
        return answer_likelihoods(loaded.model, loaded.chat, clips, inputs, loaded.precision)

    quarantine = Quarantine(max_bad_rate, out_dir / "quarantine.jsonl")
    indices = benchmark.select(len(split))

    started = time.monotonic()
    clips, predictions, shown = _Reading(split, benchmark, quarantine, inputs, memory), [], []
    with _bar() as bar:
        for chunk in bar.track(_chunks(indices, benchmark.batch_size), description=f"asking ({variant})"):
            seen = clips.read(chunk)
            asked = [Query(c.frames_TCHW, c.time_T, _answers(c.questions), c.motion_TYX, c.uid) for c in seen]
            for clip, likelihoods in zip(seen, ask(asked), strict=True):
                found = [p for q in clip.questions for p in benchmark.predict(q, likelihoods, variant)]
                predictions += found
                if len(shown) < contact_sheets:
                    shown.append((clip, found))
    if not predictions:
        raise UserError(
            f"benchmark: nothing to ask in {len(indices)} clips of split {benchmark.split!r} with "
            f"tasks={benchmark.tasks} and {inputs.num_frames} frames ({clips.hidden} questions need frames that are "
            "not sampled); widen benchmark.tasks or raise dataset.num_frames"
        )
    seconds = {variant: time.monotonic() - started}
    log.info("%d questions asked; %d need a frame that is not sampled", len(clips.asked), clips.hidden)

    if benchmark.blind:
        started = time.monotonic()
        # Without frames all clips look the same, so each distinct prompt and answer is scored once.
        (likelihoods,) = ask([Query(None, None, _answers(clips.asked))])
        predictions += [p for q in clips.asked for p in benchmark.predict(q, likelihoods, BLIND)]
        seconds[BLIND] = time.monotonic() - started

    _warn_of_missing(predictions)
    write_predictions(out_dir / PREDICTIONS, predictions)
    _write_sheets(out_dir / "clips", shown)
    rows = benchmark.score(predictions)
    records = [_record(row, label, seconds[row["variant"]]) for row in rows]
    results.write(out_dir / RESULTS, records)
    return records


def score_predictions(path: Path, label: results.Label, out_dir: Path) -> list[results.Record]:
    """Score a predictions file, whoever made it, and write ``out_dir/results.json``. The label's variant names lines
    that name none. A null prediction counts as wrong; a question that the file leaves out cannot be missed."""
    started = time.monotonic()
    rows = score(read_predictions(path, label.variant))
    records = [_record(row, label, time.monotonic() - started) for row in rows]
    results.write(Path(out_dir) / RESULTS, records)
    return records


# ------------------------------------------------------------------------------------------------------------- parts


class _Reading:
    """Reads, decodes and filters; remembers what was asked and how many questions were not answerable."""

    def __init__(
        self,
        split: Any,
        benchmark: Benchmark,
        quarantine: Quarantine,
        inputs: InputSpec,
        memory: dict[int, _Clip] | None = None,
    ):
        self.split, self.benchmark, self.quarantine, self.inputs = split, benchmark, quarantine, inputs
        self.memory = memory
        self.asked: list[Question] = []
        self.hidden = 0

    def read(self, indices: Sequence[int]) -> list[_Clip]:
        """The clips with at least one question to ask."""
        out = []
        for index in indices:
            key = self.split.keys[index]
            self.quarantine.count_read()
            try:
                clip = (self.memory or {}).get(index) or self._read(index, key)
            except SampleError as error:
                self.quarantine.add(self.split.shards[index], key, error, self.split.uid(index))
                continue
            if self.memory is not None:
                self.memory[index] = clip
            self.hidden += clip.hidden
            if clip.questions:
                self.asked += clip.questions
                out.append(clip)
        return out

    def _read(self, index: int, key: str) -> _Clip:
        members = self.split.read(index)
        sample = samples.parse(members, key, self.split.domains[index], self.split.uid(index))
        try:
            questions = self.benchmark.questions(sample)
        except (ValueError, KeyError, TypeError) as error:
            raise SampleError(key, "json", f"{type(error).__name__}: {error}") from error
        if not questions:
            return _Clip(np.empty(0), np.empty(0), [], self.split.uid(index))  # nothing to ask, so nothing to decode
        frames, times = samples.frames(members, sample, self.inputs.num_frames, self.inputs.size)
        answerable = [q for q in questions if is_shown(q.evidence, times)]
        grid = self.inputs.motion
        moving = motion_energy(frames, grid) if grid is not None and answerable else None
        return _Clip(frames, times, answerable, self.split.uid(index), len(questions) - len(answerable), moving)


def _answers(questions: Sequence[Question]) -> dict[str, list[str]]:
    """prompt -> distinct answers over all tries of all questions, in order of appearance."""
    out: dict[str, dict[str, None]] = {}
    for one in (t for q in questions for t in q.tries):
        out.setdefault(one.prompt, {}).update(dict.fromkeys(one.answers))
    return {prompt: list(answers) for prompt, answers in out.items()}


def _chunks(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("batches"))
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())


def _warn_of_missing(predictions: Sequence[Prediction]) -> None:
    missing = sum(p.pred is None for p in predictions)
    if missing:
        log.warning(
            "%d of %d scores are not finite numbers and count as wrong: the model's output has overflowed or it "
            "diverged in training",
            missing, len(predictions),
        )  # fmt: skip


def _record(row: Mapping[str, Any], label: results.Label, seconds: float) -> results.Record:
    return label._replace(variant=row["variant"]).record(
        row["metric"], row["value"], stderr=row["stderr"], n=row["n"], chance=row["chance"], seconds=seconds
    )


def _write_sheets(folder: Path, shown: Sequence[tuple[_Clip, list[Prediction]]]) -> None:
    """Contact sheets of a few clips and, in clips.jsonl, what was asked about them and answered on the first try."""
    if not shown:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "clips.jsonl", "w", encoding="utf-8") as file:
        for i, (clip, predictions) in enumerate(shown):
            contact_sheet(clip.frames_TCHW, folder / f"{i}.png")
            prompts = {q.id: q.tries[0].prompt for q in clip.questions}
            for p in (p for p in predictions if p.attempt == 0):
                prediction = None if p.pred is None else p.options[p.pred]
                line = {"sheet": f"{i}.png", "key": p.key, "task": p.task, "question": prompts[p.question_id]}
                line |= {"answer": p.options[p.gold], "prediction": prediction}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
