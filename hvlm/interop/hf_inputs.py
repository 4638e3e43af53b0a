"""From what an exported model is called with to the batch that its rooms read."""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hvlm import assembly
from hvlm.data.collate import Item, collate
from hvlm.data.given import frames_given
from hvlm.data.optical_flow import motion_energy
from hvlm.errors import UserError
from hvlm.model import VLM
from hvlm.text.chat import Chat
from hvlm.types import Batch

Clip = tuple[Tensor, np.ndarray]  # [T, 3, H, W] as the encoder takes them, and their float32 seconds
Row = tuple[list[int], list[bool], int, int, dict[str, Any]]  # as ``Item`` has them


class Places:
    """Finds where in a conversation's ids the first answer begins, and with that where the video stands.

    Attributes:
        header: the ids that generation starts from.
    """

    def __init__(self, chat: Chat, order: str):
        prompt, at = chat.encode_prompt("?")
        self.header = prompt[at:]
        self._video_at = None if order == "question_first" else chat.encode_prompt("?", order)[1]
        try:  # the header of an earlier answer may be shorter: without the place for what is thought
            answered = chat.encode("?", "?", before=[("?", "?")]).ids[at:]
        except UserError:  # a template of single questions
            answered = self.header
        self._begin = os.path.commonprefix([self.header, answered]) or self.header
        self._ends = chat.end_ids
        self._unmistakable = bool(chat.special_ids & set(self._begin))

    def row(self, ids: list[int], targets: list[bool] | None = None, answer_at: int | None = None) -> Row:
        """A row of a batch.

        Args:
            ids: of a conversation, as the chat template writes it.
            targets: which of them are learned, and so hidden from visual tokens; None: what follows the first header.
            answer_at: how many ids stand before the first header; None: it is looked for.

        Raises:
            ValueError: no header is there, or it might be one of several.
        """
        at = self._find(ids) if answer_at is None else answer_at
        if ids[at : at + len(self._begin)] != self._begin:
            raise ValueError(f"answer_at={at}: no header of an answer stands there")
        if targets is None:
            whole = ids[at : at + len(self.header)] == self.header
            known = at + len(self.header if whole else self._begin)
            targets = [False] * known + [True] * (len(ids) - known)
        return ids, targets, at if self._video_at is None else self._video_at, 0, {}

    def asks(self, ids: list[int]) -> bool:
        """Whether an answer is to follow."""
        return ids[-len(self.header) :] == self.header

    def _find(self, ids: list[int]) -> int:
        size = len(self._begin)
        found = [at for at in range(len(ids) - size + 1) if ids[at : at + size] == self._begin]
        if not found:
            raise ValueError(
                "input_ids: a row holds no header of an answer; write it with apply_chat_template, for a question "
                "with add_generation_prompt=True"
            )
        if len(found) == 1 or self._unmistakable:
            return found[0]
        if self.asks(ids) and not self._ends & set(ids[1:]):  # nothing was answered yet: the others are the question's
            return found[-1]
        raise ValueError(
            f"input_ids: any of {len(found)} places may be where the first answer begins; give answer_at, as the "
            "processor's apply_chat_template does"
        )


def rows_of(
    places: Places, input_ids: Tensor, mask: Tensor, labels: Tensor | None = None, answer_at: Tensor | None = None
) -> list[Row]:
    """Rows of ids [K, S], without what ``mask`` [K, S] leaves out."""
    for name, given in (("labels", labels), ("attention_mask", mask)):
        if given is not None and (given.dim() != 2 or given.shape != input_ids.shape):
            raise ValueError(
                f"input_ids of shape {tuple(input_ids.shape)}, {name} of {tuple(given.shape)}: expected [K, S] both"
            )
    if answer_at is not None and answer_at.shape != input_ids.shape[:1]:
        raise ValueError(f"answer_at of shape {tuple(answer_at.shape)}: expected [{len(input_ids)}]")
    rows = []
    for i, seen in enumerate(mask.bool()):
        targets = None if labels is None else (labels[i][seen] != -100).tolist()
        rows.append(places.row(input_ids[i][seen].tolist(), targets, None if answer_at is None else int(answer_at[i])))
    return rows


def clip_of(video: Tensor | Any, num_frames: int, side: int, fps: float) -> Clip:
    """A clip of whatever ``HvlmModel.answer`` takes. ValueError for a tensor of another form."""
    if not isinstance(video, Tensor):
        frames, time = frames_given(video, num_frames, (side, side), fps)
        return torch.from_numpy(frames), time
    if video.dim() != 4 or tuple(video.shape[1:]) != (3, side, side) or not len(video):
        raise ValueError(f"frames of shape {tuple(video.shape)}: expected [T, 3, {side}, {side}]")
    if not (video.is_floating_point() or video.dtype == torch.uint8):
        raise ValueError(f"frames of {video.dtype}: expected uint8, or floating point and normalised")
    return video.cpu(), np.arange(len(video), dtype=np.float32)


def clips_of(
    pixels: Tensor, seconds: Tensor | None, mask: Tensor | None, rows: int, num_frames: int, side: int
) -> list[Clip]:
    """Clips of [B, T, 3, H, W] with their seconds [B, T], without what ``mask`` [B, T] leaves out; B is 1 or ``rows``.
    ValueError for other shapes."""
    if pixels.dim() != 5 or len(pixels) not in (1, rows):
        raise ValueError(
            f"pixel_values_videos of shape {tuple(pixels.shape)}: expected one video for all {rows} rows, "
            "[1, T, 3, H, W], or one for each"
        )
    for name, given in (("video_seconds", seconds), ("video_mask", mask)):
        if given is not None and given.shape != pixels.shape[:2]:
            raise ValueError(f"{name} of shape {tuple(given.shape)}: expected {list(pixels.shape[:2])}")
    clips = []
    for i, video in enumerate(pixels):
        shown = slice(None) if mask is None else mask[i].bool()
        frames, time = clip_of(video[shown], num_frames, side, 1.0)
        clips.append((frames, time if seconds is None else seconds[i][shown].float().cpu().numpy()))
    return clips


def batch_of(vlm: VLM, pad_id: int, clips: Sequence[Clip], rows: Sequence[Row]) -> Batch:
    """The batch of rows about one clip, about one each, or about none, on the model's device."""
    grid, side = assembly.motion_grid(vlm), vlm.vision.image_size
    normalised = any(frames.is_floating_point() for frames, _ in clips)
    if grid is not None and normalised:
        raise ValueError("frames that are normalised: this model's merger reads optical flow, which needs uint8")
    of_clips = [list(rows)] if len(clips) == 1 else [[row] for row in rows]
    items = [Item(None, None, [row]) for row in rows]
    if clips:
        items = []
        for (frames, time), asked in zip(clips, of_clips, strict=True):
            motion = None if grid is None else motion_energy(frames.numpy(), grid)
            pixels = torch.zeros(frames.shape, dtype=torch.uint8) if normalised else frames
            items.append(Item(pixels.numpy(), time, asked, motion=motion))
    batch = collate(items, pad_id=pad_id, size=(side, side), motion=grid)
    if normalised:
        batch = batch._replace(frames_BTCHW=pad_sequence([frames.float() for frames, _ in clips], batch_first=True))
    return batch.to(next(vlm.parameters()).device)
