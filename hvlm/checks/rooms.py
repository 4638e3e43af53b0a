"""What holds of a single room of each group, with neighbours of random tokens. Each check takes a ``Variant``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hvlm import assembly
from hvlm.checks import heads
from hvlm.checks.models import CLOSE, shared_model
from hvlm.checks.tiny import ASKED, Case, Variant, batch_of, clip, model, side, target, two_clips
from hvlm.config.schema import parameters
from hvlm.contracts import Stage
from hvlm.data.views import Pairs, PatchLabels
from hvlm.errors import UserError
from hvlm.types import Fused, Patches, Tokens

DIM, HEADS = 16, 2


class Skipped(Exception):
    """What a check says that cannot say anything of a room."""


def visual(frames: int, per_frame: tuple[int, int] = (2, 2), seed: int = 0, padded_to: int | None = None) -> Patches:
    """One clip of random tokens; frames beyond ``frames`` are noise with mask False."""
    t = padded_to or frames
    n = per_frame[0] * per_frame[1]
    g = torch.Generator().manual_seed(seed)
    x = torch.cat([torch.randn(1, frames, n, DIM, generator=g), torch.randn(1, t - frames, n, DIM, generator=g)], 1)
    time = (torch.arange(t)[None] + 0.5) / 4
    mask = torch.arange(t)[None] < frames
    tokens = Tokens.of_frames(x, time, mask, per_frame)
    score = (torch.arange(t * n)[None] * 37 % 101) / 101
    return Patches(tokens._replace(saliency_BS=score, motion_BS=1 - score), time, mask)


def moved(room: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in room.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return room.eval()


def merger(variant: Variant) -> None:
    """Sizes sum to the tokens that came in (a room that drops tokens says so with ``drops``); nobody sees padding."""
    room = moved(assembly.room(variant.settings))
    came = visual(3)
    out = room(came)
    assert torch.equal(came.tokens.x_BSD, visual(3).tokens.x_BSD), "it changes the tokens that it is given, in place"
    b, s, _ = out.tokens.x_BSD.shape
    assert all(field is None or field.shape[:2] == (b, s) for field in out.tokens)
    assert s <= came.tokens.x_BSD.shape[1] and torch.equal(out.frame_mask_BT, came.frame_mask_BT)
    total = (out.tokens.size_BS * out.tokens.mask_BS).sum()
    if not room.drops:
        assert total == came.tokens.mask_BS.sum()
    assert total > 0
    padded = room(visual(3, padded_to=5)).tokens
    for a, b in zip(padded, out.tokens, strict=True):
        if a is not None:
            torch.testing.assert_close(a[padded.mask_BS], b[out.tokens.mask_BS], **CLOSE)


def attention(variant: Variant) -> None:
    """As many tokens as came in, and what stands in padded places reaches nobody; ``readout=k`` keeps every k-th."""
    room = moved(assembly.room(variant.settings, dim=DIM, num_heads=HEADS))
    came = visual(3).tokens
    out, _ = room(came)
    assert torch.equal(came.x_BSD, visual(3).tokens.x_BSD), "it changes the tokens that it is given, in place"
    assert out.x_BSD.shape == came.x_BSD.shape and torch.equal(out.mask_BS, came.mask_BS)
    padded, _ = room(visual(3, padded_to=5).tokens)
    torch.testing.assert_close(padded.x_BSD[padded.mask_BS], out.x_BSD[out.mask_BS], **CLOSE)
    if "readout" not in parameters(target(variant.settings)):
        return
    half, _ = assembly.room(variant.settings | {"readout": 2}, dim=DIM, num_heads=HEADS)(came)
    length = came.x_BSD.shape[1]
    last = torch.arange(1, length + 1, 2).clamp(max=length - 1)
    assert torch.equal(half.yx_BS2, came.yx_BS2[:, last])
    try:
        assembly.room(variant.settings | {"readout": 0}, dim=DIM, num_heads=HEADS)
    except UserError as error:
        assert "attention.readout=0" in str(error)
    else:
        raise AssertionError("readout=0 must be refused by name")


def fusion(variant: Variant) -> None:
    """As many tokens and words as came in; neither padded tokens nor padded text reach anybody; rows without a word or
    without a frame are finite; patches in another order give the same in that order."""
    room = moved(assembly.room(variant.settings, dim=DIM, num_heads=HEADS, vision_dim=DIM))
    text = torch.randn(1, 5, DIM, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(5)[None] < 3
    text = text * mask.unsqueeze(-1)

    def fused(came: Tokens, text: Tensor = text, mask: Tensor = mask) -> Fused:
        return room(came, text, mask, (came,) * room.wants_layers)

    came = visual(3).tokens
    out = fused(came)
    assert isinstance(out, Fused), "a fusion gives Fused(tokens, text_KPD, pooled_KD)"
    assert torch.equal(came.x_BSD, visual(3).tokens.x_BSD), "it changes the tokens that it is given, in place"
    assert out.tokens.x_BSD.shape == came.x_BSD.shape and torch.equal(out.tokens.mask_BS, came.mask_BS)
    assert out.text_KPD is not None or not room.writes_text, "it says writes_text, and makes no states of the text"
    padded = fused(visual(3, padded_to=5).tokens, text + 7 * ~mask.unsqueeze(-1))
    shorter = fused(came, text[:, :3], mask[:, :3])
    for other in (padded, shorter):
        seen = other.tokens.x_BSD[other.tokens.mask_BS]
        torch.testing.assert_close(seen, out.tokens.x_BSD[out.tokens.mask_BS], **CLOSE)
        if out.text_KPD is not None:
            assert not other.text_KPD[:, 3:].any()
            torch.testing.assert_close(other.text_KPD[:, :3], out.text_KPD[:, :3], **CLOSE)
        if out.pooled_KD is not None:
            torch.testing.assert_close(other.pooled_KD, out.pooled_KD, **CLOSE)
    order = torch.arange(came.mask_BS.shape[1]).flip(0)
    turned = fused(came.each(order))
    torch.testing.assert_close(turned.tokens.x_BSD, out.tokens.x_BSD[:, order], **CLOSE)
    unseen = came._replace(mask_BS=came.mask_BS & False)
    for empty in (
        fused(came, text * 0, mask & False), fused(came, text[:, :0], mask[:, :0]), fused(unseen),
        fused(visual(1, (1, 1)).tokens),
    ):  # fmt: skip
        assert all(x is None or torch.isfinite(x).all() for x in (empty.tokens.x_BSD, *empty[1:]))


def adapter(variant: Variant) -> None:
    """The base weights and their names stay, and its own are called ``adapter.<name>...``."""
    plain = model(Case("question_first", ())).state_dict()
    adapted = model(Case("question_first", (variant,))).state_dict()
    assert set(plain) == {name for name in adapted if not name.startswith("adapter.")}
    assert {name: value.shape for name, value in plain.items()}.items() <= {
        n: v.shape for n, v in adapted.items()
    }.items()


def head(variant: Variant) -> None:
    """What ``hvlm.checks.heads`` says of every head; the logits of one that writes are float32 under autocast, too."""
    for check in heads.CHECKS:
        check(variant)
    vlm = shared_model(Case("question_first", (variant,)))
    if vlm.head.writes:
        h = torch.randn(5, vlm.language.dim)
        with torch.autocast("cpu", torch.bfloat16):
            assert vlm.head.logits(h).dtype == torch.float32


def stage(variant: Variant) -> None:
    """A step from a batch with videos and from one of text alone: finite, with gradients in the parts that train and in
    no others, and as many units as ``units`` counts."""
    kind: type[Stage] = target(variant.settings)
    vlm = model(Case("question_first", tuple(Variant(group, word) for group, word in kind.rooms.items())))
    view = kind.view
    if isinstance(view, Pairs | PatchLabels):
        raise Skipped(f"it learns from {view.name}, which take a data set: try it with debug=fast_dev_run")
    made = assembly.stage({"stage": variant.settings}, vlm, None).train()
    videos = batch_of(*two_clips(vlm, made.scored), size=side(vlm))
    text = batch_of(clip(1, None, ASKED, vlm.order, side(vlm), made.scored), size=side(vlm))
    for batch in (text, videos):
        made.zero_grad()
        terms = made.losses(batch).terms
        loss = sum(mean.total / mean.count for mean in terms.values())
        assert torch.isfinite(loss) and loss.requires_grad, "the loss is a finite number with a gradient"
        assert made.units(batch) == {name: float(mean.count) for name, mean in terms.items()}, "units are miscounted"
        loss.backward()
    for part, members in made.parts().items():
        reached = any(p.grad is not None and p.grad.any() for _, p in members)
        said = "frozen, and learns" if reached else "trained, and no gradient reaches it"
        assert reached == (part in made.trainable), f"part {part} is {said}"


CHECKS: dict[str, Callable[[Variant], None]] = {
    "merger": merger, "attention": attention, "fusion": fusion, "adapter": adapter, "head": head, "stage": stage,
}  # fmt: skip
