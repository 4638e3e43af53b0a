"""How GGUF names and orders the weights of a language model of Llama's layout."""

from __future__ import annotations

from torch import Tensor

# blk.3.<left>.weight -> model.layers.3.<right>.weight
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",  # only where it is not the embedding
}
NORMAL, CONTROL, WRITTEN, UNUSED = 1, 3, 4, 5  # types of tokens: special ones, added ones that are text, no token


def gguf_name(name: str) -> str:
    """GGUF's name of transformers' ``name``. KeyError where Llama's layout has none."""
    outer = {theirs: ours for ours, theirs in OUTER.items()}
    if name in outer:
        return outer[name]
    layer, _, part = name.removeprefix("model.layers.").partition(".")
    inner = {theirs: ours for ours, theirs in LAYER.items()}
    return f"blk.{layer}.{inner[part.removesuffix('.weight')]}.weight"


def rotary_halves(weight_OI: Tensor, heads: int) -> Tensor:
    """GGUF rotates neighbouring channels, transformers channels that lie half a head apart: put the rows back."""
    rows, columns = weight_OI.shape
    return weight_OI.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def rotary_neighbours(weight_OI: Tensor, heads: int) -> Tensor:
    """What ``rotary_halves`` undoes."""
    rows, columns = weight_OI.shape
    return weight_OI.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()
