"""The language model alone as a GGUF, for llama.cpp and what is built on it.

Only Llama's layout: GGUF has names and rules for each family, and this is the one that is tested. The file answers
texts; a video enters through rooms that GGUF has no place for.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from hvlm.errors import UserError
from hvlm.interop.hf_template import tokenizer_with_template
from hvlm.io.gguf_layout import CONTROL, NORMAL, UNUSED, WRITTEN, gguf_name, rotary_neighbours
from hvlm.model import VLM
from hvlm.text.chat import Chat
from hvlm.text.jinja import GUARD

DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# GGUF's word for how a byte-level BPE cuts a text first.
CUTS = {"smollm": {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}, "gpt-2": BYTES}
PLAIN = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}  # of Llama's layout, all that GGUF has

log = logging.getLogger(__name__)
logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)  # endianness, and a name that the file does not keep


def check(vlm: VLM) -> PreTrainedConfig:
    """The language model's config. UserError where it cannot be written."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError("task=gguf needs the package gguf: pip install 'hvlm[gguf]'")
    config = getattr(getattr(vlm.language, "model", None), "config", None)
    family = getattr(config, "model_type", type(vlm.language).__name__)
    if not isinstance(config, PreTrainedConfig) or family != "llama":
        raise UserError(
            f"task=gguf: the language model is a {family}; expected Llama's layout (language=smollm2_135m, or causal "
            "with model_type llama); task=export writes any"
        )
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    odd = {name: getattr(config, name, plain) for name, plain in PLAIN.items()}
    found = [f"{name}={value}" for name, value in odd.items() if value != PLAIN[name]]
    found += [f"rope_type={rotation}"] if rotation != "default" else []
    if found:
        raise UserError(f"task=gguf: the language model has {found[0]}, which is not written; task=export writes any")
    if not all(weight.is_floating_point() for weight in vlm.language.parameters()):
        raise UserError("task=gguf: the language model's weights are quantised; load it with language.quantize=null")
    if vlm.adapter.used is not None and vlm.adapter.merged is None:
        raise UserError(
            f"task=gguf: adapter {vlm.adapter.used!r} lies beside the weights; put it into them with "
            "adapter.merge=true, or leave it out with domain.adapter=off"
        )
    return config


def write(vlm: VLM, chat: Chat, path: Path) -> Path:
    """Write weights of float32, sizes and tokenizer. Returns ``path``.

    Byte-level BPE of SmolLM2's or GPT-2's kind goes along. For any other tokenizer the file says that it holds none,
    and the log, too: such a file takes ids.

    Raises:
        UserError: there is such a file already; or see ``check``.
    """
    config = check(vlm)
    import gguf

    draft = path.with_name(f".{path.name}.part")
    try:
        if os.path.lexists(path):
            raise UserError(f"out={path}: is there already; name another file, or delete that one")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)  # what lies there may be a link to somewhere else
    except OSError as error:
        raise UserError(f"out={path}: cannot be made ({error.strerror}); name another file") from error
    writer = gguf.GGUFWriter(draft, "llama")
    _sizes(writer, config, path.stem)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if not _tokenizer(writer, tokenizer_with_template(chat), chat, config.vocab_size):
        log.info(f"{path}: holds no tokenizer, since GGUF has no word for this one; it takes ids alone")
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in vlm.language.model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = tensor.detach().float().cpu()
        turned = heads.get(name.split(".")[-2])
        weight = weight if turned is None else rotary_neighbours(weight, turned)
        writer.add_tensor(gguf_name(name), weight.contiguous().numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _sizes(writer: Any, config: PreTrainedConfig, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _tokenizer(writer: Any, tokenizer: PreTrainedTokenizerFast, chat: Chat, size: int) -> bool:
    """Whether the tokenizer could be written."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model, cut = whole["model"], next((name for name, how in CUTS.items() if whole["pre_tokenizer"] == how), None)
    if model["type"] != "BPE" or cut is None or _changes_text(whole["normalizer"]):
        writer.add_tokenizer_model("none")
        return False
    added = {token["id"]: token for token in whole["added_tokens"]}
    names = {index: token for token, index in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    kinds = [NORMAL if i in names else UNUSED for i in range(size)]
    for index, token in added.items():
        kinds[index] = CONTROL if token["special"] else WRITTEN
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list([names.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(kinds)
    if merges:  # an empty list is none of GGUF's values
        writer.add_token_merges(merges)
    writer.add_eos_token_id(chat.end_id)
    writer.add_pad_token_id(chat.pad_id)
    writer.add_add_bos_token(False)  # the template writes it where there is one
    writer.add_chat_template(tokenizer.chat_template)
    return True


def _changes_text(normalizer: dict[str, Any] | None) -> bool:
    """Whether it does more than to take out the character that the chat template puts into what spells a token."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    return any(step.get("pattern") != {"String": GUARD} for step in steps)
