"""The model's own words: greedy decoding with a KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from hvlm.caching import PastKV
from hvlm.chat import Chat
from hvlm.functional import last_true
from hvlm.model import VLM
from hvlm.types import Batch


@torch.inference_mode()
def generate(model: VLM, chat: Chat, batch: Batch, max_new_tokens: int) -> list[str]:
    """What the model answers to every text row of ``batch``, whose answer (if it has one) is cut off first.

    The prompt goes through once; every further token costs one position. What is kept for that is the matter of the
    model's ``kvcache``. The model's mode (training or not), part by part, is the same afterwards.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    prompt_KS = batch.attention_mask_KS & (batch.loss_mask_KS.cumsum(1) == 0)
    sequence = model.sequence(batch._replace(attention_mask_KS=prompt_KS, loss_mask_KS=prompt_KS & False))
    cache = model.kvcache.new()
    h = model.hidden(sequence, cache)
    newest = h[torch.arange(len(h), device=h.device), last_true(sequence.mask_KL)]
    with model.adapting(batch):
        written_KN = greedy(model, chat, cache, newest, max_new_tokens)
    for module, mode in modes.items():
        module.training = mode
    return [chat.decode(ids) for ids in written_KN.tolist()]


def greedy(model: VLM, chat: Chat, cache: PastKV, newest_KD: Tensor, max_new_tokens: int) -> Tensor:
    """The likeliest token, again and again, until every row has ended: ids [K, N], N <= max_new_tokens.

    cache: of what was read so far; grows. newest_KD: the state at each row's last valid token.
    """
    newest = newest_KD
    ended = torch.zeros(len(newest_KD), dtype=torch.bool, device=newest_KD.device)
    written: list[Tensor] = []
    for _ in range(max_new_tokens):
        token = model.head.logits(newest).argmax(-1)
        token = torch.where(ended, chat.end_id, token)
        ended = ended | (token == chat.end_id)
        written.append(token)
        if ended.all():
            break
        newest = model.language.hidden(model.language.embed(token[:, None]), cache=cache)[:, -1]
    return torch.stack(written, 1)
