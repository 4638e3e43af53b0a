"""Pure functions that more than one group of rooms uses."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Forward + backward of attention under bf16 autocast on a CPU with AMX (Xeon, torch 2.13, one thread, milliseconds):
#   rows x heads x queries x keys x width     SDPA bf16   SDPA fp32   matmul bf16
#   64 x 4 x 17 x 17 x 32                        39.9        6.2         5.7
#   48 x 4 x 20 x 20 x 32                        20.9        3.3         3.5
#   8 x 9 x 48 x 48 x 64                         17.8        5.8         4.3
#   8 x 6 x 257 x 257 x 64                       58.4       56.8        26.5
#   1 x 4 x 2048 x 2048 x 64                    110.6      169.1       104.1
# Without gradients, and in fp32, plain SDPA is the fastest or close to it. Hence the two limits:
_FP32_UP_TO = 32  # keys; below, SDPA in fp32 (the gaze of a query over 16 patches: 2.7 against 4.8 and 3.6 ms)
_MATMUL_UP_TO = 1024  # keys; above, SDPA, whose memory does not grow with queries x keys

LOG2_E = math.log2(math.e)


def wide(dtype: torch.dtype) -> torch.dtype:
    """For sums and logarithms: float32, or ``dtype`` where that is wider."""
    return torch.promote_types(dtype, torch.float32)


def dtype_here(x: Tensor) -> torch.dtype:
    """What a linear layer gives for ``x``: autocast's dtype where it is on, but of float64 it keeps away."""
    device = x.device.type
    autocast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else x.dtype


def lowest(dtype: torch.dtype) -> float:
    """The score of a key that is not there. Finite, so that a row without any key does not become NaN, and low enough
    to leave no weight; several add up without leaving float16."""
    return max(-1e30, torch.finfo(dtype).min / 4)


def exp_(x: Tensor) -> Tensor:
    """eˣ in place of x; may be differentiated. In float32 on a CPU as a power of two: on AMD processors torch's exp,
    which is MKL's, takes 4.5 times as long as its exp2, and nearly three times as long as both steps."""
    slow = x.dtype == torch.float32 and x.device.type == "cpu"
    return x.mul_(LOG2_E).exp2_() if slow else x.exp_()


