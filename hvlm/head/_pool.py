"""What heads read of the language model's states: of the whole row, of the video, of each frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hvlm.types import Sequence


class Frames(NamedTuple):
    """A state for each frame: x_KTD float, time_KT float32 seconds, and mask_KT, where there is one."""

    x_KTD: Tensor
    time_KT: Tensor
    mask_KT: Tensor


def last_state(hidden_KLD: Tensor, sequence: Sequence) -> Tensor:
    """The state at the last valid place of each row, which has seen all of it: [K, D]."""
    place = torch.arange(hidden_KLD.shape[1], device=hidden_KLD.device)
    last_K = (place * sequence.mask_KL).argmax(1)
    return hidden_KLD[torch.arange(len(last_K), device=last_K.device), last_K]


def pooled_state(sequence: Sequence, like_KD: Tensor) -> Tensor:
    """The fusion's one state of video and text, [K, D]; zero where there is no video to be fused."""
    if sequence.fused is None:
        return torch.zeros_like(like_KD)
    assert sequence.fused.pooled_KD is not None, "a fusion that makes such a state"
    return sequence.fused.pooled_KD.to(like_KD.dtype)


def state_of_both(reads: str, hidden_KLD: Tensor, sequence: Sequence) -> Tensor:
    """What a head with ``head.reads`` reads: the ``language`` model's last state, the ``fusion``'s, or ``both``."""
    last = last_state(hidden_KLD, sequence)
    if reads == "language":
        return last
    pooled = pooled_state(sequence, last)
    return pooled if reads == "fusion" else torch.cat([last, pooled], -1)


def video_states(hidden_KLD: Tensor, sequence: Sequence) -> tuple[Tensor, Tensor]:
    """States at the places of the video, [K, V, D], and which of them are valid, bool [K, V]."""
    assert sequence.tokens is not None, "a sequence with a video"
    place = sequence.visual_place_KV.unsqueeze(-1).expand(-1, -1, hidden_KLD.shape[-1])
    return hidden_KLD.gather(1, place), sequence.tokens.mask_BS


def frame_states(hidden_KLD: Tensor, sequence: Sequence) -> Frames:
    """The mean state of each frame's tokens. Of a frame without tokens (a merger or a readout left none) that of the
    nearest frame before that has some, or else the first after."""
    assert sequence.batch is not None and sequence.tokens is not None, "a sequence with a video"
    batch, tokens = sequence.batch, sequence.tokens
    x_KVD, mask_KV = video_states(hidden_KLD, sequence)
    frames = batch.frame_mask_BT.shape[1]
    weight_KV = tokens.size_BS * mask_KV
    of_frame = torch.zeros(*mask_KV.shape, frames, device=x_KVD.device, dtype=x_KVD.dtype)
    of_frame.scatter_(2, tokens.frame_BS.clamp(0, frames - 1).unsqueeze(-1), weight_KV.to(x_KVD.dtype).unsqueeze(-1))
    total_KT = of_frame.sum(1)
    x_KTD = of_frame.transpose(1, 2) @ x_KVD / total_KT.clamp(min=1e-6).unsqueeze(-1)
    mask_KT, time_KT = batch.frame_mask_BT[batch.clip_K], batch.frame_time_BT[batch.clip_K]
    return Frames(_filled(x_KTD, total_KT > 0), time_KT, mask_KT)


def _filled(x_KTD: Tensor, there_KT: Tensor) -> Tensor:
    if bool(there_KT.all()):
        return x_KTD
    place = torch.arange(there_KT.shape[1], device=x_KTD.device)
    before_KT = torch.where(there_KT, place, -1).cummax(1).values
    first_K1 = there_KT.to(torch.int64).argmax(1, keepdim=True)
    source_KT = torch.where(before_KT < 0, first_K1, before_KT)
    return x_KTD.gather(1, source_KT.unsqueeze(-1).expand_as(x_KTD))
