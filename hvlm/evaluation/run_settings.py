"""In which settings runs differ, as one would type them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hvlm.evaluation.runs import Run, flat

MOST = 6  # settings that are named of a run


def differences_in_settings(runs: Sequence[Run]) -> list[list[str]]:
    """``key=value`` of each run in which the runs differ, the choice of a room as its word: ``connector=mean``."""
    said = [_settings(run) for run in runs]
    keys = dict.fromkeys(key for one in said for key in one)
    varied = [key for key in keys if len({json.dumps(one.get(key), sort_keys=True) for one in said if one}) > 1]
    words = {key.removesuffix("._target_") for key in varied if key.endswith("._target_")}
    found = []
    for one in said:
        shown = []
        for key in varied:
            room, _, rest = key.rpartition(":")[2].partition(".")
            if rest == "_target_":
                shown.append(f"{key.removesuffix('._target_')}={_word(one[key])}" if key in one else "")
            elif room in words and not all(key in other for other in said if other):
                continue  # a setting that only some of the chosen rooms have
            elif key in one:
                shown.append(f"{key}={_text(one[key])}")
        shown = [word for word in shown if word]
        more = [f"and {len(shown) - MOST} more"] if len(shown) > MOST else []
        found.append(shown[:MOST] + more)
    return found


def _settings(run: Run) -> dict[str, Any]:
    """Of all stages; what is not the same in all of them with the stage's name before it. What an evaluation was told
    counts, too."""
    by_key: dict[str, dict[str, Any]] = {}
    for stage, one in run.identities.items():
        asked = flat({"benchmark": run.stages[stage].get("benchmark") or {}})
        for key, value in {**one, **dict(asked)}.items():
            if not key.startswith(("start.", "data.")):
                by_key.setdefault(key, {})[stage] = value
    found: dict[str, Any] = {}
    for key, values in by_key.items():
        if len({json.dumps(value, sort_keys=True, default=str) for value in values.values()}) == 1:
            found[key] = next(iter(values.values()))
        else:
            found |= {f"{stage}:{key}": value for stage, value in values.items()}
    if run.is_evaluation:
        found |= {word.split("=", 1)[0].lstrip("+~"): word.split("=", 1)[1] for word in run.said()}
    return found


def _word(target: Any) -> str:
    """``hvlm.connector.mean.Mean`` -> ``mean``."""
    parts = str(target).split(".")
    return parts[-2] if len(parts) > 1 else parts[-1]


def _text(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else text[:39] + "…"
