"""Whether what belongs together is found: R@k and the median rank, as torchmetrics classes.

Rank 1 is the best. Of several right candidates the best placed one counts. Candidates that are scored alike are placed
as badly for the right one as they can be: embeddings that are all the same find nothing. (torchmetrics'
RetrievalHitRate is the same R@k where no two scores are equal; it holds a score for every pair, these hold a rank for
every query, or the embeddings.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.metrics.states import Gathered, share

KS = (1, 5, 10)


def ranks(scores_QG: Tensor, right_QG: Tensor) -> Tensor:
    """The place of the best right candidate of each query, int64 [Q] from 1.

    Args:
        scores_QG: of every candidate for every query, higher is better.
        right_QG: bool, which candidates are right; one or more of each query.

    Raises:
        ValueError: a query without a right candidate, or scores that are not numbers.
    """
    if not bool(right_QG.any(1).all()):
        raise ValueError(f"query {int((~right_QG.any(1)).nonzero()[0])} has no right candidate")
    if bool(scores_QG.isnan().any()):
        raise ValueError("scores are not numbers (NaN): the model diverged")
    best_Q = scores_QG.masked_fill(~right_QG, -torch.inf).amax(1)
    return 1 + ((scores_QG >= best_Q[:, None]) & ~right_QG).sum(1)


def figures(rank_Q: Tensor, ks: Sequence[int] = KS) -> dict[str, Tensor]:
    """{"r@<k>": share of ranks up to k, ..., "median_rank"}, float32; of an even number of ranks the mean of the two in
    the middle. NaN without queries."""
    count = torch.tensor(len(rank_Q), device=rank_Q.device)
    found = {f"r@{k}": share((rank_Q <= k).sum(), count) for k in ks}
    return found | {"median_rank": rank_Q.double().quantile(0.5).float() if len(rank_Q) else share(count, count)}


class RankedRetrieval(Gathered):
    """R@k and median rank of queries that come with all their candidates.

    ks: of R@k.
    """

    higher_is_better = True

    def __init__(self, ks: Sequence[int] = KS) -> None:
        super().__init__()
        self.ks = tuple(ks)
        self.add_rows("rank", torch.zeros(0, dtype=torch.int64))

    def update(self, scores_QG: Tensor, right_QG: Tensor) -> None:
        """Add queries; see ``ranks``."""
        self.rank.append(ranks(scores_QG, right_QG))

    def compute(self) -> dict[str, Tensor]:
        """See ``figures``."""
        return {name: value.to(self.device) for name, value in figures(self.rows("rank"), self.ks).items()}


class PairRetrieval(Gathered):
    """R@k and median rank both ways between videos and texts, by the cosine of their embeddings.

    A video is a candidate for every text of all processes, and a text for every video. What has the same group belongs
    together: several texts of one video are all right for it.

    ks: of R@k.
    """

    higher_is_better = True

    def __init__(self, dim: int, ks: Sequence[int] = KS) -> None:
        super().__init__()
        self.ks = tuple(ks)
        for side in ("video", "text"):
            self.add_rows(side, torch.zeros(0, dim))
            self.add_rows(f"{side}_group", torch.zeros(0, dtype=torch.int64))

    def update(
        self, video_VD: Tensor, text_TD: Tensor, video_group_V: Tensor, text_group_T: Tensor | None = None
    ) -> None:
        """Add embeddings.

        Args:
            video_VD, text_TD: of videos and texts, any number of each.
            video_group_V, text_group_T: int64, what they belong to; None: texts are in the order of the videos.
        """
        text_group_T = video_group_V if text_group_T is None else text_group_T
        for side, x, group in (("video", video_VD, video_group_V), ("text", text_TD, text_group_T)):
            if len(x) != len(group):
                raise ValueError(f"{len(x)} embeddings of {side}s and {len(group)} groups: expected as many")
            getattr(self, side).append(F.normalize(x.detach().float(), dim=-1))
            getattr(self, f"{side}_group").append(group)

    def compute(self) -> dict[str, Tensor]:
        """{"video_to_text/r@1": ..., "text_to_video/median_rank": ...}; see ``figures``."""
        scores_VT = self.rows("video") @ self.rows("text").T
        right_VT = self.rows("video_group")[:, None] == self.rows("text_group")[None]
        both = {"video_to_text": (scores_VT, right_VT), "text_to_video": (scores_VT.T, right_VT.T)}
        return {
            f"{way}/{name}": value.to(self.device)
            for way, (scores, right) in both.items()
            for name, value in figures(ranks(scores, right) if len(scores) else torch.zeros(0), self.ks).items()
        }
