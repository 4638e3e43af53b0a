"""The router: what it learns, how sure it is, and which adapter weights the rows of a batch get."""

from __future__ import annotations

import pytest
import torch
from _rooms import LowRank, with_adapter
from _tiny import ASKED, Case, Variant, batch_of, chat, clip, model, side

from hvlm.errors import UserError
from hvlm.evaluation.generate import generate
from hvlm.evaluation.routing import as_plain
from hvlm.evaluation.streaming import StreamingReader
from hvlm.gaze import encode_frames
from hvlm.io.checkpoint import assert_plain
from hvlm.model import VLM
from hvlm.router import Route, Router, fit, pooled
from hvlm.types import NOTHING_ELSE

DOMAINS = ["cooking", "general", "sports"]
ADAPTERS = {"sports": "sports", "cooking": "chef"}
NAMES = ["sports", "chef"]
SIZES = torch.tensor([1.0, 30.0, 0.02, 1.0, 300.0, 0.1])  # of features: none may weigh more for being large


def plain(order: str = "question_first") -> VLM:
    return model(Case(order, (Variant("connector", "foveated"), Variant("vision", "dinov2_tiny"))), 0)


def clouds(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of three kinds, and the kinds."""
    noise = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    middles = 4 * torch.eye(3, 6) + 10  # far from 0, as features may be
    return SIZES * (middles[labels] + torch.randn(count, 6, generator=noise)), labels


def test_it_learns_the_tags_and_is_less_sure_where_they_meet() -> None:
    router = fit(*clouds(120), DOMAINS, ADAPTERS)
    x, labels = clouds(300, seed=1)
    probability = router.probabilities(x)
    assert probability.shape == (300, 3) and torch.allclose(probability.sum(1), torch.ones(300))
    assert (probability.argmax(1) == labels).float().mean() > 0.97
    between = (x[0] + x[1]) / 2
    assert router.probabilities(between[None]).max() < router.probabilities(x[:1]).max()
    again = fit(*clouds(120), DOMAINS, ADAPTERS)
    assert torch.equal(again.weight, router.weight)


def test_a_domain_without_weights_goes_to_the_base() -> None:
    router = fit(*clouds(120), DOMAINS, ADAPTERS)
    routes = router.routes(SIZES * (4 * torch.eye(3, 6) + 10))
    assert [(r.domain, r.adapter) for r in routes] == [("cooking", "chef"), ("general", "base"), ("sports", "sports")]
    assert all(0.5 < r.confidence <= 1 for r in routes)


def test_it_travels_as_plain_values() -> None:
    router = fit(*clouds(60), DOMAINS, ADAPTERS)
    plain_values = router.to_plain()
    assert_plain(plain_values)
    back = Router.from_plain(plain_values, "x.ckpt")
    x, _ = clouds(20, seed=3)
    assert torch.equal(back.probabilities(x), router.probabilities(x)) and back.adapters == ADAPTERS
    changes: list[dict] = [
        {"bias": torch.zeros(2)}, {"mean": [1.0]}, {"mean": torch.full((6,), torch.nan)}, {"scale": torch.zeros(6)},
        {"weight": torch.zeros(3, 6, 1)}, {"weight": torch.zeros(3, 6, dtype=torch.int64)}, {"domains": [1, 2, 3]},
        {"domains": "abc"}, {"adapters": ["sports"]}, {"adapters": {"sports": 1}}, {"prompts": {"sports": None}},
        {name: torch.zeros(1).expand(*of, 10**12) for name, of in (("mean", ()), ("scale", ()), ("weight", (3,)))},
    ]  # fmt: skip
    for damaged in ({}, None, *({**plain_values, **change} for change in changes)):
        with pytest.raises(UserError, match=r"x\.ckpt: its router is damaged"):
            Router.from_plain(damaged, "x.ckpt")


def test_one_of_another_model_is_refused() -> None:
    router = fit(*clouds(60), DOMAINS, ADAPTERS)
    router.check(6, NAMES, "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt: its router reads 6 features of a clip, and this encoder gives 8"):
        router.check(8, NAMES, "x.ckpt")
    with pytest.raises(UserError, match=r"sends clips to 'chef', which is no set .* here \(sports\)"):
        router.check(6, ["sports"], "x.ckpt")


@torch.no_grad()
def test_pooled_features_are_mean_and_spread_of_the_clips_own_patches() -> None:
    vlm = plain()
    size = side(vlm)
    items = [clip(seed, frames, [ASKED[seed]], vlm.order, size) for seed, frames in ((0, 3), (1, 2))]
    together = pooled(vlm.vision, batch_of(*items, size=size))
    assert together.shape == (2, 2 * vlm.vision.dim)
    for i, (item, frames) in enumerate(zip(items, (3, 2), strict=True)):
        shown = batch_of(item, size=size).frames_BTCHW[0, :frames]
        x_ND = encode_frames(vlm.vision, shown, NOTHING_ELSE).tokens.x_BSD.flatten(0, 1)
        by_hand = torch.cat([x_ND.mean(0), x_ND.std(0, correction=0)])
        torch.testing.assert_close(together[i], by_hand, rtol=0, atol=1e-4)
        torch.testing.assert_close(
            together[i : i + 1], pooled(vlm.vision, batch_of(item, size=size)), rtol=0, atol=1e-5
        )
    vlm.vision.frames_at_once = 2
    torch.testing.assert_close(pooled(vlm.vision, batch_of(*items, size=size)), together, rtol=0, atol=1e-5)


def routed(order: str = "question_first") -> tuple[VLM, list]:
    """A model of two specialists whose router tells two clips apart, and the clips."""
    vlm = with_adapter(plain(order), LowRank(names=NAMES, name="sports"))
    items = [clip(seed, 3, [ASKED[seed]], order, side(vlm)) for seed in range(3)]
    x = pooled(vlm.vision, batch_of(*items, size=side(vlm)))
    vlm.router = fit(x, torch.tensor([0, 1, 2]), DOMAINS, ADAPTERS)
    return vlm, items


@torch.no_grad()
def test_each_clip_is_answered_by_the_specialist_that_the_router_picks() -> None:
    vlm, items = routed()
    batch = batch_of(*items, size=side(vlm))
    logp = vlm.token_logprobs(batch)
    router, vlm.router = vlm.router, None
    assert torch.equal(logp, vlm.token_logprobs(batch._replace(adapter_K=torch.tensor([1, -1, 0]))))
    assert not torch.equal(logp, vlm.token_logprobs(batch))
    words = generate(vlm, chat(), batch._replace(adapter_K=torch.tensor([1, -1, 0])), 4)
    vlm.router = router
    assert generate(vlm, chat(), batch, 4) == words
    assert [router.said[uid].adapter for uid in batch.uids] == ["chef", "base", "sports"]


@torch.no_grad()
def test_who_has_chosen_is_not_routed_and_texts_go_to_the_base() -> None:
    vlm, items = routed()
    batch = batch_of(*items, size=side(vlm))
    chosen = batch._replace(adapter_K=torch.tensor([0, 0, 0]))
    assert vlm.routed(chosen) is chosen
    blind = batch._replace(frame_mask_BT=batch.frame_mask_BT & False)
    assert vlm.routed(blind).adapter_K.tolist() == [-1, -1, -1]


def test_a_stream_cannot_be_routed_before_it_is_seen() -> None:
    vlm, _ = routed("video_first")
    with pytest.raises(UserError, match="what has not been seen cannot be routed; say whose specialist"):
        StreamingReader(vlm, chat())


def test_a_route_is_written_down_with_four_digits() -> None:
    expected = {"domain": "sports", "adapter": "runner", "confidence": 0.6667}
    assert as_plain(Route("sports", "runner", 2 / 3)) == expected
