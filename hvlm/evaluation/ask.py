"""Put a benchmark's questions to the model: clip by clip with frames, and all of them without.

Each clip is decoded once and goes through the encoder once, whatever is asked about it, several clips at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.contracts import Benchmark
from hvlm.data.loader import Loader
from hvlm.errors import UserError, first_few
from hvlm.evaluation import journal as journals
from hvlm.evaluation.asking import Answer, Asked, Query, clips_of, queries
from hvlm.evaluation.encoder import counted
from hvlm.evaluation.journal import Journal, Nothing
from hvlm.evaluation.likelihood import ByLikelihood
from hvlm.evaluation.open_scores import is_right
from hvlm.evaluation.progress import Asking
from hvlm.evaluation.scores import Prediction, Question
from hvlm.rebuild import Loaded
from hvlm.text.unknown import warn_of_answers

log = logging.getLogger(__name__)

BLIND = "blind"
BY_LIKELIHOOD = ByLikelihood()
PAIRS_PER_CLIP = 16  # prompts with an answer that a clip usually has: what the blind control's batches are counted in


class Work(NamedTuple):
    """What the asking took: questions and clips that were asked about (not those that a journal knew), clips decoded,
    frames that went through the encoder, seconds."""

    questions: int
    clips: int
    decoded: int
    frames: int
    seconds: float

    @property
    def questions_per_s(self) -> float:
        return self.questions / max(self.seconds, 1e-9)


class Answered(NamedTuple):
    """The predictions about all clips, clip by clip; questions: those that were asked; clips: a few, for pictures;
    lost: what could not be asked about, counted by metric, where there is any."""

    predictions: list[Prediction]
    questions: list[Question]
    clips: list[tuple[Query, list[Prediction]]]
    lost: dict[str, int]
    work: Work


class _Clip(NamedTuple):
    """questions: that were asked about it. hidden: how many more need a frame that is not sampled."""

    predictions: list[Prediction]
    questions: Sequence[Question]
    hidden: int

    @property
    def right(self) -> bool:
        return all(map(is_right, self.predictions))


def ask(
    loaded: Loaded,
    benchmark: Benchmark,
    variant: str,
    out_dir: Path,
    answer: Answer = BY_LIKELIHOOD,
    pictured: int = 0,
    journal: Journal | None = None,
) -> Answered:
    """Put every question of the benchmark to the model; see ``hvlm.evaluation.evaluate``.

    Args:
        out_dir: bad clips are named in its ``quarantine.jsonl``.
        pictured: so many clips are given back with their frames, first those with wrong answers.
        journal: what it knows is not asked again, and what is asked it keeps; None: all is asked.
    """
    journal = Nothing() if journal is None else journal
    asking = _Asking(loaded, benchmark, variant, Path(out_dir), answer, journal)
    work = asking.run(pictured=pictured)
    return asking.gathered(work, pictured)


def ask_share(
    loaded: Loaded, benchmark: Benchmark, variant: str, out_dir: Path, answer: Answer, journal: Journal, share: int,
    of: int,
) -> None:  # fmt: skip
    """Ask about the batches of one of several processes, into its journal."""
    _Asking(loaded, benchmark, variant, Path(out_dir), answer, journal, share, of).run()
    journal.close()


class _Asking:
    """One pass over the clips of a benchmark."""

    def __init__(
        self, loaded: Loaded, benchmark: Benchmark, variant: str, out_dir: Path, answer: Answer, journal: Journal,
        share: int = 0, of: int = 1,
    ) -> None:  # fmt: skip
        loaded.model.eval()
        self.loaded, self.benchmark, self.variant = loaded, benchmark, variant
        self.answer, self.journal = answer, journal
        self.source = benchmark.source(loaded.data)
        self.order = benchmark.select(len(self.source))
        self.place = {self.source.uid(i): i for i in self.order}
        known = {i: found for uid, i in self.place.items() if (found := journal.get(variant, uid)) is not None}
        at_once = benchmark.batch_size
        others = {i for n, i in enumerate(self.order) if n // at_once % of != share}
        self.known, self.mine = known, len(self.order) - len(others)
        view = Asked(benchmark, answer.open_questions)
        quarantine = out_dir / "quarantine.jsonl"
        self.clips: Loader = clips_of(loaded, benchmark, view, quarantine=quarantine, skip=set(known) | others)
        self.others = others
        self.found: dict[int, _Clip] = {}
        self.shown: dict[int, Query] = {}

    def run(self, pictured: int = 0) -> Work:
        """Ask what the journal does not know; some clips keep their frames."""
        as_read = self.loaded._replace(inputs=self.benchmark.inputs(self.loaded.inputs))
        started, questions, done = time.monotonic(), 0, len(set(self.known) - self.others)
        before = f" ({done} known)" if done else ""
        with (
            Asking(f"asking {self.variant}{before}", self.mine, done) as bar,
            counted(self.loaded.model.vision) as seen,
        ):
            for batch in self.clips:
                about = list(queries(batch))
                hidden = {row["uid"]: row["hidden"] for row in batch.rows}
                answers = self.answer(as_read, self.benchmark, about, self.variant)
                lines = zip(about, answers, strict=True)
                self.journal.add(
                    self.variant, [journals.Answer(q.uid, tuple(map(float, q.time_T)), found) for q, found in lines]
                )
                for clip, predictions in zip(about, answers, strict=True):
                    index = self.place[clip.uid]
                    self.found[index] = _Clip(predictions, clip.questions, hidden[clip.uid])
                    self._keep(index, clip, pictured)
                    questions += len(clip.questions)
                done += len(about)
                bar.at(done, questions)
        decoded = self.clips.reader.quarantine.decoded
        return Work(questions, len(self.found), decoded, seen.frames, time.monotonic() - started)

    def _keep(self, index: int, clip: Query, pictured: int) -> None:
        """No more frames are held than will be shown: of the first wrong ones, and of right ones in the place of those
        that may not come."""
        wrong = sum(not self.found[i].right for i in self.shown)
        right = [i for i in self.shown if self.found[i].right]
        if len(right if self.found[index].right else self.shown.keys() - right) < pictured:
            self.shown[index] = clip
            wrong += not self.found[index].right
            right += [index] if self.found[index].right else []
        for i in right[max(0, pictured - wrong) :]:
            del self.shown[i]

    def gathered(self, work: Work, pictured: int) -> Answered:
        """All answers in the order of the clips, and what is to be said about them."""
        reader, notes = self.clips.reader, self.clips.reader.show.notes
        for index, kept in self.known.items():
            metas = reader.metas(index, kept.times)
            self.found[index] = _Clip(
                kept.predictions, [m["question"] for m in metas], metas[0]["hidden"] if metas else 0
            )
        clips = [(i, self.found[i]) for i in self.order if i in self.found]
        found = [p for _, clip in clips for p in clip.predictions]
        asked = [q for _, clip in clips for q in clip.questions]
        hidden = sum(clip.hidden for _, clip in clips)
        count = reader.quarantine
        notes.say(reader.show.max_tokens, self.loaded.chat.unknown_token)
        warn_of_answers(self.loaded.chat, (p.text for p in found))
        missing = self.benchmark.missing(reader.clips)
        for name, questions in missing.items():
            count.note(str(reader.clips.folder), name, f"not there; {questions} questions are about it")
        refused = self.benchmark.refused()
        for name, why in refused.items():
            count.note(str(reader.clips.folder), name, why)
        without = count.read - count.bad - count.unanswerable - len(clips)
        if not found:
            raise UserError(
                f"benchmark: nothing to ask in {count.read} clips with tasks={self.benchmark.tasks} and "
                f"{reader.show.inputs.num_frames} frames: {count.unanswerable} need frames that are not sampled (or "
                f"have only questions that are too long: {notes.left_out.count}), {without} have no question of this "
                f"benchmark, {count.bad} cannot be read; widen benchmark.tasks or raise dataset.num_frames"
            )
        unseen = f"; {hidden} more, and all those of {count.unanswerable} clips, need a frame that is not sampled"
        log.info("%d questions asked%s", len(asked), unseen if hidden or count.unanswerable else "")
        _say_work(work, len(self.known))
        if without:
            log.info("%d of %d clips have no question of this benchmark", without, count.read)
        _say_missing(missing)
        if refused:
            wrong = [f"{name} {why}" for name, why in refused.items()]
            log.warning("rows that cannot be asked: %s", first_few(wrong, "rows"))
        lost = {"questions_without_video": sum(missing.values()) + len(refused), "clips_unreadable": count.bad}
        lost["questions_too_long"] = notes.left_out.count
        shown = self._pictured(clips, pictured)
        return Answered(found, asked, shown, {metric: n for metric, n in lost.items() if n}, work)

    def _pictured(self, clips: Sequence[tuple[int, _Clip]], pictured: int) -> list[tuple[Query, list[Prediction]]]:
        wrong = [(i, clip) for i, clip in clips if not clip.right][:pictured]
        right = [(i, clip) for i, clip in clips if clip.right][:pictured]
        out = []
        for index, clip in (wrong + right)[:pictured]:
            query = self.shown.get(index)
            if query is None:  # answered before a kill
                read, motion = self.clips.reader.decoded(self.source, index)
                query = Query(read.frames, read.times, clip.questions, motion, self.source.uid(index))
            out.append((query, clip.predictions))
        return out


def ask_blind(
    loaded: Loaded,
    benchmark: Benchmark,
    questions: Sequence[Question],
    answer: Answer = BY_LIKELIHOOD,
    journal: Journal | None = None,
) -> list[Prediction]:
    """Answers to the questions without any video, in the order of the questions.

    Without frames all clips look the same, so a prompt that many questions share is asked once in each batch. journal:
    see ``ask``.
    """
    journal = Nothing() if journal is None else journal
    found = {q.id: kept.predictions for q in questions if (kept := journal.get(BLIND, q.id)) is not None}
    with Asking("asking blind", len(questions), len(found)) as bar:
        for chunk in blind_batches(questions, PAIRS_PER_CLIP * benchmark.batch_size):
            missing = [q for q in chunk if q.id not in found]
            if not missing:
                continue
            (predictions,) = answer(loaded, benchmark, [Query(None, None, missing)], BLIND)
            of: dict[str, list[Prediction]] = {q.id: [] for q in missing}
            for p in predictions:
                of[p.question_id].append(p)
            journal.add(BLIND, [journals.Answer(name, (), answers) for name, answers in of.items()])
            found |= of
            bar.at(len(found), len(found) - bar.before)
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


def _say_work(work: Work, known: int) -> None:
    before = f"; {known} videos were answered before" if known else ""
    log.info(
        f"{work.questions} questions about {work.clips} videos in {work.seconds:.1f} s, {work.questions_per_s:.3g} a "
        f"second: {work.decoded} videos decoded, {work.frames} frames encoded{before}"
    )


def _say_missing(missing: Mapping[str, Any]) -> None:
    if missing:
        log.warning(
            "%d videos are not there, and their %d questions are not asked: %s", len(missing), sum(missing.values()),
            ", ".join(list(missing)[:3]) + (", ..." if len(missing) > 3 else ""),
        )  # fmt: skip
