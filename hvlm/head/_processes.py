"""What a head learns of the clips of other processes: sums over all of them, and their text rows.

Text alone is sent, never what a video became: a text beside another process's clip is read by the process that has the
clip.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from hvlm.types import TEXT_ROWS, Batch

_own: dict[Any, Any] = {}  # {the group of all processes: another of the same, for these exchanges alone}


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sharing() -> bool:
    """Whether several processes learn together now. Not where nothing is learned: they validate different numbers of
    batches, and nobody may wait for another."""
    return world() > 1 and torch.is_grad_enabled()


def group() -> Any:
    """Gradients of parts that a process has no rows for are averaged at another time than elsewhere; in one group with
    those, messages of one kind would be taken for the other's."""
    everyone = dist.group.WORLD
    if everyone not in _own:
        _own.clear()
        _own[everyone] = dist.new_group()
    return _own[everyone]


def summed(value: Tensor) -> Tensor:
    """Over all processes, of which each must ask."""
    value = value.clone()
    dist.all_reduce(value, group=group())
    return value


class OfAll(NamedTuple):
    """rows: text rows of all processes in their order, beside this one's clips, without what is known of them beside
    their text (``rows``, ``targets``); their ``clip_K`` counts the clips of all processes. also_K: what came with them.
    first: the number of this process's first clip. clips: of all."""

    rows: Batch
    also_K: Tensor
    first: int
    clips: int


def rows_of_all(rows: Batch, also_K: Tensor) -> OfAll:
    """Every process must ask, with any number of rows. also_K: int64, a number of each that goes with it."""
    rank, device = dist.get_rank(), rows.clip_K.device
    own = torch.tensor([len(rows.clip_K), rows.input_ids_KS.shape[1], rows.num_clips], device=device)
    sizes = [torch.zeros_like(own) for _ in range(world())]
    dist.all_gather(sizes, own, group=group())
    counts, widths, clips = torch.stack(sizes).T.tolist()
    first, width = sum(clips[:rank]), max(widths)
    fields = {name: x for name in TEXT_ROWS if (x := getattr(rows, name)) is not None}
    columns = [(pad(x, (0, width - x.shape[1])) if x.ndim == 2 else x.unsqueeze(1)).long() for x in fields.values()]
    columns.append(also_K.unsqueeze(1))
    lines = torch.cat(columns, 1)
    filled = lines.new_zeros(max(counts), lines.shape[1])
    filled[: len(lines)] = lines
    parts = [torch.zeros_like(filled) for _ in counts]
    if max(counts):
        dist.all_gather(parts, filled, group=group())
    every = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    *found, also = every.split([x.shape[1] for x in columns], 1)
    of_rows = {
        name: (new if x.ndim == 2 else new.squeeze(1)).to(x.dtype)
        for (name, x), new in zip(fields.items(), found, strict=True)
    }
    begin = torch.tensor([sum(clips[:r]) for r in range(len(clips))], device=device)
    of_rows["clip_K"] += begin.repeat_interleave(torch.tensor(counts, device=device))
    texts = rows._replace(**of_rows, rows=[{}] * len(every), targets=None)
    return OfAll(texts, also.squeeze(1), first, sum(clips))
