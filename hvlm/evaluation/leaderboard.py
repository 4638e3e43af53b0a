"""Runs side by side: what each is worth, what it costs, and in which settings they differ.

Runs that differ in their seed alone are one line. Costs come from the same results (``hvlm.evaluation.cost``).
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from hvlm.errors import UserError
from hvlm.evaluation import results
from hvlm.evaluation.report_data import BLIND, is_share
from hvlm.evaluation.results import Record
from hvlm.evaluation.run_settings import differences_in_settings
from hvlm.evaluation.runs import Run
from hvlm.viz.scatter import front, short

BEFORE = "before_dpo"  # the variant that a stage of preferences evaluates beside its own


class CostOf(NamedTuple):
    """A column: its metric in results.json, its title, and whether less of it is better."""

    metric: str
    title: str
    less: bool = True

    def said(self, value: float) -> str:
        return f"{value:.3g}" if self.metric in ("latency_ms", "decode_tokens_per_s", TOKENS) else short(value)


TOKENS = "tokens_per_frame"
COSTS = (
    CostOf(TOKENS, "tokens per frame"),
    CostOf("latency_ms", "prefill ms"),
    CostOf("decode_tokens_per_s", "decode tokens/s", less=False),
    CostOf("kv_bytes", "KV bytes"),
    CostOf("parameters", "parameters"),
    CostOf("prefill_flops", "prefill FLOPs"),
)


class Line(NamedTuple):
    """A line of the table.

    name: of the run, or of what runs of several seeds share. settings: ``key=value`` in which it differs from the
    others. runs: by seed. variant: of their records. score: over the seeds, with the blind control's beside it. costs:
    {metric: mean over the seeds}. on_front: metrics of the costs for which no other line is at least as good and as
    cheap, and better in one.
    """

    name: str
    settings: tuple[str, ...]
    runs: dict[int, Run]
    variant: str
    score: Record
    blind: Record | None
    costs: dict[str, float]
    on_front: frozenset[str] = frozenset()


def lines_of(runs: Sequence[Run], metric: str | None = None) -> list[Line]:
    """The table, best first.

    Args:
        runs: that were evaluated.
        metric: what decides; None: the first figure of the first run, which all must have.

    Raises:
        UserError: a run without this figure.
    """
    metric = metric or _headline(runs)
    groups: dict[str, list[tuple[Run, Record]]] = {}
    for number, run in enumerate(runs):
        heads = [r for r in own_records(run) if r["metric"] == metric]
        if not heads:
            raise UserError(f"runs: {run.name} has no {metric}, only {_listed(run)}; name what all have with metric=")
        for record in heads:
            groups.setdefault(_same(run, record, number), []).append((run, record))
    found = [_line(group) for group in groups.values()]
    found = [line._replace(name=name) for line, name in zip(found, _names(found), strict=True)]
    differing = differences_in_settings([next(iter(line.runs.values())) for line in found])
    found = [line._replace(settings=tuple(said)) for line, said in zip(found, differing, strict=True)]
    return sorted(with_fronts(found), key=lambda line: -line.score["value"])


def with_fronts(lines: Sequence[Line]) -> list[Line]:
    """Says of each line for which costs it is on the Pareto front of those that have this cost."""
    on: list[set[str]] = [set() for _ in lines]
    for cost in COSTS:
        known = [i for i, line in enumerate(lines) if cost.metric in line.costs]
        points = [(lines[i].costs[cost.metric], lines[i].score["value"]) for i in known]
        for i, best in zip(known, front(points, cost.less), strict=True):
            if best and len(known) > 1:
                on[i].add(cost.metric)
    return [line._replace(on_front=frozenset(of)) for line, of in zip(lines, on, strict=True)]


def is_control(variant: str) -> bool:
    """Whether a variant is no line of its own: answers without the video, and those before a stage of preferences."""
    return variant in (BLIND, BEFORE) or variant.endswith(f"_{BLIND}")


def named(names: Sequence[str], most: int = 3) -> str:
    """``a, b, c and 4 more``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def missing_costs(lines: Sequence[Line]) -> list[str]:
    """What some lines lack, and the command that measures it."""
    lacking: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        if lacks := tuple(cost.title for cost in COSTS if cost.metric not in line.costs):
            lacking.setdefault(lacks, []).append(line)
    said = []
    for lacks, of in lacking.items():
        own = [line for line in of if line.variant != BEFORE]  # whose weights are no longer the run's
        trained = [run.trained for line in own for run in line.runs.values() if run.stages]
        again = f"; hvlm eval task=cost checkpoint={trained[0]} measures them, measure=true of all" if trained else ""
        said.append(f"{named([line.name for line in of])}: no {', '.join(lacks)}{again}")
    return said


def machines(lines: Sequence[Line]) -> list[str]:
    """The processors on which times were taken."""
    timed = [r for line in lines for run in line.runs.values() for r in (*run.records, *run.costs)]
    named = [str(r["cpu"]) for r in timed if r["metric"] in ("latency_ms", "decode_tokens_per_s")]
    return sorted({cpu for cpus in named for cpu in cpus.split(results.BETWEEN)})  # merged seeds name several


# --------------------------------------------------------------------------------------------------------------- lines


