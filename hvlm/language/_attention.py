"""``hvlm.functional.attend`` as an attention implementation of transformers, under the name in ``IMPLEMENTATION``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from hvlm.caching import Held, PastKV, Scores
from hvlm.functional import attend

IMPLEMENTATION = "hvlm"


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    key_bias: Tensor | None = None,
    kept: PastKV | None = None,
    masks: Mapping[int | None, Tensor | None] | None = None,
    reached: set[int] | None = None,
    beside: Callable[[Tensor, float | None], Tensor] | None = None,
    **_: Any,  # transformers passes on what other implementations need: position ids, flags of output recording
) -> tuple[Tensor, None]:
    """query [B, H, S, d], key and value [B, G, L, d], attention_mask [B, 1, S, L] or None = causal -> [B, S, H, d].

    What the language model's own forward is called with arrives here. key_bias, softcap: see ``attend``. kept: the
    cache that key and value come from, which knows itself what may be seen of them; attention_mask is nothing then.
    masks: those by the layer's window (None: a layer without one), in place of attention_mask.
    reached: the layers that all this came to; each adds its number.
    beside: of the queries and the scale, what is added to what they find (``hvlm.adapter.prefix``).
    """
    if beside is not None:
        rest = {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window, "softcap": softcap}
        rest |= {"s_aux": s_aux, "key_bias": key_bias, "kept": kept, "masks": masks, "reached": reached}
        found, _ = attention_forward(module, query, key, value, attention_mask, **rest)
        return found + beside(query, scaling), None
    if reached is not None:
        reached.add(module.layer_idx)
    if dropout or s_aux is not None:
        what = "attention dropout" if dropout else "attention with sinks"
        raise NotImplementedError(f"{what} is not implemented here; use language.attention=sdpa or eager")
    if isinstance(key, Held):  # heads of different lengths; whoever called the model need not know
        kept = key.cache
        kept.announced(module.layer_idx, attention_mask)
    if kept is not None:
        how = Scores(scaling, sliding_window, softcap)
        return kept.attend(module.layer_idx, query, key, value, how).transpose(1, 2), None
    if masks is not None:
        attention_mask = masks[sliding_window]
    causal = attention_mask is None and module.is_causal
    return attend(query, key, value, attention_mask, causal, scaling, key_bias, softcap).transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, attention_forward)
# Without a mask function of the same name transformers would silently drop the padding mask.
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
