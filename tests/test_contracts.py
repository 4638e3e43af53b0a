"""Every variant of every room against its contract (``hvlm/contracts.py`` and the rooms' docstrings).

The folders are globbed: a new variant is tested here the moment its YAML exists.
"""

from __future__ import annotations

import inspect
import io
import re
from functools import cache

import pytest
import torch
from _tiny import (
    ASKED,
    ROOT,
    Case,
    Variant,
    batch_of,
    cases,
    chat,
    clip,
    model,
    per_row,
    side,
    target,
    two_clips,
    variants,
)
from torch import Tensor

from hvlm import assembly
from hvlm.config.rooms import ROOMS
from hvlm.contracts import CONTRACTS, PARTS
from hvlm.evaluation.generate import generate
from hvlm.functional import last_true
from hvlm.io.checkpoint import load_into
from hvlm.model import VLM, interleave, pick
from hvlm.types import Patches, Tokens

CASES = [pytest.param(case, id=case.id) for case in cases()]
CLOSE = {"rtol": 0.0, "atol": 1e-5}


@cache
def shared_model(case: Case) -> VLM:
    """For tests that leave the model as it is."""
    return model(case)


def same(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, **CLOSE)


# ---------------------------------------------------------------------------------------------------- what a room is

EVERY = [pytest.param(variant, id=f"{group}/{variant.id}") for group in ROOMS for variant in variants(group)]


def methods(base: type) -> dict[str, inspect.Signature]:
    """{name: signature without self} of what a contract says can be called."""
    public = {name: member for name, member in vars(base).items() if name == "forward" or not name.startswith("_")}
    found = {name: getattr(base, name) for name, member in public.items() if inspect.isroutine(member)}
    return {name: inspect.signature(function) for name, function in found.items()}


def named(signature: inspect.Signature) -> list[inspect.Parameter]:
    return [p for name, p in signature.parameters.items() if name != "self"]


def test_the_contracts_cover_every_group() -> None:
    assert list(CONTRACTS) == list(ROOMS) and all(base.group == group for group, base in CONTRACTS.items())


@pytest.mark.parametrize("variant", EVERY)
def test_every_variant_has_what_its_contract_says(variant: Variant) -> None:
    """It derives from the base, leaves nothing of it open, and can be called as the base says; what it takes beyond
    that it must not need."""
    made, base = target(variant.settings), CONTRACTS[variant.group]
    assert issubclass(made, base) and not inspect.isabstract(made)
    for name, said in methods(base).items():
        theirs, ours = named(said), named(inspect.signature(getattr(made, name)))
        for wanted, found in zip(theirs, ours, strict=False):
            assert (found.name, found.kind) == (wanted.name, wanted.kind), f"{name}: another argument than the contract"
        assert len(ours) >= len(theirs), f"{name}: fewer arguments than the contract"
        needed = [p.name for p in ours[len(theirs) :] if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        assert not needed, f"{name} needs more than the contract gives"


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases()])
def test_every_built_room_has_the_attributes_of_its_contract(case: Case) -> None:
    vlm = shared_model(case)
    for part in PARTS:
        room = getattr(vlm, part)
        assert isinstance(room, CONTRACTS[part]) and type(room).part == part
        for name in inspect.get_annotations(CONTRACTS[part]):
            assert hasattr(room, name), f"{part} has no {name}"


