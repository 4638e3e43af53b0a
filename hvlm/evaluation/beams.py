"""Beam search: transformers' own ``generate``, reading through any of our caches."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from hvlm.caching import PastKV
from hvlm.model import VLM

# The name that transformers changed within version 5.
_CACHE = (
    "cache" if "cache" in signature(GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"
)


def beam_search(
    model: VLM, cache: PastKV, newest_KD: Tensor, max_new_tokens: int, num_beams: int, end_ids: list[int], pad_id: int
) -> Tensor:
    """The likeliest of the answers that ``num_beams`` beams find, per row: ids [K, N], N <= ``max_new_tokens``, with
    ``pad_id`` after an answer's end. An answer's likelihood is the mean over its tokens (transformers' length penalty
    of 1). What is written takes ``num_beams`` times the cache.

    Args:
        model: whose language model and head write.
        cache: of what was read so far; is used up.
        newest_KD: the state at each row's last valid token.
        max_new_tokens: where to stop at the latest.
        num_beams: answers that are followed at the same time.
        end_ids: tokens with which an answer ends.
        pad_id: what follows them.
    """
    cache.batch_repeat_interleave(num_beams)
    writer = _Writer(model, newest_KD.repeat_interleave(num_beams, 0))
    how = GenerationConfig(
        num_beams=num_beams, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end_ids, pad_token_id=pad_id,
        length_penalty=1.0, use_cache=True,
    )  # fmt: skip
    # One token that nobody reads: what came before the answer is in the cache, and the state after it is known.
    begin = torch.full((len(newest_KD), 1), pad_id, dtype=torch.long, device=newest_KD.device)
    seen = torch.ones_like(begin)
    found = writer.generate(begin, attention_mask=seen, generation_config=how, **{_CACHE: cache})
    return found[:, 1:]


class _Writer(PreTrainedModel, GenerationMixin):
    """The language model after a prompt, as ``generate`` asks for the next token."""

    config_class = PreTrainedConfig
    main_input_name = "input_ids"

    def __init__(self, model: VLM, newest_RD: Tensor) -> None:
        super().__init__(PreTrainedConfig(attn_implementation="eager"))
        self.vlm = model
        self._newest: Tensor | None = newest_RD

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        *_: Any,
        attention_mask: Tensor | None = None,
        cache: PastKV | None = None,
        past_key_values: PastKV | None = None,
        **__: Any,
    ) -> dict[str, Any]:
        """Of the ids the newest alone: the cache has read the others, and knows their padding."""
        return {"input_ids": input_ids[:, -1:], _CACHE: past_key_values if cache is None else cache}

    def forward(
        self, input_ids: Tensor, past_key_values: PastKV | None = None, cache: PastKV | None = None, **_: Any
    ) -> CausalLMOutputWithPast:
        """Scores of the next token [R, 1, vocabulary] after ``input_ids`` [R, 1]; the first time after the prompt."""
        held = past_key_values if cache is None else cache
        if self._newest is None:
            language = self.vlm.language
            state_R1D = language.hidden(language.embed(input_ids), cache=held)
        else:
            state_R1D, self._newest = self._newest[:, None], None
        return CausalLMOutputWithPast(logits=self.vlm.head.logits(state_R1D), **{_CACHE: held})
