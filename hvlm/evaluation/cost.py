"""What an answer costs: floating-point operations, time and memory of reading one clip and one question about it."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from hvlm.data.batches import prompts_alone
from hvlm.functional import last_true
from hvlm.precision import autocast
from hvlm.types import Batch, Sequence

DECODED = 16  # words that are written to time them


class Cost(NamedTuple):
    """Of one clip with one question, from its pixels to the distribution of the answer's first token.

    prefill_flops: a multiplication and an addition are two; matrix products, convolutions and attention are counted.
    latency_ms: median over the repeats. kv_bytes: keys and values kept for the whole sequence, in the cache's room, two
    bytes a value. visual_tokens: how many of its places the video takes. parameters, fusion_parameters: of the whole
    model, and of its fusion. fusion_flops: what the fusion adds to the operations. frames: that were read.
    decode_tokens_per_s: words after the first, one at a time for this one question, median over the repeats; None where
    the head writes none.
    """

    prefill_flops: int
    latency_ms: float
    kv_bytes: int
    visual_tokens: int
    parameters: int
    fusion_parameters: int
    fusion_flops: int
    frames: int
    decode_tokens_per_s: float | None


class CountFlops(TorchDispatchMode):
    """Adds up the operations of everything inside ``with``, by torch's own formulas. (Its FlopCounterMode also follows
    the modules, and stumbles over parameters that are viewed without gradients; and it counts nothing for the CPU's
    attention.)"""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kind = func._overloadpacket
        if kind is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.total += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif kind in flop_registry:
            self.total += flop_registry[kind](*args, **(kwargs or {}), out_val=out)
        return out


@torch.no_grad()  # in inference mode the counter would see composite operations, which have no formula
def cost_of(model: nn.Module, batch: Batch, precision: str = "32-true", repeats: int = 5) -> Cost:
    """Measure the backbone on ``batch`` (one clip, one row), on the batch's device; leaves the model in eval mode.

    precision: one of ``hvlm.precision.DTYPES``.
    """
    if batch.num_clips != 1 or len(batch.clip_K) != 1:
        raise ValueError(f"{batch.num_clips} clips and {len(batch.clip_K)} rows: the cost is that of one and one")
    model.eval()
    device = batch.frames_BTCHW.device
    with autocast(device, precision):
        sequence = model.sequence(batch)
        fusion_flops = _flops_of_fusion(model, sequence)
        with CountFlops() as counter:
            model.next_token_logprobs(batch) if model.head.writes else model.output(batch)
        taken = []
        for _ in range(repeats):
            started = time.perf_counter()
            model.next_token_logprobs(batch) if model.head.writes else model.output(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - started)
        decoded = _decoded_per_s(model, batch, repeats) if model.head.writes else None
    length = int(sequence.mask_KL.sum())
    kv_bytes = model.kvcache.bytes(length, bytes_per_value=2)
    whole, fusion = (sum(p.numel() for p in part.parameters()) for part in (model, model.fusion))
    latency, frames = 1e3 * statistics.median(taken), int(batch.frame_mask_BT.sum())
    return Cost(counter.total, latency, kv_bytes, sequence.visual, whole, fusion, fusion_flops, frames, decoded)


def _decoded_per_s(model: nn.Module, batch: Batch, repeats: int) -> float:
    """As ``hvlm.evaluation.generate`` writes, but that no word ends the answer."""
    batch = model.routed(batch)
    sequence = model.sequence(prompts_alone(batch))
    words, taken = DECODED, []
    if model.language.learned_positions:
        words = max(1, min(words, model.language.max_positions - int(sequence.mask_KL.sum())))
    for _ in range(repeats):
        cache = model.kvcache.new()
        h = model.hidden(sequence, cache)
        token = model.head.logits(h[torch.arange(len(h), device=h.device), last_true(sequence.mask_KL)]).argmax(-1)
        int(token)  # waits for the device
        started = time.perf_counter()
        with model.adapting(batch):
            for _ in range(words):
                newest = model.language.hidden(model.language.embed(token[:, None]), cache=cache)[:, -1]
                token = model.head.logits(newest).argmax(-1)
        int(token)
        taken.append(time.perf_counter() - started)
    return words / statistics.median(taken)


def _flops_of_fusion(model: nn.Module, sequence: Sequence) -> int:
    """Of what came into it once more. A fusion that reads no text gets none, and does nothing that counts."""
    if sequence.unimodal is None:
        return 0
    layers = model.encode_video(sequence.batch).layers
    layers = tuple(layer.take(sequence.batch.clip_K) for layer in layers)
    with CountFlops() as counter:
        model.fusion(*sequence.unimodal, layers=layers)
    return counter.total
