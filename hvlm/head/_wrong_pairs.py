"""Which right texts of a batch are wrong beside which of its clips, and nearly right: what ``head=match`` learns from.

Where several processes learn together, the texts and clips are those of all of them, and each chooses alike; the
process that has a clip reads the texts beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hvlm.head._processes import rows_of_all, summed
from hvlm.types import Batch


class Pool(NamedTuple):
    """texts: the right ones, text rows beside this process's clips; their ``clip_K`` is one of ``clips``, of which this
    process's begin at ``first``. said_R: int64, equal for equal texts. shared: whether they are those of all
    processes."""

    texts: Batch
    said_R: Tensor
    clips: int
    first: int = 0
    shared: bool = False

    def pairs(self, text_J: Tensor, clip_J: Tensor) -> Batch:
        """Text rows beside clips of this process, which are counted among all."""
        return self.texts.text_rows(text_J)._replace(clip_K=clip_J - self.first)


def pool(batch: Batch, shared: bool) -> Pool:
    """The right texts of the batch, or of those of all processes, of which each must ask, with rows or without."""
    targets = batch.targets or {"right": torch.zeros_like(batch.clip_K), "said": batch.clip_K}  # without: no row
    right = (targets["right"] > 0).nonzero().squeeze(1)
    texts, said = batch.text_rows(right), targets["said"][right]
    if not shared:
        return Pool(texts, said, batch.num_clips)
    texts, said, first, clips = rows_of_all(texts, said)
    return Pool(texts, said, clips, first, shared)


def tried(found: Pool, most: int) -> tuple[Tensor, Tensor]:
    """(text, clip), int64 [J] each: every text beside at most so many other clips, those whose own texts have most in
    common with it, where it is wrong."""
    clip_R, texts, clips = found.texts.clip_K, len(found.said_R), found.clips
    most = min(most, clips - 1)
    if not texts or most < 1:
        return clip_R[:0], clip_R[:0]
    alike_RC = torch.full((texts, clips), -1.0, device=clip_R.device)
    alike_RC = alike_RC.scatter_reduce(1, clip_R.expand(texts, -1), _alike(found.texts), "amax")
    alike_RC[torch.arange(texts), clip_R] = -2.0  # its own clip comes last
    text_J = torch.arange(texts, device=clip_R.device).repeat_interleave(most)
    clip_J = alike_RC.topk(most, 1).indices.flatten()
    # What is said of that clip, too, is not wrong there; and a clip about which nothing is said may be anything.
    about = torch.zeros(clips, texts, dtype=torch.bool, device=clip_R.device)
    about[clip_R, torch.arange(texts)] = True
    same = found.said_R[text_J].unsqueeze(1) == found.said_R
    wrong = ~(about[clip_J] & same).any(1) & about[clip_J].any(1)
    return text_J[wrong], clip_J[wrong]


def scores(found: Pool, text_J: Tensor, clip_J: Tensor, answer: Callable[[Batch], Tensor]) -> Tensor:
    """What ``answer`` says of each pair, float32 [J]; of all processes' pairs where they share them."""
    if not found.shared:
        return answer(found.pairs(text_J, clip_J))
    own_I = own(found, clip_J)
    # A process without a pair reads one all the same: weights that are divided among processes (trainer=fsdp) are put
    # together for all of them at once.
    asked = (text_J[own_I], clip_J[own_I]) if len(own_I) else (text_J[:1], torch.full_like(clip_J[:1], found.first))
    score_I = answer(found.pairs(*asked))[: len(own_I)]
    return summed(score_I.new_zeros(len(clip_J)).index_copy(0, own_I, score_I))


def hardest(text_J: Tensor, clip_J: Tensor, score_J: Tensor) -> Tensor:
    """Which pairs are learned, int64, in order: each text's with the highest score, and each clip's."""
    return torch.tensor(sorted({*_best(text_J, score_J), *_best(clip_J, score_J)}), device=text_J.device)


def own(found: Pool, clip_J: Tensor) -> Tensor:
    """The places, int64, of the clips that this process has."""
    return ((clip_J >= found.first) & (clip_J < found.first + found.texts.num_clips)).nonzero().squeeze(1)


def _alike(texts: Batch) -> Tensor:
    """float [R, R]: the share of words and of pairs of neighbouring words that two texts have in common (Jaccard)."""
    ids, there = texts.input_ids_KS, texts.attention_mask_KS
    pairs = ids[:, :-1] * (int(ids.max()) + 1) + ids[:, 1:] + int(ids.max()) + 1
    every = torch.cat([ids, pairs], 1)
    there = torch.cat([there, there[:, :-1] & there[:, 1:]], 1)
    found, places = every.unique(return_inverse=True)
    has = torch.zeros(len(ids), len(found), device=ids.device)
    has.scatter_reduce_(1, places, there.float(), "amax")
    common = has @ has.T
    size = has.sum(1)
    return common / (size.unsqueeze(1) + size - common).clamp(min=1)


def _best(group_J: Tensor, score_J: Tensor) -> list[int]:
    """Of each group the place with the highest score, the first of equals."""
    best: dict[int, int] = {}
    scores = score_J.tolist()
    for place, group in enumerate(group_J.tolist()):
        if group not in best or scores[place] > scores[best[group]]:
            best[group] = place
    return list(best.values())
