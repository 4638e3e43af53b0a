"""How far one model is ahead of another on the same questions: the error of a difference is not that of its parts.

Two models that were asked the same questions stumble over the same hard ones. Question by question this share of the
noise falls out of the difference, so that far smaller ones can be told from nothing than two error bars would let one
think.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvlm.evaluation import results
from hvlm.evaluation.open_scores import METRICS, is_right
from hvlm.evaluation.predictions import read_predictions
from hvlm.evaluation.scores import ALL_TRIES, Prediction, Tries
from hvlm.evaluation.stats import clustered_mean

Id = tuple[str, str]  # task, question id
CHANGED = 1 / 3  # more than this share of the names they share asks something else: the clips are not the same


class Way(NamedTuple):
    """How a figure is made of answers: worth of a question's tries, whether tasks weigh the same, tasks left out, the
    one task that counts (None: all)."""

    worth: Callable[[Tries], float]
    by_task: bool
    apart: tuple[str, ...] = ()
    task: str | None = None

    def takes(self, task: str) -> bool:
        return task not in self.apart and self.task in (None, task)


class Difference(NamedTuple):
    """value: first minus second, and its standard error (None with one video). n: questions that both were asked, of
    the seed with fewest. other: questions that only one was asked. seeds: whose runs stand beside each other. metric:
    of what it is the difference."""

    first: str
    second: str
    value: float
    stderr: float | None
    n: int
    other: int
    seeds: list[tuple[int, int]]
    metric: str

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of 95 %, by the normal distribution."""
        if self.stderr is None:
            return None
        return self.value - 1.96 * self.stderr, self.value + 1.96 * self.stderr


def way_of(record: Mapping[str, Any]) -> Way | None:
    """How the figure of a record is made of answers; None where it is no mean over questions."""
    name = str(record["metric"])
    apart = tuple(str(record.get("left_out") or "").split(",")) if record.get("left_out") else ()
    name, _, without = name.partition("_without_")
    apart += tuple(without.split(",")) if without else ()
    if name == ALL_TRIES or name.startswith(f"{ALL_TRIES}/"):
        return Way(_all_right, True, apart, name.partition("/")[2] or None)
    found = re.fullmatch(r"(accuracy|normalised|exact|f1)(?:_(mean|macro|micro)|/(.+))", name)
    if found is None:
        return None
    metric, over, task = found.groups()
    return Way(share_right if metric == "accuracy" else _open(METRICS[metric]), over != "micro", apart, task)


RIGHT = Way(lambda tries: sum(map(is_right, tries)) / len(tries), False)  # where a benchmark has a score of its own


def by_variant(path: Path) -> dict[str, dict[Id, Tries]]:
    """{variant: {(task, question id): its tries}} of a file of predictions."""
    found: dict[str, dict[Id, Tries]] = {}
    for p in read_predictions(path, "model"):
        found.setdefault(p.variant, {}).setdefault((p.task, p.question_id), []).append(p)
    return found


def mean(asked: Mapping[Id, Tries], way: Way) -> float | None:
    """The figure itself, from the answers; None where nothing counts."""
    counted = [tries for (task, _), tries in asked.items() if way.takes(task)]
    if not counted:
        return None
    tasks = [tries[0].task if way.by_task else "" for tries in counted]
    return clustered_mean([way.worth(tries) for tries in counted], [tries[0].key for tries in counted], tasks)[0]


def difference(
    first: tuple[str, Mapping[int, Mapping[Id, Tries]]],
    second: tuple[str, Mapping[int, Mapping[Id, Tries]]],
    way: Way,
    metric: str,
) -> Difference | None:
    """First minus second, clustered by video, over the questions that both were asked.

    Args:
        first: its name and {seed: its answers}; second likewise. Runs of the same seed stand beside each other; without
            such, the first with the first, and so on.
        way: what an answer is worth.
        metric: its name.

    Returns:
        None where they share no question. Two questions are the same if id, words, options and right answer are. Where
        many of one id are not, others are alike by chance, about other clips: then none is shared.
    """
    (name, ones), (other_name, others) = first, second
    pairs = [(seed, seed) for seed in ones if seed in others] or list(zip(sorted(ones), sorted(others), strict=False))
    records, apart = [], 0
    for number, (a, b) in enumerate(pairs):
        one, other = ones[a], others[b]
        found = of_answers(one, other, way)
        apart = max(apart, sum(way.takes(q[0]) for q in {*one, *other}) - (found[2] if found else 0))
        if found:
            value, stderr, n = found
            about = {"metric": metric, "value": value, "stderr": stderr, "n": n, "seeds": [number]}
            records.append([{**dict.fromkeys(results.FIXED), "seconds": 0.0, "peak_rss_mb": 0.0, **about}])
    if not records:
        return None
    (merged,) = results.merge_seeds(records)
    return Difference(name, other_name, merged["value"], merged["stderr"], merged["n"], apart, pairs, metric)


def of_answers(one: Mapping[Id, Tries], other: Mapping[Id, Tries], way: Way) -> tuple[float, float | None, int] | None:
    """(one minus other, its standard error, questions) over what both were asked; None where that is nothing,
    or alike by chance."""
    named = [q for q in one if q in other and way.takes(q[0])]
    shared = [q for q in named if is_same(one[q], other[q])]
    if not shared or len(named) - len(shared) > CHANGED * len(named):
        return None
    value, stderr = clustered_mean(
        [way.worth(one[q]) - way.worth(other[q]) for q in shared],
        [one[q][0].key for q in shared],
        [q[0] if way.by_task else "" for q in shared],
    )
    return value, stderr, len(shared)


def is_same(one: Tries, other: Tries) -> bool:
    """Whether two models' tries answer the same question."""
    return _asked(one) == _asked(other)


def _asked(tries: Tries) -> tuple[Any, ...]:
    def right(p: Prediction) -> Any:
        return p.options[p.gold] if p.options and p.gold is not None else tuple(p.answers)

    return tuple(sorted((p.attempt, p.question, tuple(sorted(p.options)), right(p)) for p in tries))


def share_right(tries: Tries) -> float:
    return sum(p.right for p in tries) / len(tries)


def _all_right(tries: Tries) -> float:
    return float(all(p.right for p in tries))


def _open(worth: Callable[[str, Sequence[str]], float]) -> Callable[[Tries], float]:
    def value(tries: Tries) -> float:
        return sum(worth(p.text or "", p.answers) if p.text and p.text.strip() else 0.0 for p in tries) / len(tries)

    return value


def gives_again(asked: Mapping[Id, Tries], way: Way, value: float) -> bool:
    """Whether a record's value comes out of the answers: only then are these the answers that it was made of."""
    found = mean(asked, way)
    return found is not None and math.isclose(found, value, abs_tol=1e-6)
