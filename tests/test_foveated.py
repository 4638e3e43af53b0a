"""The foveated connector's three readings against each other, and looks that keep nothing against looks that do."""

from __future__ import annotations

import pytest
import torch
from _tiny import ASKED, Case, Variant, batch_of, clip, model, side, two_clips
from torch import Tensor

from hvlm.functional import attention_weights, join_heads, split_heads
from hvlm.model import VLM
from hvlm.types import Wants

ORDERS = ("video_first", "question_first")
ENCODERS = ("convvit", "dinov2_tiny")
CLOSE = {"rtol": 0.0, "atol": 2e-5}


def foveated(order: str = "video_first", vision: str = "convvit", **changes) -> VLM:
    changes = {"mode": "coarse_fine", "standardise": False} | changes
    room = Variant("connector", "foveated", tuple(changes.items()))
    return model(Case(order, (Variant("vision", vision), room)))


@torch.no_grad()
def read(vlm: VLM, frames: int, mode: str, iterations: int = 1) -> Tensor:
    """Visual tokens of one clip with one question, [T, text_dim]."""
    batch = batch_of(clip(5, frames, ASKED[:1], vlm.order, side(vlm)), size=side(vlm))
    vlm.connector.fine_iterations = iterations
    with vlm.connector.using(mode):
        return vlm.visual_tokens(batch, vlm.language.embed(batch.input_ids_KS)).x_BSD[0]


@pytest.mark.parametrize("vision", ENCODERS)
@pytest.mark.parametrize("order", ORDERS)
def test_one_frame_is_read_alike_in_a_pass_and_in_a_stream(order: str, vision: str) -> None:
    vlm = foveated(order, vision)
    torch.testing.assert_close(read(vlm, 1, "coarse_fine"), read(vlm, 1, "autoregressive"), **CLOSE)


@pytest.mark.parametrize(
    ("order", "same_start"), [("video_first", False), ("video_first", True), ("question_first", False)]
)
def test_fine_passes_are_jacobi_steps_of_the_autoregressive_reading(order: str, same_start: bool) -> None:
    """n passes give the first n frames exactly, and one more where the first query is the static one."""
    frames = 6
    vlm = foveated(order)
    if same_start:
        with torch.no_grad():
            vlm.connector.q_init.copy_(vlm.connector.q_static)
    exact = read(vlm, frames, "autoregressive")
    for n in range(1, frames + 1):
        passes = read(vlm, frames, "coarse_fine", n)
        right = min(frames, n + same_start)
        torch.testing.assert_close(passes[:right], exact[:right], **CLOSE)
        if right < frames:
            assert (passes[right:] - exact[right:]).abs().max() > 1e-3, "the queries must matter, or this sees nothing"


def test_in_the_published_order_the_coarse_pass_knows_no_text() -> None:
    """States at visual tokens alone are those with text behind them, for the language model is causal."""
    vlm = foveated()
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    with torch.no_grad(), vlm.connector.using("coarse"):
        x, mask, v, *_ = vlm.sequence(batch)
        torch.testing.assert_close(
            vlm.language.hidden(x, mask)[:, :v], vlm.language.hidden(x[:, :v], mask[:, :v]), **CLOSE
        )


@pytest.mark.parametrize("vision", ENCODERS)
def test_a_shallow_look_is_one_cross_attention(vision: str) -> None:
    vlm = foveated(vision=vision)
    room = vlm.vision
    batch = batch_of(clip(5, 3, ASKED[:1], vlm.order, side(vlm)), size=side(vlm))
    query = torch.randn(3, 2, room.query_dim)
    with torch.no_grad():
        _, kv, *_ = room.encode(batch.frames_BTCHW, batch.frame_time_BT, batch.frame_mask_BT, Wants(kv=True))
        k, v = kv[-1]
        weights = attention_weights(split_heads(query @ room.query.query_in.weight.T, room.num_heads), k)
        norm = room.norm if vision == "convvit" else room.model.layernorm
        expected = room.query.query_out(norm(join_heads(weights @ v)))
        z, entropy = room.gaze(query, kv, shallow=True, return_entropy=True)
        deep, _ = room.gaze(query, kv)
    torch.testing.assert_close(z, expected, **CLOSE)
    assert float(entropy) == pytest.approx(float(torch.special.entr(weights).sum(-1).mean()), rel=1e-5)
    assert (deep - z).abs().max() > 1e-2
    assert not torch.equal(
        read(foveated(vision=vision), 3, "coarse"), read(foveated(vision=vision, depth="shallow"), 3, "coarse")
    )


@pytest.mark.parametrize("vision", ENCODERS)
@pytest.mark.parametrize("mode", ["coarse", "coarse_fine", "autoregressive"])
def test_long_clips_are_encoded_in_parts_with_the_same_result(vision: str, mode: str) -> None:
    vlm = foveated("question_first", vision, mode=mode)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    vlm.connector.monitor = True
    with torch.no_grad():
        whole, entropies = vlm.token_logprobs(batch), dict(vlm.connector.metrics)
        vlm.vision.frames_at_once = 3  # does not divide the 2 x T frames
        parts = vlm.token_logprobs(batch)
        assert vlm.encode_video(batch).tokens is None
    torch.testing.assert_close(parts, whole, **CLOSE)
    for name, value in entropies.items():
        torch.testing.assert_close(vlm.connector.metrics[name], value, **CLOSE)
    with torch.enable_grad():
        assert vlm.encode_video(batch).tokens is not None, "with gradients everything is kept"


def test_patches_of_long_clips_are_encoded_in_parts_too() -> None:
    vlm = model(Case("question_first", (Variant("connector", "patches"),)))
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    with torch.no_grad():
        whole = vlm.token_logprobs(batch)
        vlm.vision.frames_at_once = 3
        torch.testing.assert_close(vlm.token_logprobs(batch), whole, **CLOSE)


def test_a_mode_holds_for_a_while() -> None:
    vlm = foveated()
    with pytest.raises(ValueError, match="mode='fine'"), vlm.connector.using("fine"):
        pass
    with pytest.raises(RuntimeError), vlm.connector.using("coarse"):
        raise RuntimeError
    assert vlm.connector.mode == "coarse_fine"


def test_floating_point_frames_are_taken_as_normalised() -> None:
    for name in ENCODERS:
        vlm = foveated(vision=name)
        batch = batch_of(clip(5, 2, ASKED[:1], vlm.order, side(vlm)), size=side(vlm))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        normalised = batch._replace(frames_BTCHW=(batch.frames_BTCHW / 255 - mean) / std)
        with torch.no_grad():
            torch.testing.assert_close(vlm.token_logprobs(normalised), vlm.token_logprobs(batch), **CLOSE)
