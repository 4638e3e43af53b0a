"""Standard errors of scores that are means over questions or queries, clustered by video."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any

from hvlm.evaluation.stats import clustered_mean

Each = Mapping[str, SequenceOf[tuple[float, Hashable]]]


def with_errors(rows: SequenceOf[Mapping[str, Any]], each: Each) -> list[dict[str, Any]]:
    """Rows of ``Head.score`` with ``stderr``.

    Args:
        rows: {metric, value, ...}.
        each: {metric: what its value is the mean of, with the video of each}; rows of other metrics keep None.
    """
    errors = {name: clustered_mean(*map(list, zip(*found, strict=True)))[1] for name, found in each.items() if found}
    return [{**row, "stderr": errors.get(row["metric"])} for row in rows]
