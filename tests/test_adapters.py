"""What adapters are promised, shown with one that exists in tests alone."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from _rooms import LowRank, with_adapter
from _tiny import ASKED, Case, Variant, batch_of, chat, clip, model, per_row, side, two_clips

from hvlm import assembly
from hvlm.errors import UserError
from hvlm.evaluation.generate import generate
from hvlm.evaluation.sampling import Sampling
from hvlm.io.checkpoint import load_into
from hvlm.model import VLM, named_parts
from hvlm.training.start import new_rooms

NAMES = ["sports", "news"]


def plain(order: str = "question_first", connector: str = "foveated", seed: int = 0) -> VLM:
    return model(Case(order, (Variant("connector", connector), Variant("vision", "dinov2_tiny"))), seed)


def adapted(order: str = "question_first", connector: str = "foveated", parts=("language",), **settings) -> VLM:
    return with_adapter(plain(order, connector), LowRank(parts=parts, names=NAMES, name="sports", **settings))


def one_name(name: str) -> VLM:
    return with_adapter(plain(), LowRank(name=name))


def test_base_weights_keep_their_names_and_the_adapter_has_its_own() -> None:
    base, vlm = plain().state_dict(), adapted(parts=("language", "vision")).state_dict()
    own = {name for name in vlm if name not in base}
    assert set(base) <= set(vlm) and all(torch.equal(vlm[name], base[name]) for name in base)
    assert all(name.split(".")[:2] in (["adapter", "sports"], ["adapter", "news"]) for name in own)
    path = "language.model.model.layers.0.self_attn.q_proj"
    assert {f"adapter.sports.{path}.0.weight", f"adapter.news.{path}.1.weight"} <= own
    assert any(name.startswith("adapter.news.vision.model.encoder") for name in own)


def test_a_fresh_adapter_changes_nothing_and_every_room_stands_before_it_is_attached() -> None:
    base = plain()
    batch = batch_of(*two_clips(base), size=side(base))
    expected = per_row(base, batch)
    seen: list[set[str]] = []

    class Looks(LowRank):
        def attach(self, model: torch.nn.Module) -> None:
            seen.append({name for name, _ in model.named_children()})
            super().attach(model)

    fresh = with_adapter(base, Looks(names=NAMES, name="news"), loud=False)
    for a, b in zip(per_row(fresh, batch), expected, strict=True):
        assert torch.equal(a, b)
    rooms = {"vision", "merger", "connector", "attention", "fusion", "language", "adapter", "head"}
    VLM(order=base.order, **{n: m for n, m in base.named_children() if n != "adapter"}, adapter=Looks())
    assert all(rooms <= names for names in seen) and len(seen) == 2


def test_its_weights_are_a_part_that_trains_alone() -> None:
    vlm = with_adapter(plain(), LowRank(names=NAMES, name="news"), loud=False).train()
    parts = named_parts(vlm)
    assert all(name.startswith("adapter.") for name, _ in parts["adapter"])
    names = [name for members in parts.values() for name, _ in members]
    assert sorted(names) == sorted(name for name, _ in vlm.named_parameters())
    settings = Variant("stage", "sft").settings | {"trainable": {"adapter": 0.05}, "steps": 5, "batch_size": 2}
    stage = assembly.room(settings, model=vlm)
    stage.freeze()
    before = {name: value.clone() for name, value in vlm.state_dict().items()}
    optimizer = stage.configure_optimizers()["optimizer"]
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    vlm.eval()  # running statistics are no weights
    losses = []
    for _ in range(8):
        total = stage.losses(batch).terms["text"].total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < losses[0]
    moved = {name for name, value in vlm.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("adapter.news.") for name in moved), "the other set is not this one's business"


@torch.no_grad()
@pytest.mark.parametrize("order", ["question_first", "video_first"])
def test_each_row_uses_the_weights_that_it_names(order: str) -> None:
    vlm = adapted(order)
    size = side(vlm)
    items = [clip(seed, 3, [ASKED[seed]], order, size) for seed in range(3)]
    chosen = torch.tensor([0, 1, 1])
    together = per_row(vlm, batch_of(*items, size=size)._replace(adapter_K=chosen))
    for row, item in enumerate(items):
        alone = [per_row(vlm, batch_of(item, size=size)._replace(adapter_K=torch.tensor([n])))[0] for n in (0, 1)]
        torch.testing.assert_close(together[row], alone[chosen[row]], rtol=0, atol=1e-5)
        assert (alone[0] - alone[1]).abs().max() > 1e-3, "the two must differ, or this test sees nothing"
    default = per_row(vlm, batch_of(*items, size=size))
    torch.testing.assert_close(default[0], together[0], rtol=0, atol=1e-5)  # "sports" is the one that trains


@pytest.mark.parametrize("beams", [1, 3])
def test_writing_uses_the_weights_of_the_row(beams: int) -> None:
    vlm, choose = adapted(), Sampling(num_beams=beams)
    for parameter in vlm.language.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    items = [clip(seed, 3, [ASKED[seed]], vlm.order, side(vlm)) for seed in range(3)]
    together = generate(
        vlm, chat(), batch_of(*items, size=side(vlm))._replace(adapter_K=torch.tensor([1, 0, 1])), 6, choose
    )
    alone = [
        generate(vlm, chat(), batch_of(item, size=side(vlm))._replace(adapter_K=torch.tensor([n])), 6, choose)[0]
        for item, n in zip(items, (1, 0, 1), strict=True)
    ]
    other = generate(
        vlm, chat(), batch_of(*items, size=side(vlm))._replace(adapter_K=torch.tensor([0, 1, 0])), 6, choose
    )
    assert together == alone and together != other


@torch.no_grad()
@pytest.mark.parametrize("connector", ["foveated", "patches"])
def test_an_adapted_encoder_follows_the_clips(connector: str) -> None:
    """At once and in parts, where each part holds frames of other clips."""
    vlm = adapted("video_first", connector, parts=("vision",))
    size = side(vlm)
    items = [clip(seed, 3, [ASKED[seed]], vlm.order, size) for seed in range(3)]
    chosen = torch.tensor([1, 0, 1])
    together = batch_of(*items, size=size)._replace(adapter_K=chosen)
    alone = [batch_of(i, size=size)._replace(adapter_K=chosen[n : n + 1]) for n, i in enumerate(items)]
    expected = [per_row(vlm, one)[0] for one in alone]
    other = per_row(vlm, together._replace(adapter_K=1 - chosen))
    for frames_at_once in (100, 4):
        vlm.vision.frames_at_once = frames_at_once
        for found, want, wrong in zip(per_row(vlm, together), expected, other, strict=True):
            torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
            assert (found - wrong).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("order", "connector", "parts", "refused"),
    [
        ("question_first", "patches", ("vision",), True),
        ("question_first", "patches", ("language",), False),
        ("question_first", "foveated", ("language",), False),
        ("video_first", "foveated", ("language",), True),  # the language model steers the gaze once for the clip
        ("video_first", "mean", ("language",), False),
    ],
)
@torch.no_grad()
def test_rows_of_a_clip_that_disagree_are_refused_where_they_share_a_pass(
    order: str, connector: str, parts: tuple[str, ...], refused: bool
) -> None:
    vlm = adapted(order, connector, parts)
    batch = batch_of(clip(1, 3, ASKED[:2], order, side(vlm)), size=side(vlm))._replace(adapter_K=torch.tensor([0, 1]))
    if refused:
        with pytest.raises(ValueError, match=r"adapter_K=\[0, 1\]: rows of one clip"):
            per_row(vlm, batch)
        return
    found = per_row(vlm, batch)
    for row in range(2):
        only = batch_of(clip(1, 3, [ASKED[row]], order, side(vlm)), size=side(vlm))
        (alone,) = per_row(vlm, only._replace(adapter_K=torch.tensor([row])))
        torch.testing.assert_close(found[row], alone, rtol=0, atol=1e-5)


def test_choices_that_cannot_be_followed_are_refused() -> None:
    vlm = adapted()
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    with pytest.raises(ValueError, match="2 sets of adapter weights .sports, news."):
        vlm.token_logprobs(batch._replace(adapter_K=torch.tensor([0, 1, 2])))
    with pytest.raises(ValueError, match="0 sets of adapter weights .none."):
        plain().token_logprobs(batch._replace(adapter_K=torch.tensor([0, 0, 0])))
    vlm.language.gradient_checkpointing = True
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        vlm.token_logprobs(batch._replace(adapter_K=torch.tensor([0, 0, 1])))
    with pytest.raises(ValueError, match="'tutorials' is not among them"):
        LowRank(names=NAMES, name="tutorials")
    with vlm.adapter.using(language=torch.tensor([0, 1])), pytest.raises(ValueError, match="2 rows choose"):
        vlm.language.hidden(torch.zeros(3, 2, vlm.language.dim))


def test_it_travels_through_a_file_and_a_copy_is_its_own() -> None:
    vlm, other = adapted(), with_adapter(plain(seed=1), LowRank(names=NAMES, name="sports"), loud=False)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    file = io.BytesIO()
    torch.save(vlm.state_dict(), file)
    file.seek(0)
    load_into(other, torch.load(file, weights_only=True), "the file")
    for which in (None, torch.tensor([1, 1, 0])):
        for a, b in zip(*(per_row(m, batch._replace(adapter_K=which)) for m in (vlm, other)), strict=True):
            assert torch.equal(a, b)
    expected, twin = per_row(vlm, batch), copy.deepcopy(vlm)
    for parameter in vlm.adapter.parameters():
        torch.nn.init.zeros_(parameter)
    for a, b, c in zip(expected, per_row(twin, batch), per_row(vlm, batch), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_start_may_lack_it_or_know_it_under_another_name() -> None:
    for start, begins in ((plain(), "adapter.news"), (one_name("news"), None)):
        weights, fresh = start.state_dict(), one_name("news")
        new = new_rooms(fresh, weights)
        assert {".".join(name.split(".")[:2]) for name in new} == ({begins} if begins else set())
        load_into(fresh, weights | new, "a start")
        assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in weights.items())
    weights, both = one_name("news").state_dict(), adapted()
    new = new_rooms(both, weights)
    assert new and all(name.startswith("adapter.sports.") for name in new)
    load_into(both, weights | new, "a start")
    with pytest.raises(UserError, match="adapter.news.*unknown here"):  # what was learned is not left out unsaid
        load_into(one_name("sports"), weights | new_rooms(one_name("sports"), weights), "a start")


def test_features_of_an_adapted_encoder_are_not_kept() -> None:
    with pytest.raises(UserError, match="the adapter changes what the encoder makes of a frame"):
        assembly.features_for(adapted(parts=("vision",)), None)


def test_it_is_attached_on_the_meta_device() -> None:
    with torch.device("meta"):
        vlm = assembly.model(Case("question_first", ()).config, chat(), weights=False)
        with_adapter(vlm, LowRank(), loud=False)
    assert all(p.is_meta for p in vlm.adapter.parameters()) and list(vlm.adapter.parameters())
