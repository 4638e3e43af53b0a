"""Samples of a batch → one padded ``Batch``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from hvlm.types import Batch


class Item(NamedTuple):
    """One clip with its text rows, or one text-only chat.

    frames: uint8 [T, 3, H, W] and times: float32 [T], or None without a video.
    rows: (token ids, loss mask, number of tokens before the visual tokens, number up to the end of the context, meta)
        per text row.
    labels: {name: int64 [T, rows, columns]} or None. uid: the sample's one name. motion: float32 [T, rows, columns] or
    None.
    """

    frames: np.ndarray | None
    times: np.ndarray | None
    rows: list[tuple[list[int], list[bool], int, int, dict[str, Any]]]
    labels: dict[str, np.ndarray] | None = None
    uid: str = ""
    motion: np.ndarray | None = None


def collate(items: list[Item], *, pad_id: int, size: tuple[int, int], motion: tuple[int, int] | None = None) -> Batch:
    """Pad frames at the end of T and text on the right; masks say what is real. ``size`` = (H, W) of all frames.

    A clip without frames (a text-only chat) is one black frame with mask False. Labels are padded with -100. Items
    without text rows (the patches view) get one masked dummy row for the batch, so that every field has its shape.
    ``motion``: the (rows, columns) of the items' motion if the batch is to carry it, which is 0 where nothing is shown.
    Raises ValueError for frames without the motion that was asked for.
    """
    b = len(items)
    longest = max(1 if item.frames is None else len(item.frames) for item in items)
    frames = np.zeros((b, longest, 3, *size), np.uint8)
    times = np.zeros((b, longest), np.float32)
    frame_mask = np.zeros((b, longest), bool)
    for i, item in enumerate(items):
        if item.frames is not None:
            t = len(item.frames)
            frames[i, :t], times[i, :t], frame_mask[i, :t] = item.frames, item.times, True

    energy = None
    if motion is not None:
        energy = torch.zeros(b, longest, *motion)
        for i, item in enumerate(items):
            if item.frames is not None:
                if item.motion is None:
                    raise ValueError(f"{item.uid or f'item {i}'}: frames without motion in a batch that is to carry it")
                energy[i, : len(item.motion)] = torch.from_numpy(item.motion)

    rows = [(i, *row) for i, item in enumerate(items) for row in item.rows]
    k, s = max(1, len(rows)), max([1, *(len(row[1]) for row in rows)])
    ids = np.full((k, s), pad_id, np.int64)
    mask, loss = np.zeros((k, s), bool), np.zeros((k, s), bool)
    clip, visual_at, context = (np.zeros(k, np.int64) for _ in range(3))
    for j, (i, row_ids, row_loss, row_visual, row_context, _) in enumerate(rows):
        n = len(row_ids)
        ids[j, :n], mask[j, :n], loss[j, :n] = row_ids, True, row_loss
        # Without a video nothing stands between the tokens, so that none is left without one before it.
        context[j] = row_context
        clip[j], visual_at[j] = i, row_visual if items[i].frames is not None else 0

    # What may be known before the answer: what stands before the video (it precedes all visual tokens anyway), and what
    # stands before the first target.
    place = np.arange(s)
    prompt = mask & ((place < visual_at[:, None]) | (loss.cumsum(1) == 0))

    labels = None
    if items[0].labels is not None:
        labels = {}
        for name, first in items[0].labels.items():
            padded = np.full((b, longest, *first.shape[1:]), -100, np.int64)
            for i, item in enumerate(items):
                padded[i, : len(item.labels[name])] = item.labels[name]
            labels[name] = torch.from_numpy(padded)
    arrays = (frames, times, frame_mask, ids, mask, loss, clip, visual_at)
    meta, uids = [row[-1] for row in rows] or [{}], [item.uid for item in items]
    return Batch(
        *map(torch.from_numpy, arrays),
        labels=labels,
        rows=meta,
        uids=uids,
        motion_BTYX=energy,
        prompt_KS=torch.from_numpy(prompt),
        context_K=torch.from_numpy(context),
    )
