"""Ask a benchmark's questions and write down the answers and the scores.

Two files per evaluation: ``predictions.jsonl`` (every try with what was offered and chosen; ``score_predictions`` makes
the same figures from such a file, whoever wrote it) and ``results.json`` (``hvlm.evaluation.results``).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hvlm.contracts import Benchmark
from hvlm.evaluation import results
from hvlm.evaluation.answers import AMBIGUOUS, MISSING, UNREAD
from hvlm.evaluation.ask import BLIND, BY_LIKELIHOOD, ask, ask_blind
from hvlm.evaluation.asking import Answer, Query
from hvlm.evaluation.generate import InWords
from hvlm.evaluation.journal import journal_of
from hvlm.evaluation.needle_map import PICTURE, write_needle_map
from hvlm.evaluation.open_scores import is_right
from hvlm.evaluation.predictions import read_predictions, write_predictions
from hvlm.evaluation.sampling import Sampling
from hvlm.evaluation.scores import Prediction, score
from hvlm.io.files import write_text
from hvlm.io.json_lines import write_lines
from hvlm.rebuild import Loaded
from hvlm.viz.media import contact_sheet

log = logging.getLogger(__name__)

PREDICTIONS, RESULTS, PROTOCOL = "predictions.jsonl", "results.json", "protocol.json"


def way_of(benchmark: Benchmark, seed: int = 0) -> Answer:
    """How a benchmark is answered: in the model's own words, by ``seed`` where they are drawn by chance, or by
    likelihood. UserError for settings that choose no words."""
    if not benchmark.writes:
        return BY_LIKELIHOOD
    how = benchmark.temperature, benchmark.top_p, seed, benchmark.num_beams
    return InWords(benchmark.max_new_tokens, Sampling(*how, section="benchmark"))


def evaluate(
    loaded: Loaded,
    benchmark: Benchmark,
    label: results.Label,
    out_dir: Path,
    *,
    answer: Answer | None = None,
    contact_sheets: int = 6,
) -> list[results.Record]:
    """Run ``benchmark`` and return its records, having written both files into ``out_dir``.

    Args:
        loaded: the model, left in eval mode; the dataset, how the model wants its clips, and the precision.
        label: stands in the records; those of the blind control have the variant ``blind``.
        answer: the way to answer; None: the benchmark's.
        contact_sheets: so many asked clips, first those with wrong answers, become ``out_dir/clips/<n>.png`` with their
            answers in ``clips.jsonl`` beside them.

    Questions whose evidence the sampled frames do not show are not asked; how many is logged. The blind control asks
    exactly the questions that were asked with frames. Clips that cannot be read are named in
    ``out_dir/quarantine.jsonl``; too many of them are an error. What was answered before a kill is not asked again
    (``hvlm.evaluation.journal``).

    Raises:
        UserError: nothing can be asked.
    """
    if label.variant == BLIND:
        raise ValueError(f"variant={BLIND!r} is the name of the control without frames; choose another")
    out_dir, answer = Path(out_dir), answer or way_of(benchmark, label.seed)
    started = time.monotonic()
    journal = journal_of(loaded, benchmark, answer, out_dir)
    asked = ask(loaded, benchmark, label.variant, out_dir, answer, contact_sheets, journal)
    predictions, seconds = asked.predictions, {label.variant: time.monotonic() - started}
    if benchmark.blind:
        started = time.monotonic()
        predictions = predictions + ask_blind(loaded, benchmark, asked.questions, answer, journal)
        seconds[BLIND] = time.monotonic() - started
    warn_of_problems(predictions)
    write_predictions(out_dir / PREDICTIONS, predictions)
    _write_sheets(out_dir / "clips", asked.clips)
    write_needle_map(predictions, out_dir / PICTURE)
    label = _stated(label, benchmark, out_dir, loaded)
    records = [_record(row, label, seconds[row["variant"]]) for row in benchmark.score(predictions)]
    if left_out := {str(r["left_out"]) for r in records if "left_out" in r}:
        log.info("means over tasks leave out %s, as benchmark.apart says", ", ".join(sorted(left_out)))
    for metric, count in asked.lost.items():
        records.append(label.record(metric, count, n=len(asked.questions), seconds=seconds[label.variant]))
    results.write(out_dir / RESULTS, records)
    journal.done()
    return records


def score_predictions(
    path: Path, label: results.Label, out: Path, benchmark: Benchmark | None = None
) -> list[results.Record]:
    """Score a predictions file, whoever made it, and write its results.

    Args:
        path: the file; a question that it leaves out cannot be missed.
        label: its variant names lines that name none.
        out: the file, ending in .json, or a folder that receives ``results.json``.
        benchmark: whose rules count; None: accuracy.
    """
    started = time.monotonic()
    published = None if benchmark is None else benchmark.predictions(path, label.variant)
    predictions = read_predictions(path, label.variant) if published is None else published
    warn_of_problems(predictions)
    rows = score(predictions) if benchmark is None else benchmark.score(predictions)
    out = Path(out)
    if benchmark is not None:
        label = _stated(label, benchmark, out.parent if out.suffix == ".json" else out)
    records = [_record(row, label, time.monotonic() - started) for row in rows]
    write_needle_map(predictions, out.with_suffix(".needles.png") if out.suffix == ".json" else out / PICTURE)
    results.write(out if out.suffix == ".json" else out / RESULTS, records)
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


def _stated(label: results.Label, benchmark: Benchmark, out_dir: Path, loaded: Loaded | None = None) -> results.Label:
    """The label with the benchmark's protocol in a column, where it has one; ``protocol.json`` says all of it.

    loaded: whose frames and reader the answers are from; None: somebody else's, of which nothing is known.
    """
    protocol = dict(benchmark.protocol())
    if not protocol:
        return label
    protocol |= {"num_frames": "unknown", "reader": "unknown"}
    if loaded is None and protocol.get("subtitles") == "none":
        protocol["subtitles"] = "unknown"  # not named now, which says nothing of what was shown when it was answered
    if loaded is not None:
        protocol["num_frames"] = benchmark.inputs(loaded.inputs).num_frames
        protocol["reader"] = getattr(loaded.data, "decoder", "pyav")
    try:
        protocol["hvlm"] = version("hvlm")
    except PackageNotFoundError:
        protocol["hvlm"] = "not installed"
    out_dir.mkdir(parents=True, exist_ok=True)
    write_text(out_dir / PROTOCOL, json.dumps(protocol, ensure_ascii=False, indent=1) + "\n")
    short = ("scoring", "clips", "num_frames", "reader", "parser", "subtitles", "hvlm")
    said = "; ".join(f"{name}={protocol[name]}" for name in short if name in protocol)
    return label._replace(columns={**label.columns, "protocol": said})


def _record(row: Mapping[str, Any], label: results.Label, seconds: float) -> results.Record:
    columns = {**label.columns, **({"left_out": row["left_out"]} if "left_out" in row else {})}
    return label._replace(variant=row["variant"], columns=columns).of_row(row, seconds)


def _write_sheets(folder: Path, shown: Sequence[tuple[Query, list[Prediction]]]) -> None:
    """Contact sheets of a few clips and, in clips.jsonl, what was asked about them and answered: the first wrong try of
    each question, or the first."""
    if not shown:
        return
    lines = []
    for i, (clip, predictions) in enumerate(shown):
        contact_sheet(clip.frames_TCHW, folder / f"{i}.png")
        tries: dict[str, Prediction] = {}
        for p in predictions:
            if p.question_id not in tries or (is_right(tries[p.question_id]) and not is_right(p)):
                tries[p.question_id] = p
        for p in tries.values():
            chosen = p.text if p.pred is None else p.options[p.pred]
            line = {"sheet": f"{i}.png", "key": p.key, "task": p.task, "question": p.question, "options": p.options}
            line |= {"answer": p.options[p.gold] if p.options else " / ".join(p.answers), "prediction": chosen}
            lines.append(line | {"right": is_right(p)})
    write_lines(folder / "clips.jsonl", lines)
