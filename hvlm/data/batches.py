"""Parts of a batch, and a batch with more rows."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import pad

from hvlm.types import TEXT_ROWS, Batch


def one_row_per_clip(batch: Batch, clips: int) -> Batch:
    """The first row of each of the first ``clips`` clips that have a row and a video."""
    first: dict[int, int] = {}
    for row, clip in enumerate(batch.clip_K.tolist()):
        if bool(batch.frame_mask_BT[clip].any()):
            first.setdefault(clip, row)
    first = dict(list(first.items())[:clips])
    return _take(batch, list(first), list(first.values()))


def one_row(batch: Batch, row: int) -> Batch:
    """One text row with its clip."""
    return _take(batch, [int(batch.clip_K[row])], [row])


def rows_of(batch: Batch, rows: torch.Tensor) -> Batch:
    """These text rows (int64, in order) with their clips, for one pass: labels and targets are left out."""
    clips, clip_K = batch.clip_K[rows].unique(return_inverse=True)
    part = _take(batch._replace(rows=batch.rows or [{}] * len(batch.clip_K)), clips.tolist(), rows.tolist())
    return part._replace(clip_K=clip_K, labels=None)


def with_rows(batch: Batch, more: Batch) -> Batch:
    """The batch with further text rows about its clips at its end; the shorter texts are padded. Targets that ``more``
    lacks are 0 there."""
    width = max(batch.input_ids_KS.shape[1], more.input_ids_KS.shape[1])

    def below(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([a, b] if a.ndim == 1 else [pad(x, (0, width - x.shape[1])) for x in (a, b)])

    of_rows = {
        name: None if (x := getattr(batch, name)) is None else below(x, getattr(more, name)) for name in TEXT_ROWS
    }
    new, count = more.targets or {}, len(more.clip_K)
    targets = {
        name: torch.cat([value, new.get(name, value.new_zeros(count, *value.shape[1:]))])
        for name, value in (batch.targets or {}).items()
    }
    return batch._replace(**of_rows, rows=[*(batch.rows or []), *(more.rows or [])], targets=targets or None)


def prompts_alone(batch: Batch) -> Batch:
    """The rows up to their answer: neither that nor what closes it (an empty answer is closed, too) is read."""
    prompt_KS = batch.attention_mask_KS & (batch.loss_mask_KS.cumsum(1) == 0)
    return batch._replace(attention_mask_KS=prompt_KS, loss_mask_KS=prompt_KS & False)


def _take(batch: Batch, clips: list[int], texts: list[int]) -> Batch:
    device = batch.clip_K.device
    which = torch.tensor(clips, dtype=torch.int64, device=device)
    rows = torch.tensor(texts, dtype=torch.int64, device=device)
    return batch._replace(
        frames_BTCHW=batch.frames_BTCHW[which],
        frame_time_BT=batch.frame_time_BT[which],
        frame_mask_BT=batch.frame_mask_BT[which],
        input_ids_KS=batch.input_ids_KS[rows],
        attention_mask_KS=batch.attention_mask_KS[rows],
        loss_mask_KS=batch.loss_mask_KS[rows],
        clip_K=torch.arange(len(which), device=device),
        visual_at_K=batch.visual_at_K[rows],
        rows=[batch.rows[row] for row in rows.tolist()],
        uids=None if batch.uids is None else [batch.uids[clip] for clip in clips],
        motion_BTYX=None if batch.motion_BTYX is None else batch.motion_BTYX[which],
        prompt_KS=None if batch.prompt_KS is None else batch.prompt_KS[rows],
        adapter_K=None if batch.adapter_K is None else batch.adapter_K[rows],
        targets=batch.targets and {name: target[rows] for name, target in batch.targets.items()},
        context_K=None if batch.context_K is None else batch.context_K[rows],
    )


def clip_frames(batch: Batch, clip: int) -> np.ndarray:
    """The valid frames of one clip, uint8 [T, 3, H, W]."""
    return batch.frames_BTCHW[clip][batch.frame_mask_BT[clip]].cpu().numpy()
