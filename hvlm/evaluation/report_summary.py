"""What stands at the top of a report: what was trained, its figure beside chance and the blind control, what it costs.

Costs are written with their units here, for the rest of a report, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.console import duration
from hvlm.evaluation import paired, results
from hvlm.evaluation.comparison import digits_of
from hvlm.evaluation.html import Card
from hvlm.evaluation.leaderboard import columns_of, is_control
from hvlm.evaluation.paired import Difference
from hvlm.evaluation.report_data import BLIND, Row, Stage, is_share, number, percent, rows_of
from hvlm.viz.scatter import short


class CostText(NamedTuple):
    """what: it is, of one clip with one question. unit: behind the number."""

    what: str
    unit: str


COSTS = {
    "prefill_flops": CostText("compute from the pixels to the answer's first token", "FLOPs"),
    "latency_ms": CostText("time for that (prefill)", "ms"),
    "decode_tokens_per_s": CostText("decoding after it", "tokens/s"),
    "kv_bytes": CostText("keys and values that are kept (KV cache)", "B"),
    "visual_tokens": CostText("tokens of the video", "tokens"),
    "frames": CostText("frames that are read", "frames"),
    "parameters": CostText("parameters of the model", ""),
    "fusion_parameters": CostText("of these the fusion's", ""),
    "fusion_flops": CostText("compute of the fusion", "FLOPs"),
}


def cost(metric: str, value: float) -> str:
    """``411 MFLOPs``, ``17.1 ms``, ``29.2 kB``: three significant digits and the unit."""
    unit = COSTS[metric].unit if metric in COSTS else ""
    text = short(value)
    if unit in ("FLOPs", "B"):
        head, letter = (text[:-1], text[-1]) if text[-1].isalpha() else (text, "")
        return f"{head} {letter}{unit}"
    return f"{text} {unit}".strip()


def count(value: int) -> str:
    """2400 -> ``2,400``."""
    return f"{value:,}"


def headline(records: Sequence[results.Record]) -> Row | None:
    """The figure of a run that is named first: the first score of a model, with its controls; None where there is
    none."""
    rows = [row for row in rows_of(records) if row.record["metric"] not in COSTS]
    scores = [r for r in rows if r.record["stderr"] is not None or is_share(r.record["metric"])]
    own = [row for row in scores if not is_control(row.record["variant"])]
    return (own or scores or [None])[0]


def thanks_to_the_video(predictions: Path, row: Row) -> Difference | None:
    """How far the answers with the video are ahead of those without, question by question; None where that is not to
    be had."""
    way = paired.way_of(row.record)
    if way is None or columns_of(row.record) or not predictions.is_file():
        return None
    asked = paired.by_variant(predictions)
    own, blind = asked.get(row.record["variant"]), asked.get(BLIND)
    if not own or not blind or not paired.gives_again(own, way, row.record["value"]):
        return None
    return paired.difference((row.record["variant"], {0: own}), (BLIND, {0: blind}), way, row.record["metric"])


def said(row: Row) -> str:
    """The figure of a run in a sentence."""
    return sentence(row.variant, row)


def sentence(name: str, row: Row) -> str:
    """A figure in a sentence about what has this name."""
    r = row.record
    where = [] if r["chance"] is None else [f"guessing gets {percent(r['chance'])}"]
    where += [f"the same model without the video {number(row.blind)}"] if row.blind else []
    beside = f"; {', '.join(where)}" if where else ""
    asked = f" over {count(r['n'])} question{'s' * (r['n'] != 1)}"
    text = f"{name}: {r['metric']} {number(r)}{asked}{beside}."
    return text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")  # numbers are not broken


def figures(row: Row, ahead: Difference | None) -> list[Card]:
    """Of a figure, what guessing gets, and what the video is worth."""
    r = row.record
    asked = f"{count(r['n'])} question{'s' * (r['n'] != 1)}"
    found = [Card(r["metric"], number(r), asked if r["stderr"] is None else f"{asked}, ± one standard error")]
    found += [] if r["chance"] is None else [Card("chance", percent(r["chance"]), "guessing")]
    found += [Card("without the video", number(row.blind), "same questions, blind")] if row.blind else []
    if ahead is not None:
        found.append(Card("thanks to the video", points(ahead), f"paired; 95 %: {interval(ahead)}"))
    return found


def points(d: Difference) -> str:
    """``+73.4 ± 0.9 points`` of shares."""
    digits = digits_of(d)
    error = "" if d.stderr is None else f" ± {100 * d.stderr:{digits}}"
    return f"{100 * d.value:+{digits}}{error} points"


def interval(d: Difference) -> str:
    """``+71.6 to +75.2`` points; "unknown" with one video."""
    return "unknown" if d.interval is None else " to ".join(f"{100 * end:+{digits_of(d)}}" for end in d.interval)


def price(costs: Mapping[str, float]) -> list[Card]:
    """Of one answer, and of the model."""
    more = [cost(m, costs[m]) for m in ("prefill_flops", "kv_bytes", "visual_tokens") if m in costs]
    found = []
    if "latency_ms" in costs:
        found.append(Card("an answer's prefill", cost("latency_ms", costs["latency_ms"]), ", ".join(more)))
    elif more:
        found.append(Card("an answer costs", more[0], ", ".join(more[1:])))
    found += [Card("parameters", cost("parameters", costs["parameters"]))] if "parameters" in costs else []
    return found


def trained(stages: Sequence[Stage]) -> list[Card]:
    """How long all stages took."""
    done = [stage for stage in stages if stage.steps is not None and stage.seconds is not None]
    if not done:
        return []
    steps, seconds = sum(s.steps or 0 for s in done), sum(s.seconds or 0.0 for s in done)
    names = " → ".join(stage.name for stage in stages)
    return [Card("training", f"{clock(seconds)}", f"{count(steps)} steps: {names}")]


def clock(seconds: float) -> str:
    """``75 s`` as ``1:15 min``, hours as ``1:06:40 h``."""
    return f"{duration(seconds)} {'h' if seconds >= 3600 else 'min'}"


def median(stage: Stage, name: str) -> str:
    """Of what a stage logged; "" where it did not."""
    values = [value for _, value in stage.curves.get(name, [])]
    return f"{statistics.median(values):.3g}" if values else ""


def costs_of(records: Sequence[results.Record], variant: Any) -> dict[str, float]:
    """{metric: value} of a variant's costs that say nothing else of themselves."""
    own = [r for r in records if r["metric"] in COSTS and r["variant"] == variant and not columns_of(r)]
    return {r["metric"]: r["value"] for r in own}
