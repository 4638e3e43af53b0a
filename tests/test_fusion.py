"""Fusion of video and text: what it may know, what it writes, what it gives to heads, and its fast paths."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from _tiny import ASKED, ORDERS, Case, Variant, batch_of, chat, clip, model, side, two_clips

from hvlm import assembly
from hvlm.checks.leaks import assert_nothing_leaks
from hvlm.data.batches import one_row
from hvlm.errors import UserError
from hvlm.evaluation.cost import cost_of
from hvlm.evaluation.generate import generate
from hvlm.functional import attention_weights, split_heads
from hvlm.fusion._cross import best
from hvlm.fusion._levels import coarse_to_fine
from hvlm.fusion._local import LocalFusion
from hvlm.fusion._pool import Pool
from hvlm.types import Tokens
from hvlm.vision._encoded import spread

WRITES = Variant("fusion", "hivilt", (("write_text", True),))
MEAN = Variant("connector", "mean")


def masks(k, visual, words):
    g = torch.Generator().manual_seed(7)
    v, t = torch.rand(k, visual, generator=g) > 0.2, torch.rand(k, words, generator=g) > 0.2
    return v | (torch.arange(visual) == 0), t | (torch.arange(words) == 0)


# ----------------------------------------------------------------------------------------------------- in the corridor


@pytest.mark.parametrize("order", ORDERS)
def test_words_that_are_written_back_know_nothing_of_the_answer(order: str) -> None:
    vlm = model(Case(order, (WRITES, MEAN)))
    for loss in ("answer", "all"):
        assert_nothing_leaks(vlm, loss)


@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_what_is_written_back_is_the_same_when_the_model_writes(order: str) -> None:
    """Training and writing read the same row, and heads find both sides before and after."""
    vlm = model(Case(order, (WRITES, MEAN)))
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    trained = vlm.sequence(batch)
    prompt = batch.attention_mask_KS & (batch.loss_mask_KS.cumsum(1) == 0)
    writing = vlm.sequence(batch._replace(attention_mask_KS=prompt, loss_mask_KS=prompt & False))
    both = trained.mask_KL & writing.mask_KL
    torch.testing.assert_close(trained.x_KLD[both], writing.x_KLD[both])
    assert generate(vlm, chat(), batch, 3)
    k, width = trained.unimodal.prompt_KP.shape
    plain = vlm.language.embed(batch.input_ids_KS)[:, :width]
    there = trained.unimodal.prompt_KP
    assert torch.equal(trained.unimodal.text_KPD[there], plain[there])
    assert trained.fused.pooled_KD.shape == (k, vlm.language.dim)
    words = trained.x_KLD.gather(1, trained.text_place_KS[:, :width, None].expand(-1, -1, vlm.language.dim))
    assert torch.equal(words[there], trained.fused.text_KPD[there])
    assert not torch.allclose(words[there], plain[there])
    other = vlm.sequence(batch._replace(frames_BTCHW=255 - batch.frames_BTCHW))
    assert torch.equal(other.unimodal.text_KPD, trained.unimodal.text_KPD), "the text alone knows no video"
    assert not torch.allclose(other.fused.text_KPD, trained.fused.text_KPD)
    some = trained.text_rows(torch.tensor([2, 0]))
    assert torch.equal(some.fused.pooled_KD, trained.fused.pooled_KD[[2, 0]])
    assert torch.equal(some.unimodal.text_KPD, trained.unimodal.text_KPD[[2, 0]])


@pytest.mark.parametrize("kvcache", ["streaming", "duo", "snapkv", "expected", "infinipot"])
def test_caches_keep_what_was_fused(kvcache: str) -> None:
    """What is laid out is what goes in, whatever is kept of it: with room for all of it, the same words come out."""
    case = Case("question_first", (WRITES, MEAN))
    vlm, other = model(case, seed=3), model(Case("question_first", (WRITES, MEAN, Variant("kvcache", kvcache))), seed=3)
    other.load_state_dict(vlm.state_dict(), strict=False)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    assert generate(other, chat(), batch, 4) == generate(vlm, chat(), batch, 4)


@torch.no_grad()
def test_a_row_without_a_video_is_the_same_beside_rows_with_one() -> None:
    vlm = model(Case("question_first", (WRITES, MEAN)))
    text, shown = clip(1, None, ASKED[:1], vlm.order, side(vlm)), clip(2, 3, ASKED[1:2], vlm.order, side(vlm))
    alone = vlm.token_logprobs(batch_of(text, size=side(vlm)))[0]
    beside = vlm.token_logprobs(batch_of(text, shown, size=side(vlm)))[0]
    torch.testing.assert_close(beside[: len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_a_stage_that_scores_the_question_refuses_states_that_know_it() -> None:
    align = Variant("stage", "align").settings | {"steps": 1, "trainable": {"language": 1e-3}}
    with pytest.raises(UserError, match=r"fusion.write_text=true: stage=align learns to write the question"):
        assembly.stage({"stage": align}, model(Case("question_first", (WRITES, MEAN))), None)
    with pytest.raises(UserError, match="use fusion=none"):
        model(
            Case("question_first", (Variant("fusion", "hivilt", (("local_fusion", False), ("global_fusion", False))),))
        )


@pytest.mark.parametrize(
    "changes",
    [(("local_fusion", False),), (("global_fusion", False),), (("pooling", "adaptive"), ("layers", 2), ("gate", 0.0))],
    ids=str,
)
def test_parts_that_are_left_out_leave_no_weights_behind(changes) -> None:
    vlm = model(Case("question_first", (Variant("fusion", "hivilt", changes), MEAN))).train()
    vlm.token_logprobs(batch_of(*two_clips(vlm), size=side(vlm))).sum().backward()
    assert [n for n, p in vlm.fusion.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gates_and_gradients_of_both_sides_are_measured() -> None:
    vlm = model(Case("question_first", (Variant("fusion", "hivilt"), MEAN))).train()
    vlm.fusion.monitor = True
    vlm.token_logprobs(batch_of(*two_clips(vlm), size=side(vlm))).sum().backward()
    found = vlm.fusion.metrics
    assert set(found) == {"local_0_gate_v", "local_0_gate_t", "spread_gate", "gradient_vision", "gradient_text"}
    assert found["gradient_vision"] > 0 and found["gradient_text"] > 0


@pytest.mark.parametrize("reads", ["fusion", "both"])
def test_a_classifier_may_read_the_state_of_both(reads: str) -> None:
    head = Variant("head", "classify", (("reads", reads),))
    vlm = model(Case("question_first", (Variant("fusion", "hivilt"), MEAN, head))).train()
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    scores = vlm.output(batch)
    scores.sum().backward()
    assert scores.shape == (3, len(vlm.head.labels)) and vlm.fusion.whole.mlp[-1].weight.grad.any()
    text = vlm.output(batch_of(clip(1, None, ASKED[:1], vlm.order, side(vlm)), size=side(vlm)))
    assert torch.isfinite(text).all()
    with pytest.raises(UserError, match=f"head.reads={reads}: hvlm.fusion.none.NoFusion makes no state"):
        model(Case("question_first", (MEAN, head)))


LAYERS = Variant("fusion", "progressive", (("pyramid", "layers"), ("stages", 3), ("write_text", True)))


@pytest.mark.parametrize("vision", ["convvit", "dinov2_tiny"])
def test_a_pyramid_of_the_encoders_layers_reaches_the_fusion(vision: str) -> None:
    vlm = model(Case("question_first", (LAYERS, MEAN, Variant("vision", vision))))
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    patches = vlm.encode_video(batch)
    assert len(patches.layers) == 2 and patches.layers[0].x_BSD.shape == (2, 16, vlm.vision.dim)
    assert torch.equal(patches.layers[0].mask_BS, batch.frame_mask_BT.repeat_interleave(4, 1))
    with torch.no_grad():
        whole = vlm.token_logprobs(batch)
        vlm.vision.frames_at_once = 3
        torch.testing.assert_close(vlm.token_logprobs(batch), whole, rtol=1e-4, atol=1e-5)
    vlm.train().token_logprobs(batch).sum().backward()
    assert [n for n, p in vlm.fusion.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert model(Case("question_first", ())).wants().layers == 0, "nobody else pays"
    assert_nothing_leaks(vlm.eval(), "answer")
    with pytest.raises(UserError, match="vision.cache_gb=.*the encoder's layers"):
        assembly.features_for(vlm, None)
    encode = vlm.vision.encode
    vlm.vision.encode = lambda *of: encode(*of)._replace(layers=())  # somebody's own encoder, which knows no layers
    with pytest.raises(UserError, match="reads patches of 2 of the encoder's layers, and .* gives 0"):
        vlm.encode_video(batch)


def test_layers_are_spread_over_the_depth() -> None:
    assert [spread(11, n) for n in (0, 1, 2, 3)] == [[], [5], [3, 7], [2, 5, 8]]
    assert spread(1, 2) == [0, 0]


def test_cells_are_means_over_place_and_time() -> None:
    x = torch.arange(2 * 4 * 16, dtype=torch.float32).reshape(1, 8, 16, 1)
    mask = torch.arange(8)[None] < 7
    tokens = Tokens.of_frames(x, torch.arange(8.0)[None], mask, (4, 4))
    coarse, finer = coarse_to_fine(tokens, 3)
    assert coarse.mask_KC.shape == (1, 2) and finer.mask_KC.shape == (1, 4 * 4)
    torch.testing.assert_close(coarse.mean(tokens.x_BSD)[0, :, 0], torch.stack([x[0, :4].mean(), x[0, 4:7].mean()]))
    corner = x[0, :2].reshape(2, 4, 4)[:, :2, :2].mean()
    torch.testing.assert_close(finer.mean(tokens.x_BSD)[0, 0, 0], corner)
    back = finer.at_tokens(finer.mean(tokens.x_BSD))
    assert back.shape == tokens.x_BSD.shape and back[0, 0, 0] == corner


def test_a_fusions_weights_and_operations_are_counted() -> None:
    found = []
    for name in ("none", "sparse", "hivilt"):
        vlm = model(Case("question_first", (Variant("fusion", name), MEAN)))
        found.append((cost_of(vlm, one_row(batch_of(*two_clips(vlm), size=side(vlm)), 0), repeats=1), vlm))
    (none, _), (sparse, _), (dense, vlm) = found
    assert none.fusion_parameters == none.fusion_flops == 0
    assert dense.fusion_parameters == sum(p.numel() for p in vlm.fusion.parameters()) == sparse.fusion_parameters
    assert dense.parameters == none.parameters + dense.fusion_parameters
    assert dense.prefill_flops == none.prefill_flops + dense.fusion_flops and dense.fusion_flops > 0


# -------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("update", ["chosen", "all"])
@pytest.mark.parametrize("text_side", [True, False])
def test_computing_what_is_chosen_equals_masking_the_rest(update: str, text_side: bool) -> None:
    torch.manual_seed(0)
    layer = LocalFusion(16, 2, top_k=3, update=update, compute_from=1, text_side=text_side)
    v, t = torch.randn(2, 40, 16), torch.randn(2, 6, 16)
    mask_v, mask_t = masks(2, 40, 6)
    found = []
    for run in (layer, layer.reference):
        v.requires_grad_(), t.requires_grad_()
        out = run(v, t, mask_v, mask_t)
        out = [x[m] for x, m in zip(out, (mask_v, mask_t), strict=True)]
        wanted = [v, t, *layer.parameters()]
        found.append([*out, *torch.autograd.grad(sum((x * x.detach().sin()).sum() for x in out), wanted)])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    if update == "chosen":
        learned = (found[0][0] - v[mask_v]).abs().amax(-1) > 0
        assert 0 < learned.sum() < len(learned), "some tokens are passed by"


def test_every_query_keeps_its_best_keys_and_all_keys_are_dense_attention() -> None:
    torch.manual_seed(0)
    v, t = torch.randn(2, 9, 16), torch.randn(2, 5, 16)
    mask_v, mask_t = masks(2, 9, 5)
    dense = LocalFusion(16, 2)
    for k in (9, 50):
        for fast in (1, 512):
            sparse = LocalFusion(16, 2, top_k=k, compute_from=fast)
            sparse.load_state_dict(dense.state_dict())
            # The layer itself goes the dense way then; the sparse one gives the same.
            for run in (sparse, partial(sparse._sparse, fast=fast == 1)):
                both = run(v, t, mask_v, mask_t), dense(v, t, mask_v, mask_t)
                for a, b, there in zip(*both, (mask_v, mask_t), strict=True):
                    torch.testing.assert_close(a[there], b[there], rtol=1e-5, atol=1e-5)
    # The definition, pair by pair: of the mean over the heads of q · k, the highest.
    cross = dense.t2v
    q, k = split_heads(cross.q(t), 2), split_heads(cross.kv(v).chunk(2, -1)[0], 2)
    mean = (q @ k.mT).mean(1).masked_fill(~mask_v.unsqueeze(1), -torch.inf)
    kept = best(cross.scores(t, v), mask_v, 3)
    assert torch.equal(kept, (mean >= mean.topk(3).values[..., -1:]))
    torch.testing.assert_close(cross.scores(t, v), (q @ k.mT).sum(1))
    torch.testing.assert_close(dense.v2t.scores(v, t), (
        split_heads(dense.v2t.q(v), 2) @ split_heads(dense.v2t.kv(t).chunk(2, -1)[0], 2).mT
    ).sum(1))  # fmt: skip
    weights = attention_weights(q, k, kept.unsqueeze(1))
    assert ((weights > 0).sum(-1) == kept.sum(-1).unsqueeze(1)).all()


@pytest.mark.parametrize("compute_from", [1, 512])
def test_what_a_row_gets_does_not_depend_on_the_rows_beside_it(compute_from: int) -> None:
    """Whether the keys are fewer than top_k is each row's own matter, whatever the padding."""
    torch.manual_seed(0)
    dense = LocalFusion(16, 2)
    sparse = LocalFusion(16, 2, top_k=7, compute_from=compute_from)
    sparse.load_state_dict(dense.state_dict())
    v, t = torch.randn(2, 40, 16), torch.randn(2, 6, 16)
    mask_v = torch.arange(40) < torch.tensor([[40], [5]])
    mask_t = torch.arange(6) < torch.tensor([[6], [4]])
    for mask in (mask_t, mask_t & torch.tensor([[True], [False]])):
        found = sparse(v, t, mask_v, mask)
        alone = dense(v[1:, :5], t[1:, :4], mask_v[1:, :5], mask[1:, :4])
        torch.testing.assert_close(found[0][1:, :5], alone[0], rtol=1e-5, atol=1e-5)
        words = mask[1, :4]  # what stands where no word is means nothing
        torch.testing.assert_close(found[1][1, :4][words], alone[1][0][words], rtol=1e-5, atol=1e-5)
        assert torch.equal(found[0][1, 5:], v[1, 5:])


@pytest.mark.parametrize("kind", ["mean", "max", "attention", "adaptive"])
def test_pooling_sees_valid_places_alone(kind: str) -> None:
    torch.manual_seed(0)
    pool, x = Pool(8, kind), torch.randn(2, 5, 8)
    mask = torch.tensor([[True, True, True, False, False], [False] * 5])
    found = pool(x, mask)
    torch.testing.assert_close(found[:1], pool(x[:1, :3], mask[:1, :3]))
    assert torch.isfinite(found).all() and not found[1].any()
    if kind in ("mean", "max"):
        expected = x[0, :3].mean(0) if kind == "mean" else x[0, :3].amax(0)
        torch.testing.assert_close(found[0], expected)
