"""The model's own words: decoding with a KV cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from functools import cache as once

import torch
from torch import Tensor

from hvlm.caching import PastKV
from hvlm.contracts import Benchmark
from hvlm.data.batches import prompts_alone
from hvlm.data.collate import Item, collate
from hvlm.evaluation.asking import Query
from hvlm.evaluation.beams import beam_search
from hvlm.evaluation.sampling import GREEDY, Sampling
from hvlm.evaluation.scores import Prediction
from hvlm.functional import last_true
from hvlm.model import VLM
from hvlm.precision import autocast
from hvlm.prompts import context
from hvlm.rebuild import Loaded
from hvlm.text.chat import Chat
from hvlm.types import Batch

log = logging.getLogger(__name__)


class InWords:
    """Answers in the model's own words, one for each distinct prompt of a clip.

    max_new_tokens: of an answer. choose: which word comes next.
    """

    open_questions = True

    def __init__(self, max_new_tokens: int = 32, choose: Sampling = GREEDY) -> None:
        self.max_new_tokens, self.choose = max_new_tokens, choose

    def __call__(
        self, loaded: Loaded, benchmark: Benchmark, clips: Several[Query], variant: str
    ) -> list[list[Prediction]]:
        """The predictions about each clip."""
        chat, inputs = loaded.chat, loaded.inputs
        prompts = [list(clip.answers) for clip in clips]
        items = []
        for clip, asked in zip(clips, prompts, strict=True):
            rows = [(*chat.encode(prompt, "", "last", inputs.order, **context(prompt)), {}) for prompt in asked]
            items.append(Item(clip.frames_TCHW, clip.time_T, rows, uid=clip.uid, motion=clip.motion_TYX))
        if not items:
            return []
        batch = collate(items, pad_id=chat.pad_id, size=inputs.size, motion=inputs.motion).to(loaded.device)
        with autocast(loaded.device, loaded.precision):
            texts = iter(generate(loaded.model, chat, batch, self.max_new_tokens, self.choose))
        written = [{prompt: next(texts) for prompt in asked} for asked in prompts]
        return [
            [p for question in clip.questions for p in benchmark.read(question, of_clip, variant)]
            for clip, of_clip in zip(clips, written, strict=True)
        ]


def generate(model: VLM, chat: Chat, batch: Batch, max_new_tokens: int, choose: Sampling = GREEDY) -> list[str]:
    """What the model answers to every text row, see ``generate_ids``."""
    return [chat.decode(ids) for ids in generate_ids(model, chat, batch, max_new_tokens, choose).tolist()]


@torch.inference_mode()
def generate_ids(
    model: VLM,
    chat: Chat,
    batch: Batch,
    max_new_tokens: int,
    choose: Sampling = GREEDY,
    told: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Ids [K, N], N <= max_new_tokens: what the model answers to every text row of ``batch``, whose own answer (if
    it has one) is cut off first.

    The prompt goes through once; every further token costs one position. What is kept for that is the matter of the
    model's ``kvcache``. The model's mode (training or not), part by part, is the same afterwards. told: see ``write``.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    batch = model.routed(batch)
    sequence = model.sequence(prompts_alone(batch))
    cache = model.kvcache.new()
    h = model.hidden(sequence, cache)
    newest = h[torch.arange(len(h), device=h.device), last_true(sequence.mask_KL)]
    with model.adapting(_with_beams(batch, choose.num_beams)):
        written_KN = write(model, chat, cache, newest, max_new_tokens, choose, told)
    for module, mode in modes.items():
        module.training = mode
    return written_KN


def write(
    model: VLM,
    chat: Chat,
    cache: PastKV,
    newest_KD: Tensor,
    max_new_tokens: int,
    choose: Sampling = GREEDY,
    told: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """One token after the other (or whole answers, with beams), until every row has ended: ids [K, N],
    N <= max_new_tokens.

    cache: of what was read so far; grows. newest_KD: the state at each row's last valid token. choose: which token.
    told: is called with each token of the rows [K] as soon as it is chosen; not with beams, which choose last.
    Of a model with learned positions an answer ends where they do, which is said once.
    """
    if choose.num_beams > 1:
        ending = sorted(chat.end_ids), chat.end_id
        most = _room(model, cache, max_new_tokens)
        return beam_search(model, cache, newest_KD, most, choose.num_beams, *ending)
    written = []
    for token_K in words(model, chat, cache, newest_KD, max_new_tokens, choose):
        written.append(token_K)
        if told is not None:
            told(token_K)
    return torch.stack(written, 1)


def words(
    model: VLM, chat: Chat, cache: PastKV, newest_KD: Tensor, max_new_tokens: int, choose: Sampling = GREEDY
) -> Iterator[Tensor]:
    """``write`` without beams, each token of the rows [K] as soon as it is chosen."""
    newest, most = newest_KD, _room(model, cache, max_new_tokens)
    ended = torch.zeros(len(newest_KD), dtype=torch.bool, device=newest_KD.device)
    ends = torch.tensor(sorted(chat.end_ids), device=newest_KD.device)
    for i in range(most):
        token = choose(model.head.logits(newest))
        token = torch.where(ended, chat.end_id, token)
        ended = ended | torch.isin(token, ends)
        yield token
        if i + 1 == most or ended.all():
            break
        newest = model.language.hidden(model.language.embed(token[:, None]), cache=cache)[:, -1]


def _room(model: VLM, cache: PastKV, max_new_tokens: int) -> int:
    """How many tokens may be written, at most ``max_new_tokens``."""
    if model.language.learned_positions and cache.next_K1 is not None:
        left = model.language.max_positions - int(cache.next_K1.max()) + 1  # the last word is not read any more
        if left < max_new_tokens:
            _warn_of_end(model.language.max_positions)
            return max(left, 1)
    return max_new_tokens


def _with_beams(batch: Batch, num_beams: int) -> Batch:
    """Every row's adapter weights, as often as it has beams."""
    if num_beams == 1 or batch.adapter_K is None:
        return batch
    return batch._replace(adapter_K=batch.adapter_K.repeat_interleave(num_beams))


@once
def _warn_of_end(positions: int) -> None:
    log.warning(
        f"the language model has learned {positions} positions, and answers end there: some are shorter than "
        "max_new_tokens; show fewer frames, or ask less"
    )
