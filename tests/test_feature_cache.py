"""A frozen encoder's features, kept: the same as encoding anew, once per frame, within the memory that was allowed."""

import pytest
import torch
from _tiny import Case, Variant, batch_of, model, side, two_clips

from hvlm.errors import UserError
from hvlm.feature_cache import FrozenFeatures, plan, shared
from hvlm.training import chain
from hvlm.types import Wants

KINDS = [Variant("connector", "foveated"), Variant("connector", "foveated", (("depth", "shallow"),)),
         Variant("connector", "mean"), Variant("connector", "patches")]  # fmt: skip


@pytest.mark.parametrize("vision", ["convvit", "dinov2_tiny"])
@pytest.mark.parametrize("connector", KINDS, ids=lambda v: v.id)
def test_equals_encoding_anew(connector, vision):
    vlm = model(Case("question_first", (connector, Variant("vision", vision))))
    batch = batch_of(*two_clips(vlm), size=side(vlm))  # the second clip is padded
    with torch.no_grad():
        expected = vlm.targets(batch).logits_MV
        c = vlm.connector
        vlm.features = FrozenFeatures(vlm.vision, vlm.wants(), vlm.wants_patches, c.shallow)
        first = vlm.targets(batch).logits_MV
        calls = []
        vlm.vision.encode = lambda *_, **__: calls.append(1)
        again = vlm.targets(batch).logits_MV
    assert torch.equal(first, again) and not calls
    assert len(vlm.features.frames) == int(batch.frame_mask_BT.sum())
    assert (first - expected).abs().max() < 0.03 * expected.abs().max()  # bfloat16
    frame = next(iter(vlm.features.frames.values()))
    bytes_ = sum(part.numel() * part.element_size() for part in frame if part is not None)
    vlm.vision.__dict__.pop("encode")
    assert vlm.features.bytes_per_frame() == bytes_


def test_gradients_reach_the_query_but_not_the_encoder():
    vlm = model(Case("question_first", ()))
    vlm.vision.requires_grad_(False)
    vlm.vision.query.requires_grad_(True)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    vlm.features = FrozenFeatures(vlm.vision, Wants(kv=True), False)
    vlm.targets(batch).logits_MV.logsumexp(-1).sum().backward()
    assert vlm.connector.llm_to_query.weight.grad.abs().sum() > 0
    assert vlm.vision.query.query_in.weight.grad.abs().sum() > 0


def test_too_large_is_refused_with_the_size():
    features = FrozenFeatures(model(Case("question_first", ())).vision, Wants(kv=True), True)
    assert "10 clips of 8 frames" in plan(features, 10, 8, 1.0)
    with pytest.raises(UserError, match=r"cache_gb=0.001: 1000 clips of 8 frames at .* MB need .* GB; raise it"):
        plan(features, 1000, 8, 0.001)


def test_from_the_command_line(needles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frozen = "stage.trainable={vision:0,connector:1e-3,heads:1e-3}"
    start = ["stage=vision", "stage.steps=2", "stage.batch_size=2", *needles]
    with pytest.raises(UserError, match="only a frozen encoder"):
        chain.run([*start, "run=warm", "vision.cache_gb=1"])
    chain.run([*start, frozen, "run=kept", "vision.cache_gb=1"])
    with pytest.raises(UserError, match="need"):
        chain.run([*start, frozen, "run=large", "vision.cache_gb=1e-6"])


def test_shared_by_equal_encoders_on_the_same_data():
    vlm = model(Case("question_first", (Variant("connector", "patches"),)))
    batch = batch_of(*two_clips(vlm), size=side(vlm))

    def made(name: str, gaze: bool = False) -> FrozenFeatures:
        return FrozenFeatures(vlm.vision, Wants(kv=gaze), True, name=name)

    with shared():
        first = made("a")
        first.encode(batch)
        assert made("a").frames is first.frames and len(first.frames) == int(batch.frame_mask_BT.sum())
        assert not made("b").frames and not made("a", gaze=True).frames
    assert not made("a").frames