def _headline(runs: Sequence[Run]) -> str:
    own = [list(dict.fromkeys(r["metric"] for r in _scores(run))) for run in runs]
    shared = [metric for metric in own[0] if all(metric in other for other in own)]
    if shared:
        return shared[0]
    other = next((run for run, metrics in zip(runs, own, strict=True) if not set(metrics) & set(own[0])), runs[-1])
    raise UserError(
        f"runs: {runs[0].name} was scored by {_listed(runs[0])}, {other.name} by {_listed(other)}: all runs have no "
        "figure in common; name runs of one benchmark"
    )


def own_records(run: Run) -> list[Record]:
    """Those that are of no control; of a folder that holds what was before a stage of preferences, these."""
    own = [r for r in run.records if not is_control(r["variant"])]
    return own or [r for r in run.records if r["variant"] == BEFORE]


def _scores(run: Run) -> list[Record]:
    """Its records that are scores of a model: neither costs, nor counts of answers that are none."""
    return [r for r in own_records(run) if r["stderr"] is not None or r["chance"] is not None or is_share(r["metric"])]


def _listed(run: Run) -> str:
    metrics = list(dict.fromkeys(r["metric"] for r in _scores(run)))
    return ", ".join(metrics[:4]) + (f" and {len(metrics) - 4} more" if len(metrics) > 4 else "") or "nothing"


def _same(run: Run, record: Record, number: int) -> str:
    """The same for runs that are to be one line."""
    columns = {k: v for k, v in record.items() if k not in results.MEASURED and k != "question"}
    if not run.identities or len(record["seeds"]) != 1:
        return json.dumps([number, columns], sort_keys=True, default=str)
    settings = {
        stage: {k: v for k, v in one.items() if k != "seed" and not k.startswith("start.")}
        for stage, one in run.identities.items()
    }
    places = [(config.get("init_from"), config.get("benchmark")) for config in run.stages.values()]
    asked = run.said() if run.is_evaluation else []
    return json.dumps([columns, settings, places, asked], sort_keys=True, default=str)


def _line(group: Sequence[tuple[Run, Record]]) -> Line:
    by_seed: dict[int, tuple[Run, Record]] = {}
    for run, record in group:
        seed = record["seeds"][0] if len(record["seeds"]) == 1 else -1
        if seed in by_seed:
            raise UserError(
                f"runs: {by_seed[seed][0].folder} and {run.folder} are one run, and of one seed; name one of them"
            )
        by_seed[seed] = (run, record)
    first, head = group[0]
    score = _merged([record for _, record in by_seed.values()])
    blinds = [_control(run, record) for run, record in by_seed.values()]
    blind = _merged([b for b in blinds if b is not None]) if all(b is not None for b in blinds) else None
    costs = [_costs(run, record) for run, record in by_seed.values()]
    shared = [metric for metric in costs[0] if all(metric in one for one in costs)]
    means = {metric: statistics.fmean(one[metric] for one in costs) for metric in shared}
    runs = {seed: run for seed, (run, _) in sorted(by_seed.items(), key=lambda item: item[0])}
    return Line(first.name, (), runs, head["variant"], score, blind, means)


def _merged(records: Sequence[Record]) -> Record:
    if len(records) == 1:
        return records[0]
    (merged,) = results.merge_seeds([[{**record, "question": ""}] for record in records])
    return merged


def _control(run: Run, head: Record) -> Record | None:
    for variant in (BLIND, f"{head['variant']}_{BLIND}"):
        wanted = results.identity({**head, "variant": variant})
        for record in run.records:
            if results.identity(record) == wanted:
                return record
    return None


def _costs(run: Run, head: Record) -> dict[str, float]:
    """Of the records that say nothing else of themselves than the score does; what was measured apart counts more."""
    found: dict[str, float] = {}
    columns = {k: v for k, v in head.items() if k not in results.FIXED}
    for record in (*run.records, *run.costs):
        own = {k: v for k, v in record.items() if k not in results.FIXED}
        if record["variant"] == head["variant"] and all(columns.get(k) == v for k, v in own.items()):
            found[record["metric"]] = record["value"]
    if found.get("frames"):
        found[TOKENS] = found["visual_tokens"] / found["frames"] if "visual_tokens" in found else found.get(TOKENS, 0.0)
    return {cost.metric: found[cost.metric] for cost in COSTS if cost.metric in found}


def _names(lines: Sequence[Line]) -> list[str]:
    """Of the folders, what they share where there are several; with the variant and columns of a file's records."""
    names = []
    for line in lines:
        own = [run.name for run in line.runs.values()]
        name = own[0]
        if len(own) > 1:
            without = {re.sub(r"[-_/.]?seed[-_=]?\d+", "", other) for other in own}
            name = without.pop() if len(without) == 1 else f"{own[0]} and {len(own) - 1} more"
        names.append(name or own[0])
    for i, line in enumerate(lines):
        if names.count(names[i]) > 1 or not any(run.stages for run in line.runs.values()):
            columns = [f"{k}={v}" for k, v in columns_of(line.score).items()]
            names[i] = " ".join([names[i], line.variant, *columns])
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def columns_of(record: Record) -> dict[str, Any]:
    """What a record says of itself beside its name and its figures."""
    return {k: v for k, v in record.items() if k not in (*results.FIXED, "left_out")}
