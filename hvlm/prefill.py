"""A sequence into a cache: the context in pieces, then what is asked about it.

In a single pass every head of most caches sees the whole prompt, and what a cache forgets is never missed. So the
context, everything up to the last visual token or the end of a text that is asked about, goes in first, in pieces of a
chosen size; only then does what follows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hvlm.caching import PastKV
from hvlm.contracts import Language
from hvlm.types import Sequence


def read(language: Language, sequence: Sequence, cache: PastKV, chunk: int | None, apart: bool) -> Tensor:
    """The language model's states of the whole sequence, [K, L, D], after which ``cache`` holds it.

    Args:
        language: called as ``hidden`` of its contract.
        sequence: the laid-out rows. One without visual tokens and without a text that is asked about
            (``Batch.context_K``) is context as a whole.
        cache: an empty one.
        chunk: the context goes in by so many places; None: at once.
        apart: what follows the context is read after it, and token by token where pieces matter to the cache
            (``PastKV.in_pieces``).
    """
    x, mask, _, position, log_size, _, batch, *_ = sequence
    length = x.shape[1]
    cache.reserve(length)
    end_K1 = _end(sequence) if apart else None
    if end_K1 is None:
        return torch.cat([_pass(language, cache, part, x, mask, position, log_size) for part in _cut(length, chunk)], 1)

    context = int(end_K1.max())
    place = torch.arange(length, device=x.device)
    states = x.new_zeros(*x.shape[:2], language.dim)
    known = mask & (place < end_K1)
    for part in _cut(context, chunk):
        states[:, part] = _pass(language, cache, part, x, known, position, log_size)
    cache.question()

    # Rows have their context end at different places: what follows stands flush left, for all to go on together.
    asked = (mask & (place >= end_K1)) * (place + 1)
    width = int((asked.amax(1, keepdim=True) - end_K1).max())
    if width <= 0:
        return states
    at_KW = end_K1 + torch.arange(width, device=x.device)
    valid = (at_KW < length) & mask.gather(1, at_KW.clamp(max=length - 1))
    at_KW = at_KW.clamp(max=length - 1)
    x, position, log_size = (None if t is None else _gather(t, at_KW) for t in (x, position, log_size))
    read_KWD = torch.cat(
        [
            _pass(language, cache, part, x, valid, position, log_size)
            for part in _cut(width, None if cache.in_pieces else 1)
        ],
        1,
    )
    row, column = valid.nonzero(as_tuple=True)
    states[row, at_KW[row, column]] = read_KWD[row, column].to(states.dtype)
    return states


def _end(sequence: Sequence) -> Tensor | None:
    """The place after the context of each row, int64 [K, 1]; None: there is nothing else in any row."""
    batch = sequence.batch
    if batch is None:
        return None
    told_K = torch.zeros_like(batch.visual_at_K) if batch.context_K is None else batch.context_K
    if not (sequence.visual or bool(told_K.any())):
        return None
    # A text that is asked about ends before the video, or after it.
    text_K = told_K + sequence.visual * (told_K > batch.visual_at_K)
    seen_K = batch.frame_mask_BT.any(1)[batch.clip_K]
    end_K = torch.maximum(text_K, (batch.visual_at_K + sequence.visual) * seen_K)
    return torch.where(seen_K | (told_K > 0), end_K, sequence.mask_KL.shape[1]).unsqueeze(1)


def _cut(length: int, size: int | None) -> list[slice]:
    size = length if size is None else size
    return [slice(start, min(start + size, length)) for start in range(0, length, max(size, 1))]


def _pass(
    language: Language,
    cache: PastKV,
    part: slice,
    x: Tensor,
    mask: Tensor | None,
    position: Tensor | None,
    log_size: Tensor | None,
) -> Tensor:
    of_part = (None if t is None else t[:, part] for t in (mask, position))
    return language.hidden(x[:, part], *of_part, cache, None if log_size is None else log_size[:, part])


def _gather(x: Tensor, at_KW: Tensor) -> Tensor:
    return x.gather(1, at_KW.view(*at_KW.shape, *(1,) * (x.dim() - 2)).expand(*at_KW.shape, *x.shape[2:]))
