"""Retrieval in two steps: embeddings find the nearest candidates, and a head that reads both together ranks them anew.

``head=several`` with ``retrieve`` and ``match`` among its heads, ``benchmark=head benchmark.rerank=K``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hvlm.contracts import Benchmark, Head
from hvlm.data.views import Row, View
from hvlm.errors import UserError
from hvlm.evaluation.asking import clips_of
from hvlm.evaluation.stats import clustered_mean
from hvlm.head.match import Match, row_of
from hvlm.head.retrieve import Retrieve
from hvlm.head.several import Several, Together
from hvlm.metrics.retrieval import KS, ranks
from hvlm.precision import autocast
from hvlm.rebuild import Loaded


@dataclass(frozen=True)
class Candidates(View):
    """texts: {clip's one name: the texts that it is tried with}; a row for each."""

    texts: Mapping[str, Sequence[str]] = field(hash=False)
    name = "candidates of the first step"

    def rows(self, sample: dict[str, Any], times: np.ndarray, rng: np.random.Generator, n: int | None) -> list[Row]:
        about = {name: sample[name] for name in ("key", "uid") if name in sample} | {"task": "match"}
        name = sample.get("uid") or sample["key"]
        return [row_of(text, about | {"of": text}, False) for text in self.texts.get(name, ())]


class Compared(NamedTuple):
    """All clips (by their one names) with all texts: scores_VT, and which belong together."""

    clips: list[str]
    texts: list[str]
    scores_VT: Tensor
    right_VT: Tensor


def heads_of(head: Head) -> tuple[str, str]:
    """(name of the head that finds, name of the one that ranks anew). UserError where they are not both there."""
    found = {}
    if isinstance(head, Several):
        found = {kind: name for kind in (Retrieve, Match) for name, one in head.heads.items() if isinstance(one, kind)}
    if len(found) < 2:
        raise UserError(
            f"benchmark.rerank: head={head.task} has not both retrieve and match, of which the one finds and the other "
            "ranks anew; use head=several 'head.heads={retrieve:null,match:null}', or benchmark.rerank=0"
        )
    return found[Retrieve], found[Match]


def compared(lines: Sequence[Mapping[str, Any]]) -> Compared:
    """Lines of ``head=retrieve`` as one table."""
    clips = list(dict.fromkeys(line["uid"] or line["key"] for line in lines))
    first = {text: line["embeddings"][0] for line in reversed(lines) for text in line["texts"][:1]}
    texts = list(dict.fromkeys(line["texts"][0] for line in lines))
    video = {line["uid"] or line["key"]: line["video"] for line in lines}
    scores = torch.tensor([video[clip] for clip in clips]) @ torch.tensor([first[text] for text in texts]).T
    places, numbers = ({name: i for i, name in enumerate(names)} for names in (clips, texts))
    right = torch.zeros(len(clips), len(texts), dtype=torch.bool)
    for line in lines:
        right[places[line["uid"] or line["key"]], numbers[line["texts"][0]]] = True
    return Compared(clips, texts, scores, right)


@torch.no_grad()
def rerank(
    loaded: Loaded, benchmark: Benchmark, lines: Sequence[Mapping[str, Any]], most: int, blind: bool = False
) -> list[dict[str, Any]]:
    """Rows of scores (``Head.score``): R@k both ways of the first step, after the ``most`` nearest candidates of each
    query were ranked anew, and what that gains at R@1, with the standard error of the difference.

    ``after`` ranks by the second score alone (ALBEF), ``sum`` by both: the second head's logit and the similarity, as
    BLIP does (Li et al. 2022), but with the similarity times its learned factor, which makes it a logit, too.

    Args:
        lines: of all heads about the benchmark's clips.
        blind: whether they were answered with black frames.
    """
    finds, ranks_anew = heads_of(loaded.model.head)
    scale = float(loaded.model.head.heads[finds].scale)
    table = compared([line for line in lines if line["head"] == finds])
    near_VT, of_text_VT = (_nearest(x, most) for x in (table.scores_VT, table.scores_VT.T))
    tried_VT = near_VT | of_text_VT.T
    asked = {
        clip: [table.texts[t] for t in row.nonzero().squeeze(1).tolist()]
        for clip, row in zip(table.clips, tried_VT, strict=True)
    }
    matched_VT = torch.full(tried_VT.shape, -torch.inf)
    places, numbers = ({name: i for i, name in enumerate(names)} for names in (table.clips, table.texts))
    view, model = Together(((ranks_anew, Candidates(asked)),)), loaded.model.eval()
    for batch in clips_of(loaded, benchmark, view):
        batch = batch.to(loaded.device)
        if blind:
            batch = batch._replace(frames_BTCHW=torch.zeros_like(batch.frames_BTCHW))
        with autocast(loaded.device, loaded.precision):
            scores = model.output(batch)[ranks_anew]
        for row, score in zip(batch.rows or [], scores.tolist(), strict=True):
            matched_VT[places[row["uid"] or row["key"]], numbers[row["text"]]] = score
    out: list[dict[str, Any]] = []
    for way, scores, right, near, again in (
        ("video_to_text", table.scores_VT, table.right_VT, near_VT, matched_VT),
        ("text_to_video", table.scores_VT.T, table.right_VT.T, of_text_VT, matched_VT.T),
    ):
        found = {
            "before": ranks(scores, right),
            "after": second_ranks(scores, right, near, again),
            "sum": second_ranks(scores, right, near, again + scale * scores),
        }
        clips = table.clips if way == "video_to_text" else [table.clips[int(v)] for v in right.int().argmax(1)]
        for k in KS:
            out += [_row(f"rerank/{way}/r@{k}_{name}", [float(r <= k) for r in of.tolist()], clips)
                    for name, of in found.items()]  # fmt: skip
        for name, of in (("gain", found["after"]), ("sum_gain", found["sum"])):
            gain = [float(b <= 1) - float(a <= 1) for a, b in zip(found["before"].tolist(), of.tolist(), strict=True)]
            out.append(_row(f"rerank/{way}/r@1_{name}", gain, clips))
    return out


def second_ranks(scores_QG: Tensor, right_QG: Tensor, near_QG: Tensor, again_QG: Tensor) -> Tensor:
    """Ranks, int64 [Q]: the candidates of ``near_QG`` come first, in the order of ``again_QG``; the others keep their
    places behind them. Equal scores count against the right one."""
    order = again_QG.masked_fill(~near_QG, -torch.inf).contiguous()
    # How many have a lower second score: whole numbers, which keep equal scores equal.
    place = torch.searchsorted(order.sort(1).values, order).float()
    return ranks(torch.where(near_QG, scores_QG.max() + 1 + place, scores_QG), right_QG)


def _nearest(scores_QG: Tensor, most: int) -> Tensor:
    """Which are the ``most`` best candidates of each query, bool."""
    best = scores_QG.topk(min(most, scores_QG.shape[1]), 1).indices
    return torch.zeros_like(scores_QG, dtype=torch.bool).scatter(1, best, torch.ones_like(best, dtype=torch.bool))


def _row(metric: str, values: list[float], clips: Sequence[str]) -> dict[str, Any]:
    value, stderr = clustered_mean(values, list(clips))[:2]
    return {"metric": metric, "value": value, "stderr": stderr, "n": len(values), "chance": None}
