"""What holds of every whole model, whichever rooms it is made of. Each check takes a ``Case``."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from hvlm import assembly
from hvlm.checks.tiny import ASKED, Case, batch_of, chat, clip, model, per_row, side, two_clips
from hvlm.contracts import CONTRACTS, PARTS
from hvlm.contracts.room import MovesByStep
from hvlm.io.checkpoint import load_into
from hvlm.model import VLM

CLOSE = {"rtol": 0.0, "atol": 1e-5}


@cache
def shared_model(case: Case) -> VLM:
    """For tests that leave the model as it is."""
    return model(case)


def same(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, **CLOSE)


def rooms_have_the_attributes_of_their_contracts(case: Case) -> None:
    vlm = shared_model(case)
    for part in PARTS:
        room = getattr(vlm, part)
        assert isinstance(room, CONTRACTS[part]) and type(room).part == part
        for name in inspect.get_annotations(CONTRACTS[part]):
            assert hasattr(room, name), f"{part} has no {name}"


def shapes_and_masks(case: Case) -> None:
    """What the corridor hands on has the shapes, types and places of ``hvlm.types``."""
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


def padding_changes_nothing(case: Case) -> None:
    """A batch of a long and a short clip gives what each gives alone."""
    vlm = shared_model(case)
    long, short = two_clips(vlm)
    size = side(vlm)
    together = per_row(vlm, batch_of(long, short, size=size))
    alone = per_row(vlm, batch_of(long, size=size)) + per_row(vlm, batch_of(short, size=size))
    same(together, alone)
    other = per_row(vlm, batch_of(clip(9, 4, ASKED[:2], vlm.order, size), size=size))
    assert (other[0] - alone[0]).abs().max() > 1e-3, "the answers must depend on the pixels, or this test sees nothing"


def questions_that_share_a_clip_are_as_if_asked_alone(case: Case) -> None:
    """No question hears of another one about the same clip."""
    vlm = shared_model(case)
    size = side(vlm)
    together = per_row(vlm, batch_of(clip(1, 3, ASKED, vlm.order, size), size=size))
    alone = [per_row(vlm, batch_of(clip(1, 3, [one], vlm.order, size), size=size))[0] for one in ASKED]
    same(together, alone)


def clips_may_come_in_any_order(case: Case) -> None:
    """A clip's place in the batch changes nothing."""
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
    if not connector["_target_"].startswith("hvlm.connector.foveated."):
        found.add("vision.query")
    elif connector["mode"] == "coarse":
        found |= {"connector.q_init", "connector.llm_to_query"}
    elif case.order == "question_first":
        found.add("connector.q_init")  # the first query comes from the question
    if connector.get("mode") == "autoregressive":
        found.add("connector.q_static")
    return found


def gradients_reach_every_parameter(case: Case) -> None:
    """No weight is there for nothing."""
    vlm = model(case).train()
    for parameter in vlm.adapter.parameters():  # that begin at 0 so that nothing changes hide others
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    scored = "answer" if vlm.fusion.reads_text else "all"  # of a scored question a fusion would know one word or none
    vlm.token_logprobs(batch_of(*two_clips(vlm, scored), size=side(vlm))).sum().neg().backward()
    without = [n for n, p in vlm.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    listed = tuple(unreached(case))
    without = [n for n in without if not n.startswith(listed)]
    assert without == [], f"no gradient reaches {', '.join(without[:4])}"
    assert all(torch.isfinite(p.grad).all() for p in vlm.parameters() if p.grad is not None)


def text_alone_is_the_language_model_alone(case: Case) -> None:
    """A row without a video passes no room but the language model."""
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
    assert all(p.grad is None for n, p in vlm.named_parameters() if not n.startswith(("language", "head", "adapter")))
    assert all(p.grad is not None and p.grad.any() for p in vlm.language.parameters() if p.requires_grad)

    # Beside a clip with a video the row is the same, though it then has (masked) visual places.
    vlm.eval()
    with_video, without = clip(2, 2, ASKED[:1], vlm.order, size), clip(1, None, ASKED, vlm.order, size)
    mixed = per_row(vlm, batch_of(with_video, without, size=size))
    same(mixed[1:], [p[m] for p, m in zip(logp.detach(), batch.loss_mask_KS, strict=True)])


def bfloat16_autocast_is_finite(case: Case) -> None:
    """Losses and gradients in the precision of training on GPUs."""
    vlm = model(case).train()
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    with torch.autocast("cpu", torch.bfloat16):
        loss = vlm.token_logprobs(batch).sum().neg()
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    assert all(torch.isfinite(p.grad).all() for p in vlm.parameters() if p.grad is not None)
    assert {p.dtype for p in vlm.parameters()} == {torch.float32}, "the weights themselves stay in float32"


def state_travels_through_a_file(case: Case) -> None:
    """A model with the weights that were stored says what the stored one said."""
    vlm, other = model(case).train(), model(case, seed=1)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    per_row(vlm, batch)
    for module in vlm.modules():  # running statistics move from where they start
        if isinstance(module, MovesByStep):
            module.end_step()
    vlm.eval()
    file = io.BytesIO()
    torch.save(vlm.state_dict(), file)
    file.seek(0)
    assert not torch.equal(per_row(other, batch)[0], per_row(vlm, batch)[0])
    load_into(other, torch.load(file, weights_only=True), "the file")
    for a, b in zip(per_row(other, batch), per_row(vlm, batch), strict=True):
        assert torch.equal(a, b)


def a_rehearsal_needs_no_storage(case: Case) -> None:
    """``hvlm.assembly.dry_build`` builds every model on the meta device before anything else happens."""
    with torch.device("meta"):
        rehearsed = assembly.model(case.config, chat(), weights=False)
    assert all(p.is_meta for p in rehearsed.parameters())
    assert {n: p.shape for n, p in rehearsed.named_parameters()} == {
        n: p.shape for n, p in shared_model(case).named_parameters()
    }


CHECKS: tuple[Callable[[Case], None], ...] = (
    rooms_have_the_attributes_of_their_contracts,
    shapes_and_masks,
    padding_changes_nothing,
    questions_that_share_a_clip_are_as_if_asked_alone,
    clips_may_come_in_any_order,
    gradients_reach_every_parameter,
    text_alone_is_the_language_model_alone,
    bfloat16_autocast_is_finite,
    state_travels_through_a_file,
    a_rehearsal_needs_no_storage,
)
