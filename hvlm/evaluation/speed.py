"""``task=speed``: how many questions a second are answered, and how many where each is asked alone.

Alone means what a plain loop over a benchmark's rows does: for every question the video is decoded and encoded anew,
and one question goes through the model at a time.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hvlm.contracts import Benchmark
from hvlm.data.order import SampleRef
from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.ask import Work, ask
from hvlm.evaluation.asking import Answer, Asked, clips_of, queries
from hvlm.evaluation.encoder import counted
from hvlm.rebuild import Loaded

log = logging.getLogger(__name__)

CLIPS = 16  # that are asked about where benchmark.limit says nothing


class Speed(NamedTuple):
    """together, alone: what both ways took; the same questions."""

    together: Work
    alone: Work

    @property
    def ratio(self) -> float:
        return self.together.questions_per_s / self.alone.questions_per_s

    def lines(self) -> list[str]:
        """For a reader."""
        said = [
            f"{name:<9} {w.questions} questions in {w.seconds:.2f} s, {w.questions_per_s:.3g} a second: {w.decoded} "
            f"times a video decoded, {w.frames} frames encoded"
            for name, w in (("together", self.together), ("alone", self.alone))
        ]
        return [*said, f"ratio     {self.ratio:.2f}"]

    def records(self, label: results.Label) -> list[results.Record]:
        """questions_per_s of both, their ratio, videos decoded and frames encoded."""
        out = []
        for name, work in (("together", self.together), ("alone", self.alone)):
            about = label._replace(columns={**label.columns, "asked": name})
            for metric, value in (
                ("questions_per_s", work.questions_per_s),
                ("videos_decoded", work.decoded),
                ("frames_encoded", work.frames),
            ):
                out.append(about.record(metric, value, n=work.questions, seconds=work.seconds))
        return [*out, label.record("speed_ratio", self.ratio, n=self.together.questions, seconds=self.together.seconds)]


def measure(loaded: Loaded, benchmark: Benchmark, answer: Answer) -> Speed:
    """Ask some of a benchmark's questions both ways; benchmark.limit says of how many clips. What a first pass costs
    (kernels, buffers) is paid before the clock runs."""
    uncached = {**loaded.config, "trainer": {**loaded.config["trainer"], "cache_mb": 0}}
    loaded = loaded._replace(config=uncached)
    if getattr(benchmark, "limit", None) is None:
        benchmark.limit = CLIPS  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        _alone(loaded, benchmark, answer, most=1)
        together = ask(loaded, benchmark, loaded.variant, Path(folder), answer).work
        alone = _alone(loaded, benchmark, answer)
    return Speed(together, alone)


def _alone(loaded: Loaded, benchmark: Benchmark, answer: Answer, most: int | None = None) -> Work:
    """Question by question, each with a reading of its clip of its own."""
    as_read = loaded._replace(inputs=benchmark.inputs(loaded.inputs))
    view, decoded = Asked(benchmark, answer.open_questions), 0
    places: Sequence[int] = benchmark.select(len(benchmark.source(loaded.data)))
    reader = clips_of(loaded, benchmark, view, batch_size=1).reader
    questions, started = 0, time.monotonic()
    with counted(loaded.model.vision) as seen:
        for index in places[:most]:
            number, total = 0, 1
            while number < total:
                batch = reader.__getitems__([SampleRef(0, int(index))])
                decoded += 1
                if batch is None:
                    break
                (clip,) = queries(batch)
                total = len(clip.questions)
                one = clip._replace(questions=[clip.questions[number]])
                answer(as_read, benchmark, [one], loaded.variant)
                number, questions = number + 1, questions + 1
    if not questions:
        raise UserError("benchmark: there is no clip with a question that its frames can answer; nothing to measure")
    return Work(questions, len(places[:most]), decoded, seen.frames, time.monotonic() - started)
