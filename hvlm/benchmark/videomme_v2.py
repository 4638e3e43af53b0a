"""Video-MME-v2 (arXiv:2604.05015): eight options, four questions about a video, which are scored together.

Of a group whose questions are variants of one (``relevance``) counts how many are right; of one whose questions lead to
each other (``logic``), how far the first unbroken chain goes. Accuracy over single questions stands beside it.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hvlm.benchmark._breakdowns import said
from hvlm.benchmark._published import PublishedTable
from hvlm.errors import UserError
from hvlm.evaluation.scores import Prediction, variants_of
from hvlm.evaluation.stats import clustered_mean

log = logging.getLogger(__name__)

COLUMNS = ("video_id", "question_id", "group_type", "group_structure")
# Points for 0 to 4 right questions, or links of the chain.
POINTS: Mapping[str, tuple[float, ...]] = {
    "relevance": (0, 1 / 16, 1 / 4, 9 / 16, 1),
    "[1,2,3,4]": (0, 1 / 16, 1 / 4, 9 / 16, 1),
    "[1,[2,3],4]": (0, 1 / 12, 1 / 3, 7 / 12, 1),
    "[[1,2],3,4]": (0, 1 / 10, 1 / 5, 1 / 2, 1),
}
Group = tuple[str, list[bool]]  # what its points go by, and which of its four questions are right


class VideoMMEv2(PublishedTable):
    """The settings are those of ``PublishedTable``."""

    @property
    def kept(self) -> tuple[str, ...]:
        """Columns that scores need."""
        return (*self.by, *COLUMNS)

    def score(self, predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
        """``group_score`` over groups, ``group_score/relevance``, ``group_score/logic``, and accuracies. A question of
        a group that was not answered is wrong. Where predictions do not say their groups and the tables are not given,
        accuracies alone."""
        predictions = self._with_about(predictions)
        rows = super().score(predictions)
        if not all(said(p, name) for p in predictions for name in COLUMNS):
            log.warning("no group_score: some predictions do not say their group; name the tables by benchmark.path=")
            return rows
        for variant, questions in variants_of(predictions).items():
            groups = self.groups([tries[0] for tries in questions])
            for name in ("", "relevance", "logic"):
                of = {video: g for video, g in groups.items() if name in ("", kind_of(g))}
                if of:
                    rows.append({"variant": variant, **_row(f"group_score/{name}".rstrip("/"), of)})
        return rows

    def groups(self, predictions: Sequence[Prediction]) -> dict[str, Group]:
        """{video: its group}."""
        found: dict[str, Group] = {}
        for p in predictions:
            video, number, kind, structure = (said(p, name) for name in COLUMNS)
            rule = "relevance" if kind == "relevance" else str(structure).replace(" ", "")
            if rule not in POINTS:
                raise UserError(
                    f"benchmark: question {number} is of a group {kind} {structure}, expected "
                    f"relevance, or logic with {', '.join(list(POINTS)[1:])}"
                )
            place = str(number).rpartition("-")[2]
            if place not in ("1", "2", "3", "4"):
                raise UserError(
                    f"benchmark: question_id {str(number)!r} of video {str(video)!r}: expected a number from 1 to 4, "
                    "the question's place in its group, alone or after a hyphen"
                )
            found.setdefault(str(video), (rule, [False] * 4))[1][int(place) - 1] = p.right
        return found


def kind_of(group: Group) -> str:
    return "relevance" if group[0] == "relevance" else "logic"


def points(group: Group) -> float:
    """Of one group, 0 to 1."""
    rule, right = group
    return POINTS[rule][sum(right) if rule == "relevance" else _links(json.loads(rule), right)]


def _links(structure: Sequence[Any], right: Sequence[bool]) -> int:
    """How far the chain goes: either of a bracket may count alone, but only all of it lead on."""
    links = 0
    for part in structure:
        numbers = part if isinstance(part, list) else [part]
        held = sum(right[number - 1] for number in numbers)
        links += held
        if held < len(numbers):
            break
    return links


def _chance(rule: str, options: int = 8) -> float:
    """What guessing gets."""
    each = [True, *[False] * (options - 1)]
    return sum(points((rule, list(right))) for right in itertools.product(each, repeat=4)) / options**4


def _row(metric: str, groups: Mapping[str, Group]) -> dict[str, Any]:
    value, stderr = clustered_mean([points(g) for g in groups.values()], list(groups), [""] * len(groups))
    chance = {rule: _chance(rule) for rule in {g[0] for g in groups.values()}}
    return {
        "metric": metric, "value": value, "stderr": stderr, "n": len(groups), "videos": len(groups),
        "chance": sum(chance[g[0]] for g in groups.values()) / len(groups),
    }  # fmt: skip
