"""Accuracy by what a published table says of its questions, and how much of the benchmark was asked."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from hvlm.evaluation.scores import Prediction, score_choices

log = logging.getLogger(__name__)


def said(prediction: Prediction, column: str) -> str | None:
    """What the row of a question says in a column."""
    return dict(prediction.about).get(column)


def by_value(column: str, predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    """Rows ``accuracy/<column>=<value>`` of one variant."""
    values: dict[str, list[Prediction]] = {}
    for p in predictions:
        if value := said(p, column):
            values.setdefault(value, []).append(p)
    rows = []
    for value, of in sorted(values.items()):
        micro = next(r for r in score_choices(of) if r["metric"] == "accuracy_micro")
        rows.append(micro | {"metric": f"accuracy/{column}={value}"})
    return rows


def tasks_asked(expected: Sequence[str], variant: str, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The row ``tasks_asked`` of one variant; says which of the whole benchmark's tasks were not."""
    left = [task for task in expected if task not in {p.task for p in predictions}]
    asked = len(expected) - len(left)
    more = f"; not asked: {', '.join(left)}" if left else ""
    log.info("%s: %d of %d tasks%s", variant, asked, len(expected), more)
    return {
        "variant": variant, "metric": "tasks_asked", "value": float(asked), "stderr": None, "n": len(expected),
        "videos": len({p.key for p in predictions}), "chance": None,
    }  # fmt: skip
