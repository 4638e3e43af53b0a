"""How far the lines of a table are ahead of one of them, on the questions that both were asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvlm.evaluation import paired
from hvlm.evaluation.leaderboard import Line, columns_of, named


def compared(lines: Sequence[Line], baseline: Line) -> tuple[list[paired.Difference], list[str]]:
    """Every other line minus ``baseline`` on the questions that both were asked, and why some are missing."""
    notes: list[str] = []
    read: dict[Path, dict[str, dict[paired.Id, Any]]] = {}  # each file once, however many lines are of it
    silent: list[str] = []
    answers = {id(line): _answers(line, read, silent) for line in lines}
    if silent:
        names = named(list(dict.fromkeys(silent)))
        notes.append(f"{names}: no predictions.jsonl with the answers, so no paired differences")
    way = paired.way_of(baseline.score)
    metric = baseline.score["metric"]
    if way is None:
        notes.append(f"{metric} is no mean over questions: the differences are of the share of right answers")
        way, metric = paired.RIGHT, "share of right answers"
    else:
        parts: list[str] = []
        for line in lines:
            for seed, asked in answers[id(line)].items():
                value = _value(line, seed)
                if value is not None and not paired.gives_again(asked, way, value):
                    if columns_of(line.score):
                        parts.append(line.name)
                    else:
                        notes.append(
                            f"{line.name}, seed {seed}: its predictions.jsonl gives {paired.mean(asked, way)} and its "
                            f"results.json {value} as {metric}; evaluate it again, its differences are left out"
                        )
                    answers[id(line)] = {}
                    break
        if parts:
            notes.append(f"{named(parts)}: scores of a part of the answers, whose differences are left out")
    notes = list(dict.fromkeys(notes))
    found = []
    for line in lines:
        if line is baseline or not answers[id(line)] or not answers[id(baseline)]:
            continue
        one = paired.difference((line.name, answers[id(line)]), (baseline.name, answers[id(baseline)]), way, metric)
        if one is None:
            notes.append(f"{line.name} and {baseline.name} were asked no question in common, or about other clips")
        else:
            found.append(one)
    return found, notes


def _answers(
    line: Line, read: dict[Path, dict[str, dict[paired.Id, Any]]], silent: list[str]
) -> dict[int, dict[paired.Id, Any]]:
    """{seed: its answers}; of a run without them none, and its name goes into ``silent``."""
    found: dict[int, dict[paired.Id, Any]] = {}
    for seed, run in line.runs.items():
        path = run.predictions
        if path is not None and path not in read:
            read[path] = paired.by_variant(path)
        asked = {} if path is None else read[path].get(line.variant, {})
        if not asked:
            silent.append(run.name)
            return {}
        found[seed] = asked
    return found


def _value(line: Line, seed: int) -> float | None:
    wanted = [line.score["metric"], line.variant, columns_of(line.score)]
    own = [r for r in line.runs[seed].records if [r["metric"], r["variant"], columns_of(r)] == wanted]
    return own[0]["value"] if len(own) == 1 else None