def evenly(rows: slice, at_most: int) -> list[slice]:
    """Stretches of nearly the same length. A last one of a few tokens would cost a whole reading of the weights."""
    length = rows.stop - rows.start
    many = -(-length // -(-length // at_most)) if length else 1
    return [slice(i, min(i + many, rows.stop)) for i in range(rows.start, rows.stop, many)]


def transposed(x: Tensor) -> Tensor:
    """[..., R, C] -> [..., C, R], the second factor of a batched product or its first.

    A CPU's product of bfloat16, or of float32 at less than the highest precision, copies what is not dense, and a
    transposed view number by number. Rows that are copied before take less than a tenth of that.
    """
    copies = x.dtype == torch.bfloat16 or (
        x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    )
    return x.contiguous().mT if copies and not x.is_cuda else x.mT


def split_heads(x_BND: Tensor, num_heads: int) -> Tensor:
    """[B, N, D] -> [B, H, N, D / H]."""
    b, n, d = x_BND.shape
    return x_BND.view(b, n, num_heads, d // num_heads).transpose(1, 2)


def join_heads(x_BHNd: Tensor) -> Tensor:
    """[B, H, N, d] -> [B, N, H * d]."""
    return x_BHNd.transpose(1, 2).flatten(2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Softmax attention, softmax(scale * q k^T + mask) v, by the fastest exact way for the device and the dtype.

    q: [B, H, Q, d]. k, v: [B, G, N, d] with H a multiple of G (grouped heads: each serves H / G query heads in turn).
    mask: bool, True where a key may be seen, or a float that is added to the scores; [B, N] (one per key) or anything
        that broadcasts to [B, H, Q, N].
    causal: the last query sees all keys, the one before all but the last, and so on (queries are the newest tokens).
    scale: 1 / sqrt(d) by default.
    key_bias: float [B, N], added to all scores of a key. Where attention is causal and has no mask it costs little: it
        travels as one more channel of the keys, which a channel of ones in the queries picks up.
    softcap: scores become softcap * tanh(score / softcap) before masks and biases, as in Gemma 2. No fused kernel does
        that, so memory grows with queries x keys.
    Returns [B, H, Q, d] in the dtype of ``v`` (or of autocast). Masked keys weigh exactly zero and get zero gradients.
    A query that may see no key at all gets finite, meaningless values: mask its output.
    """
    if mask is not None and mask.dim() == 2:
        mask = mask[:, None, None, :]
    queries, keys = q.shape[2], k.shape[2]
    if key_bias is not None and causal and mask is None and queries == keys and softcap is None:
        return _with_bias_channel(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, key_bias)
    if key_bias is not None:
        bias = key_bias[:, None, None, :]
        if mask is not None:
            mask = torch.where(mask, bias, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else mask + bias
        else:
            mask = bias
    causal = causal and queries > 1  # a single newest token sees everything
    if softcap is not None:
        mask = with_causal(mask, queries, keys, q.device) if causal else mask
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        return attention_weights(q, k, mask, scale, softcap).to(v.dtype) @ v
    if causal and (mask is not None or queries != keys):  # SDPA's own causal flag knows the square, unmasked case only
        mask, causal = with_causal(mask, queries, keys, q.device), False

    device = q.device.type
    if device != "cpu":
        if mask is not None:  # with a mask, grouped heads would fall back to the slow kernel
            k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        grouped = k.shape[1] != q.shape[1]
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)

    if queries == 1 and k.shape[1] != q.shape[1] and (mask is None or mask.dim() == 4 and mask.shape[1] == 1):
        # The query heads that share a KV head stand as its queries: a token is written without copying what is kept.
        rows = q.squeeze(2).unflatten(1, (k.shape[1], -1))
        return attend(rows, k, v, mask, scale=scale).flatten(1, 2).unsqueeze(2)
    half = torch.is_autocast_enabled(device) or q.dtype != torch.float32
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    if not (half and learns) or keys > _MATMUL_UP_TO:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    if keys <= _FP32_UP_TO:
        with torch.autocast(device, enabled=False):
            if mask is not None and mask.is_floating_point():
                mask = mask.float()
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, is_causal=causal, scale=scale)
        return out.to(v.dtype)
    if causal:
        mask = with_causal(mask, queries, keys, q.device)
    return attention_weights(q, k, mask, scale).to(v.dtype) @ v


def _with_bias_channel(q: Tensor, k: Tensor, v: Tensor, scale: float, key_bias_BN: Tensor) -> Tensor:
    """Causal attention with scores scale * (q · k + 1 · bias / scale); the channels are filled up to a multiple of
    8."""
    width = q.shape[-1]
    more = 8 - width % 8
    channel = (key_bias_BN / scale).to(k.dtype)[:, None, :, None].expand(*k.shape[:-1], 1)
    k = torch.cat([k, F.pad(channel, (0, more - 1))], -1)
    q = torch.cat([q, F.pad(torch.ones_like(q[..., :1]), (0, more - 1))], -1)
    return attend(q, k, F.pad(v, (0, more)), causal=True, scale=scale)[..., :width]


def attention_weights(
    q: Tensor, k: Tensor, mask: Tensor | None = None, scale: float | None = None, softcap: float | None = None
) -> Tensor:
    """The weights alone, [B, H, Q, N]; ``k`` with as many heads as ``q``, ``mask`` 4-D and ``softcap`` as in
    ``attend``."""
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask.to(scores.dtype)
    return scores.softmax(-1)


def repeat_heads(x_BGNd: Tensor, num_heads: int) -> Tensor:
    """[B, G, N, d] -> [B, num_heads, N, d]: each grouped head stands for num_heads / G neighbouring query heads."""
    groups = x_BGNd.shape[1]
    return x_BGNd if groups == num_heads else x_BGNd.repeat_interleave(num_heads // groups, dim=1)


@torch.no_grad()
def attention_entropy(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Entropy of the attention weights in nats (0 = one key, ln N = blind), a float32 scalar: mean over rows, heads and
    queries. Shapes as in ``attend``. For watching, not for training: no gradient."""
    with torch.autocast(q.device.type, enabled=False):
        weights = attention_weights(q.float(), repeat_heads(k, q.shape[1]).float(), mask)
    return torch.special.entr(weights).sum(-1).mean()


def visible(mask_KL: Tensor, new: int) -> Tensor:
    """[K, 1, S, L]: which of all L places each of the S = ``new`` last ones may see.

    Valid ones up to itself. Padding also sees itself, so that no row of the softmax is empty; nobody sees padding.
    """
    total = mask_KL.shape[1]
    if new == 1:
        seen = mask_KL.clone()
        seen[:, -1] = True
        return seen[:, None, None]
    place = torch.arange(total, device=mask_KL.device)
    own = place[total - new :, None] == place
    before = place[total - new :, None] > place
    return ((mask_KL[:, None] & before) | own).unsqueeze(1)


def within(position_KL: Tensor, new: int, window: int) -> Tensor:
    """bool [K, 1, S, L]: which of all L places stand fewer than ``window`` positions before each of the S = ``new``
    last ones (or after it: what is causal, another mask says)."""
    return (position_KL[:, None, -new:, None] - position_KL[:, None, None, :]) < window


def last_true(mask_KS: Tensor) -> Tensor:
    """Index of the last True of every row (0 where there is none)."""
    place = torch.arange(mask_KS.shape[1], device=mask_KS.device)
    return (mask_KS * place).argmax(1)


def with_causal(mask: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor:
    """``mask`` (bool or float, anything that broadcasts to [..., Q, N]) where also no query sees keys after itself, the
    last query being at the last key."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    if mask is None:
        return seen
    if mask.dtype == torch.bool:
        return mask & seen
    return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


def scored_in_parts(
    logits: Callable[[Tensor], Tensor], states_MD: Tensor, ids_M: Tensor, at_once: int
) -> tuple[Tensor, Tensor]:
    """How likely tokens are, without the logits of more than ``at_once`` of them at a time: going back, a part's logits
    are computed again. (``torch.nn.functional.linear_cross_entropy`` knows a weight and a bias; here logits may be
    scaled and capped, and whoever calls weighs every token, as DPO does.)

    Args:
        logits: states [..., D] -> float32 [..., vocabulary].
        states_MD: one place before each token.
        ids_M: the tokens.
        at_once: tokens of a part; as many as there are, or more, is the plain way.

    Returns:
        log p of each token, float32 [M], and whether it is the likeliest of all, bool [M].
    """

    def part(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        found = logits(states)
        return -F.cross_entropy(found, ids, reduction="none"), found.detach().argmax(-1) == ids

    if len(ids_M) <= at_once:
        return part(states_MD, ids_M)
    parts = -(-len(ids_M) // at_once)
    pairs = zip(states_MD.tensor_split(parts), ids_M.tensor_split(parts), strict=True)
    if torch.is_grad_enabled():
        each = [checkpoint(part, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
    else:
        each = [part(*pair) for pair in pairs]
    logp, likeliest = zip(*each, strict=True)
    return torch.cat(logp), torch.cat(likeliest)
