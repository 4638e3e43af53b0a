"""The model's own words: greedy decoding with a KV cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvlm.chat import Chat
from hvlm.model import VLM, Sequence
from hvlm.types import Batch


@torch.inference_mode()
def generate(model: VLM, chat: Chat, kvcache: Any, batch: Batch, max_new_tokens: int) -> list[str]:
    """What the model answers to every text row of ``batch``, whose answer (if it has one) is cut off first.

    The prompt goes through once; every further token costs one position. ``kvcache`` is the room that says what
    decoding keeps. The model's mode (training or not), part by part, is the same afterwards.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    prompt_KS = batch.attention_mask_KS & (batch.loss_mask_KS.cumsum(1) == 0)
    sequence = model.sequence(batch._replace(attention_mask_KS=prompt_KS, loss_mask_KS=prompt_KS & False))
    cache = kvcache.new()
    h = model.hidden(sequence, cache)
    newest = h[torch.arange(len(h), device=h.device), last_true(sequence.mask_KL)]
    written_KN = greedy(model, chat, cache, newest, sequence, max_new_tokens)
    for module, mode in modes.items():
        module.training = mode
    return [chat.decode(ids) for ids in written_KN.tolist()]


def greedy(model: VLM, chat: Chat, cache: Any, newest_KD: Tensor, read: Sequence, max_new_tokens: int) -> Tensor:
    """The likeliest token, again and again, until every row has ended: ids [K, N], N <= max_new_tokens.

    cache: holds the positions of ``read`` (of which the mask, positions and sizes count), and grows. newest_KD: the
        state at each row's last valid one.
    """
    mask, log_size, newest = read.mask_KL, read.log_size_KL, newest_KD
    ended = torch.zeros(len(newest_KD), dtype=torch.bool, device=newest_KD.device)
    if read.position_KL is None:
        position = mask.sum(1, keepdim=True) - 1
    else:
        position = read.position_KL.gather(1, last_true(mask).unsqueeze(1))
    written: list[Tensor] = []
    for _ in range(max_new_tokens):
        token = model.head.logits(newest).argmax(-1)
        token = torch.where(ended, chat.end_id, token)
        ended = ended | (token == chat.end_id)
        written.append(token)
        if ended.all():
            break
        mask = torch.cat([mask, ~mask.new_zeros(len(mask), 1)], 1)
        log_size = None if log_size is None else torch.nn.functional.pad(log_size, (0, 1))
        position = position + 1
        newest = model.language.hidden(model.language.embed(token[:, None]), mask, position, cache, log_size)[:, -1]
    return torch.stack(written, 1)


def last_true(mask_KS: Tensor) -> Tensor:
    """Index of the last True of every row."""
    place = torch.arange(mask_KS.shape[1], device=mask_KS.device)
    return (mask_KS * place).argmax(1)
