"""From a Hugging Face config to a causal model's class: what can be served, and what is refused by name before work."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from hvlm.errors import UserError

SERVED = {"full_attention", "sliding_attention"}
# What a config has only where layers do what nobody can ask of them in embeddings, keys and values alone.
OTHERWISE = {
    "kv_lora_rank": "keys and values are compressed together",
    "num_kv_shared_layers": "layers read the keys of other layers",
    "hidden_size_per_layer_input": "every layer reads the token ids again",
    "attention_chunk_size": "attention stops at the borders of chunks",
}
POSITIVE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size", "sliding_window", "max_position_embeddings")  # fmt: skip
# Of a config, what says nothing about weights or what is computed from them.
ASIDE = {
    "architectures", "attn_implementation", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "eos_token_id", "id2label", "initializer_range", "label2id", "name_or_path", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "torch_dtype", "transformers_version",
    "use_cache", "_name_or_path", "pretraining_tp", "sep_token_id", "cls_token_id", "mask_token_id",
    "max_window_layers", "_attn_implementation_internal", "cache_implementation",
}  # fmt: skip


def config_from(values: Mapping[str, Any], where: str) -> PreTrainedConfig:
    """A Hugging Face config from plain values; a flat map may write ``rope_scaling.factor`` for what is inside.

    Raises:
        UserError: no or an unknown ``model_type``, or values that its config refuses. ``where`` names them.
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *way, last = key.split(".")
        inner = nested
        for name in way:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise UserError(f"{where}: {key}={value}: {name} is {inner!r} already, which holds nothing inside")
        inner[last] = value
    kind = nested.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(
            f"{where}: model_type={kind}: transformers knows no such model; expected that of a causal language model, "
            "such as llama, qwen2, qwen3, gemma2, gemma3_text, phi3, olmo2, mistral or smollm3"
        )
    try:
        return CONFIG_MAPPING[kind].from_dict(nested)
    except Exception as error:  # transformers' configs raise whatever their fields' checks raise
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error


def class_for(config: PreTrainedConfig, where: str, attention: str) -> type[PreTrainedModel]:
    """The class that reads embeddings causally and whose layers hand their attention to transformers' interface.

    Raises:
        UserError: the model is another kind of model, or something in it cannot be computed exactly here.
    """
    kind = config.model_type
    if config.get_text_config() is not config:
        raise UserError(
            f"{where}: {kind} is a multi-modal wrapper around a language model; give the language model alone"
        )
    if config.is_encoder_decoder:
        raise UserError(f"{where}: {kind} is an encoder-decoder; expected a causal language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{where}: {kind} is no causal language model of transformers")
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    kinds = set(getattr(config, "layer_types", None) or ())
    reason = next((text for name, text in OTHERWISE.items() if getattr(config, name, None)), None)
    if cls._is_stateful or kinds - SERVED:
        other = f" ({', '.join(sorted(kinds - SERVED))})" if kinds - SERVED else ""
        reason = f"its layers keep something else than keys and values{other}"
    elif not cls._supports_attention_backend:
        reason = "its attention cannot be given masks of our own"
    elif getattr(config, "use_bidirectional_attention", False):
        reason = "its tokens see later ones"
    if reason:
        raise UserError(f"{where}: {kind} cannot be served: {reason}")
    for name in POSITIVE:
        if (size := getattr(config, name, None)) is not None and size < 1:
            raise UserError(f"{where}: {name}={size}: expected 1 or more")
    softcap = getattr(config, "attn_logit_softcapping", None)
    if softcap is not None and attention == "sdpa":
        raise UserError(
            f"language.attention=sdpa: {kind} caps attention scores (attn_logit_softcapping={softcap:g}), which SDPA "
            "leaves out; use language.attention=auto, or eager"
        )
    if attention == "auto" and (dropout := getattr(config, "attention_dropout", 0.0)):
        raise UserError(
            f"language.attention=auto: {kind} drops attention weights (attention_dropout={dropout:g}), which only "
            "transformers' own does; use language.attention=sdpa"
        )
    return cls


def check_model(model: PreTrainedModel, where: str, attention: str) -> None:
    """What only the modules say. UserError as in ``class_for``."""
    kind = model.config.model_type
    accepted = inspect.signature(type(model.base_model).forward).parameters
    if missing := sorted({"inputs_embeds", "attention_mask", "position_ids"} - set(accepted)):
        raise UserError(f"{where}: {kind} cannot be served: it takes no {', '.join(missing)}")
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise UserError(f"{where}: {kind} cannot be served: its tokens see later ones")
    if attention != "eager" and any(hasattr(module, "sinks") for module in model.modules()):
        raise UserError(f"language.attention={attention}: {kind} has attention sinks; use language.attention=eager")


def differences(expected: PreTrainedConfig, found: PreTrainedConfig) -> list[str]:
    """``name=theirs (configured: ours)`` of what two configs say differently of weights or of what is computed."""
    ours, theirs = (_told(config) for config in (expected, found))
    return [
        f"{name}={theirs.get(name)} (configured: {ours.get(name)})"
        for name in sorted(ours)  # what ours does not know, its class does not read
        if ours.get(name) != theirs.get(name)
    ]


def positions_of(config: PreTrainedConfig) -> int:
    """The longest sequence that the model reads as published. Rotations that change for all places as soon as one of
    them lies beyond the original length would make a row depend on its neighbours and on what a cache had read, so
    there the original length is the limit."""
    ropes = getattr(config, "rope_parameters", None) or {}
    ropes = [r for r in ropes.values() if isinstance(r, Mapping)] or [ropes]
    limits = [
        rope["original_max_position_embeddings"]
        for rope in ropes
        if rope.get("rope_type") in ("longrope", "dynamic") and rope.get("original_max_position_embeddings")
    ]
    return min([config.max_position_embeddings, *limits])


def check_quantizer(quantize: str | None) -> None:
    """UserError where the packages of ``language.quantize`` are not installed."""
    missing = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if quantize is not None and missing:
        raise UserError(
            f"language.quantize={quantize}: {' and '.join(missing)} not installed; run `pip install bitsandbytes "
            "accelerate`, or use language.quantize=null"
        )


def _told(config: PreTrainedConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in ASIDE}
