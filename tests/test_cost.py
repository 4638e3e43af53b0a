"""What an answer costs is counted, not guessed."""

import pytest
import torch
import torch.nn.functional as F
from _tiny import Case, Variant, batch_of, model, side, two_clips

from hvlm.data.batches import one_row
from hvlm.evaluation.cost import CountFlops, cost_of


def cost(connector: str):
    vlm = model(Case("question_first", (Variant("connector", connector),)))
    batch = one_row(batch_of(*two_clips(vlm), size=side(vlm)), 0)
    return batch, vlm.kvcache, cost_of(vlm, batch, repeats=1)


@pytest.mark.parametrize(("connector", "per_frame"), [("foveated", 1), ("mean", 1), ("patches", 4)])
def test_places_and_bytes(connector, per_frame):
    batch, cache, found = cost(connector)
    assert found.visual_tokens == per_frame * batch.frame_mask_BT.shape[1]
    length = found.visual_tokens + int(batch.attention_mask_KS.sum())
    assert found.kv_bytes == cache.bytes(length, bytes_per_value=2)
    assert found.prefill_flops > 0 and found.latency_ms > 0 and found.decode_tokens_per_s > 0
    assert found.frames == int(batch.frame_mask_BT.sum())


def test_more_tokens_cost_more_operations():
    # One language pass over 16 patches against two over 4 tokens, at this size.
    assert cost("mean")[2].prefill_flops < cost("patches")[2].prefill_flops


def test_attention_is_counted():
    q = torch.randn(2, 4, 64, 32)
    with torch.no_grad(), CountFlops() as counter:
        F.scaled_dot_product_attention(q, q, q)
    assert counter.total == 2 * 4 * (2 * 64 * 64 * 32) * 2  # queries times keys, weights times values


def test_one_clip_one_question():
    vlm = model(Case("question_first", ()))
    with pytest.raises(ValueError, match="2 clips and 3 rows"):
        cost_of(vlm, batch_of(*two_clips(vlm), size=side(vlm)))