def test_nobody_asks_rooms_what_they_have_by_its_name() -> None:
    """What a room may leave out has a value in its contract."""
    asked = [
        f"{path.name}: {line.strip()}"
        for folder in (".", "stage", "training", "evaluation", "attention", "connector", "merger")
        for path in sorted((ROOT / "hvlm" / folder).glob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(
            r"(has|get)attr\((self\.)?(\w+\.)*(model|connector|merger|attention|stage|head|adapter|layer)\b", line
        )
    ]
    assert not asked


# ---------------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("case", CASES)
def test_shapes_and_masks(case: Case) -> None:
    vlm = shared_model(case)
    batch = batch_of(*two_clips(vlm, "all"), size=side(vlm))
    text = vlm.language.embed(batch.input_ids_KS)
    tokens = vlm.visual_tokens(batch, text)
    k, s = batch.input_ids_KS.shape
    v, dim = tokens.x_BSD.shape[1:]
    assert k == 3 and dim == vlm.language.dim
    assert tokens.x_BSD.shape == (k, v, dim) and tokens.yx_BS2.shape == (k, v, 2)
    for field in (tokens.time_BS, tokens.frame_BS, tokens.size_BS, tokens.mask_BS):
        assert field.shape == (k, v)
    assert tokens.mask_BS.dtype == torch.bool and tokens.frame_BS.dtype == torch.int64
    assert tokens.mask_BS.any(1).all(), "every row has something to see"
    assert tokens.mask_BS[2].sum() < tokens.mask_BS[0].sum(), "the short clip has fewer tokens"
    for row, clip_index in enumerate(batch.clip_K.tolist()):
        seen = tokens.mask_BS[row]
        times = batch.frame_time_BT[clip_index][batch.frame_mask_BT[clip_index]]
        assert tokens.time_BS[row][seen].min() >= times.min() and tokens.time_BS[row][seen].max() <= times.max()
        assert (tokens.yx_BS2[row][seen] >= 0).all() and (tokens.yx_BS2[row][seen] <= 1).all()
        assert (tokens.size_BS[row][seen] >= 1).all()

    x, mask, places, *_ = vlm.sequence(batch)
    assert x.shape == (k, s + v, dim) and mask.shape == (k, s + v) and places == v
    assert torch.equal(mask.sum(1), batch.attention_mask_KS.sum(1) + tokens.mask_BS.sum(1))

    scored = vlm.targets(batch)
    assert scored.logits_MV.shape == (len(scored.ids_M), chat().vocab_size) and scored.logits_MV.dtype == torch.float32
    logp = vlm.token_logprobs(batch)
    assert logp.shape == (k, s) and logp.dtype == torch.float32
    assert torch.equal((logp != 0).nonzero(), torch.stack([scored.row_M, scored.place_M], 1))
    # One place is never scored, where the loss mask covers it: the token that directly follows the video.
    follows = torch.arange(s) == batch.visual_at_K.unsqueeze(1)
    assert torch.equal(logp != 0, batch.loss_mask_KS & batch.attention_mask_KS & ~follows)


@pytest.mark.parametrize("case", CASES)
def test_padding_changes_nothing(case: Case) -> None:
    """A batch of a long and a short clip gives what each gives alone."""
    vlm = shared_model(case)
    long, short = two_clips(vlm)
    size = side(vlm)
    together = per_row(vlm, batch_of(long, short, size=size))
    alone = per_row(vlm, batch_of(long, size=size)) + per_row(vlm, batch_of(short, size=size))
    same(together, alone)
    other = per_row(vlm, batch_of(clip(9, 4, ASKED[:2], vlm.order, size), size=size))
    assert (other[0] - alone[0]).abs().max() > 1e-3, "the answers must depend on the pixels, or this test sees nothing"


@pytest.mark.parametrize("case", CASES)
def test_questions_that_share_a_clip_are_as_if_asked_alone(case: Case) -> None:
    vlm = shared_model(case)
    size = side(vlm)
    together = per_row(vlm, batch_of(clip(1, 3, ASKED, vlm.order, size), size=size))
    alone = [per_row(vlm, batch_of(clip(1, 3, [one], vlm.order, size), size=size))[0] for one in ASKED]
    same(together, alone)


@pytest.mark.parametrize("case", CASES)
def test_clips_may_come_in_any_order(case: Case) -> None:
    vlm = shared_model(case)
    long, short = two_clips(vlm)
    a, b, c = per_row(vlm, batch_of(long, short, size=side(vlm)))
    same(per_row(vlm, batch_of(short, long, size=side(vlm))), [c, a, b])


def unreached(case: Case) -> set[str]:
    """Parameters that a case has no use for: prefixes of their names."""
    found = {"vision.model.embeddings.mask_token"}  # of DINOv2's own training
    connector = case.room("connector")
    if ".clip." in case.room("vision")["_target_"] and "foveated" not in connector["_target_"]:
        found.add("vision.model.post_layernorm")  # of what reads a frame: CLS at the end, and queries
    if not connector.get("summaries"):
        found.add("vision.model.head")  # SigLIP's summary of a frame
    if "foveated" not in connector["_target_"]:
        found.add("vision.query")
    elif connector["mode"] == "coarse":
        found |= {"connector.q_init", "connector.llm_to_query"}
    elif case.order == "question_first":
        found.add("connector.q_init")  # the first query comes from the question
    if connector.get("mode") == "autoregressive":
        found.add("connector.q_static")
    return found


@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_every_parameter(case: Case) -> None:
    vlm = model(case).train()
    vlm.token_logprobs(batch_of(*two_clips(vlm, "all"), size=side(vlm))).sum().neg().backward()
    without = [n for n, p in vlm.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    listed = tuple(unreached(case))
    assert [n for n in without if not n.startswith(listed)] == []
    assert all(torch.isfinite(p.grad).all() for p in vlm.parameters() if p.grad is not None)


@pytest.mark.parametrize("case", CASES)
def test_text_alone_is_the_language_model_alone(case: Case) -> None:
    vlm = model(case).train()
    size = side(vlm)
    batch = batch_of(clip(1, None, ASKED, vlm.order, size), size=size)
    logp = vlm.token_logprobs(batch)
    logp.sum().neg().backward()
    with torch.no_grad():
        h = vlm.language.hidden(vlm.language.embed(batch.input_ids_KS), batch.attention_mask_KS)
        every = vlm.language.logits(h[:, :-1]).log_softmax(-1)
    alone = every.gather(2, batch.input_ids_KS[:, 1:].unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(logp[:, 1:], alone * batch.loss_mask_KS[:, 1:], **CLOSE)
    assert all(p.grad is None for n, p in vlm.named_parameters() if not n.startswith(("language", "head")))
    assert vlm.language.model.model.embed_tokens.weight.grad.any()

    # Beside a clip with a video the row is the same, though it then has (masked) visual places.
    vlm.eval()
    with_video, without = clip(2, 2, ASKED[:1], vlm.order, size), clip(1, None, ASKED, vlm.order, size)
    mixed = per_row(vlm, batch_of(with_video, without, size=size))
    same(mixed[1:], [p[m] for p, m in zip(logp.detach(), batch.loss_mask_KS, strict=True)])


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_autocast_is_finite(case: Case) -> None:
    vlm = model(case).train()
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    with torch.autocast("cpu", torch.bfloat16):
        loss = vlm.token_logprobs(batch).sum().neg()
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    assert all(torch.isfinite(p.grad).all() for p in vlm.parameters() if p.grad is not None)
    assert {p.dtype for p in vlm.parameters()} == {torch.float32}, "the weights themselves stay in float32"


@pytest.mark.parametrize("case", CASES)
def test_state_travels_through_a_file(case: Case) -> None:
    vlm, other = model(case).train(), model(case, seed=1)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    per_row(vlm, batch)  # running statistics move from where they start
    vlm.eval()
    file = io.BytesIO()
    torch.save(vlm.state_dict(), file)
    file.seek(0)
    assert not torch.equal(per_row(other, batch)[0], per_row(vlm, batch)[0])
    load_into(other, torch.load(file, weights_only=True), "the file")
    for a, b in zip(per_row(other, batch), per_row(vlm, batch), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", CASES)
def test_a_rehearsal_needs_no_storage(case: Case) -> None:
    """``hvlm.assembly.dry_build`` builds every model on the meta device before anything else happens."""
    with torch.device("meta"):
        rehearsed = assembly.model(case.config, chat(), weights=False)
    assert all(p.is_meta for p in rehearsed.parameters())
    assert {n: p.shape for n, p in rehearsed.named_parameters()} == {
        n: p.shape for n, p in shared_model(case).named_parameters()
    }


# ---------------------------------------------------------------------------------------------------- single rooms


def params(group: str) -> list:
    return [pytest.param(variant, id=variant.id) for variant in variants(group)]


DIM, HEADS = 16, 2


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


@pytest.mark.parametrize("variant", params("merger"))
def test_merger(variant: Variant) -> None:
    """Sizes sum to the tokens that came in (a room that drops tokens says so with ``drops``); nobody sees padding."""
    room = moved(assembly.room(variant.settings))
    came = visual(3)
    out = room(came)
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


@pytest.mark.parametrize("variant", params("attention"))
def test_attention(variant: Variant) -> None:
    """As many tokens as came in, and what stands in padded places reaches nobody; ``readout=k`` keeps every k-th."""
    room = moved(assembly.room(variant.settings, dim=DIM, num_heads=HEADS))
    came = visual(3).tokens
    out, _ = room(came)
    assert out.x_BSD.shape == came.x_BSD.shape and torch.equal(out.mask_BS, came.mask_BS)
    padded, _ = room(visual(3, padded_to=5).tokens)
    torch.testing.assert_close(padded.x_BSD[padded.mask_BS], out.x_BSD[out.mask_BS], **CLOSE)
    half, _ = assembly.room(variant.settings | {"readout": 2}, dim=DIM, num_heads=HEADS)(came)
    length = came.x_BSD.shape[1]
    last = torch.arange(1, length + 1, 2).clamp(max=length - 1)
    assert torch.equal(half.yx_BS2, came.yx_BS2[:, last])
    with pytest.raises(Exception, match="attention.readout=0"):
        assembly.room(variant.settings | {"readout": 0}, dim=DIM, num_heads=HEADS)


@pytest.mark.parametrize("variant", params("fusion"))
def test_fusion(variant: Variant) -> None:
    """Neither padded tokens nor padded text reach anybody."""
    room = moved(assembly.room(variant.settings, dim=DIM, num_heads=HEADS))
    text = torch.randn(1, 5, DIM, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(5)[None] < 3
    out = room(visual(3).tokens, text, mask)
    padded = room(visual(3, padded_to=5).tokens, text + 7 * ~mask.unsqueeze(-1), mask)
    torch.testing.assert_close(padded.x_BSD[padded.mask_BS], out.x_BSD[out.mask_BS], **CLOSE)


@pytest.mark.parametrize("variant", params("adapter"))
def test_adapter_keeps_the_base_weights_and_their_names(variant: Variant) -> None:
    plain = model(Case("question_first", ())).state_dict()
    adapted = model(Case("question_first", (variant,))).state_dict()
    assert set(plain) == {name for name in adapted if not name.startswith("adapter.")}
    assert {name: value.shape for name, value in plain.items()}.items() <= {
        n: v.shape for n, v in adapted.items()
    }.items()


@pytest.mark.parametrize("variant", params("head"))
def test_head(variant: Variant) -> None:
    """A loss of its output in float32, also under autocast; one that writes scores the places that are asked for."""
    vlm = shared_model(Case("question_first", (variant,)))
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        total, count, extras = vlm.head.loss(vlm.output(batch), batch)
    assert total.dtype == torch.float32 and total.shape == count.shape == () and total > 0 and count > 0
    assert all(value.shape == () for value in extras.values())
    if vlm.head.writes:
        h = torch.randn(5, vlm.language.dim)
        with torch.autocast("cpu", torch.bfloat16):
            assert vlm.head.logits(h).dtype == torch.float32
        torch.testing.assert_close(vlm.head.logits(h), h @ vlm.language.model.lm_head.weight.T)


# ---------------------------------------------------------------------------------------------------- decoding


def greedy(vlm: VLM, item, num_tokens: int) -> str:
    """What ``generate`` computes, the slow way: the whole sequence again for every token, one row at a time."""
    batch = batch_of(item, size=side(vlm))
    text = vlm.language.embed(batch.input_ids_KS)
    visual = vlm.visual_tokens(batch, text)
    prompt = int((~batch.loss_mask_KS & batch.attention_mask_KS).sum())
    written: list[int] = []
    for _ in range(num_tokens):
        ids = torch.cat([batch.input_ids_KS[:, :prompt], torch.tensor([written], dtype=torch.int64)], 1)
        mask = torch.ones_like(ids, dtype=torch.bool)
        source = interleave(ids.shape[1], visual.x_BSD.shape[1], batch.visual_at_K)
        x, mask = pick(source, vlm.language.embed(ids), visual.x_BSD), pick(source, mask, visual.mask_BS)
        token = int(vlm.head.logits(vlm.language.hidden(x, mask)[:, -1]).argmax())
        if token == chat().end_id:
            break
        written.append(token)
    return chat().decode(written)


@pytest.mark.parametrize("order", ["question_first", "video_first"])
@pytest.mark.parametrize("variant", params("kvcache"))
def test_decoding_with_a_cache_is_argmax_over_the_whole_sequence(variant: Variant, order: str) -> None:
    """Sequences shorter than any cache's budget: longer ones are each variant's own matter."""
    vlm = model(Case(order, (variant,)), seed=3)
    lm = vlm.language
    for parameter in lm.parameters():  # loud, so that the wrong place or a lost key changes a word
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    long, short = two_clips(vlm)
    modes = {name: m.training for name, m in vlm.train().named_modules()}
    found = generate(vlm, chat(), batch_of(long, short, size=side(vlm)), 12)
    assert {name: m.training for name, m in vlm.named_modules()} == modes, "left as it was"
    vlm.eval()
    with torch.no_grad():
        alone = [greedy(vlm, item._replace(rows=[row]), 12) for item in (long, short) for row in item.rows]
    assert found == alone
    assert len(set(found)) > 1, "the rows must differ, or this test sees nothing"


@pytest.mark.parametrize("variant", params("kvcache"))
def test_bytes_of_a_cache_are_what_is_allocated(variant: Variant) -> None:
    vlm = shared_model(Case("question_first", (variant,)))
    lm, room = vlm.language, vlm.kvcache
    for rows, length in ((1, 7), (3, 12)):
        kept = room.new()
        with torch.no_grad():
            lm.hidden(torch.randn(rows, length, lm.dim), cache=kept)
        assert kept.nbytes == room.bytes(length, rows) > 0


def test_last_true() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    assert last_true(mask).tolist() == [1, 2, 3]
