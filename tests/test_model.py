"""What the corridor computes, against slow and readable references; and the oracles of the foveated model."""

from __future__ import annotations

import pytest
import torch
from _tiny import ASKED, Case, Variant, batch_of, chat, clip, model, per_row, side, two_clips
from torch import Tensor

from hvlm import assembly
from hvlm.connector._project import Projector, Standardise
from hvlm.connector.foveated import rank_within
from hvlm.connector.patches import fold
from hvlm.errors import UserError
from hvlm.model import VLM, interleave, named_parts, pick, prefix_of
from hvlm.types import Patches, Tokens, Wants

ORDERS = ["question_first", "video_first"]


def foveated(order: str, mode: str = "coarse_fine", vision: str = "convvit") -> VLM:
    return model(Case(order, (Variant("connector", "foveated", (("mode", mode),)), Variant("vision", vision))))


# ---------------------------------------------------------------------------------------------------- foveated


def look(vlm: VLM, kv: list, frame: int, query_D: Tensor, reading: str) -> Tensor:
    """v_t = P(gaze(q, frame t)) [1, text_dim]."""
    of_frame = [(k[frame : frame + 1], v[frame : frame + 1]) for k, v in kv]
    z, _ = vlm.vision.gaze(query_D.view(1, 1, -1), of_frame)
    return vlm.connector.project(z[0], torch.ones(1, dtype=torch.bool), reading)


def foveated_by_hand(vlm: VLM, batch, row: int) -> Tensor:
    """The visual tokens [T, text_dim] of one question, frame by frame and query by query."""
    clip_index = int(batch.clip_K[row])
    valid = batch.frame_mask_BT[clip_index]
    frames = batch.frames_BTCHW[clip_index][valid][None]
    t = frames.shape[1]
    _, kv, *_ = vlm.vision.encode(frames, torch.zeros(1, t), torch.ones(1, t, dtype=torch.bool), Wants(kv=True))
    connector = vlm.connector
    coarse = [look(vlm, kv, i, connector.q_static[0], "coarse") for i in range(t)]
    before = int(batch.visual_at_K[row])
    prefix = vlm.language.embed(batch.input_ids_KS[row : row + 1, :before])[0]
    fine = []
    for i in range(t):
        if i == 0 and before == 0:
            query = connector.q_init[0]
        else:
            read = torch.cat([prefix, *coarse[:i]])[None]  # everything that stands before frame i
            query = connector.llm_to_query(vlm.language.hidden(read)[0, -1])
        fine.append(look(vlm, kv, i, query, "fine"))
    return torch.cat(fine)


@pytest.mark.parametrize("vision", ["convvit", "dinov2_tiny"])
@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_foveated_is_its_equations(order: str, vision: str) -> None:
    vlm = foveated(order, vision=vision)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    tokens = vlm.visual_tokens(batch, vlm.language.embed(batch.input_ids_KS))
    for row in range(3):
        torch.testing.assert_close(
            tokens.x_BSD[row][tokens.mask_BS[row]], foveated_by_hand(vlm, batch, row), rtol=0, atol=1e-5
        )


@torch.no_grad()
def test_the_coarse_pass_alone_equals_the_visual_places_of_the_run_with_text() -> None:
    """Causality: with the video first, text behind it cannot change what the language model saw."""
    vlm = foveated("video_first", "coarse")
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    text = vlm.language.embed(batch.input_ids_KS)
    visual = vlm.visual_tokens(batch, text)
    x, mask, v, *_ = vlm.sequence(batch)
    with_text = vlm.language.hidden(x, mask)[:, :v]
    alone = vlm.language.hidden(visual.x_BSD, visual.mask_BS)
    torch.testing.assert_close(with_text[visual.mask_BS], alone[visual.mask_BS], rtol=0, atol=1e-5)


@torch.no_grad()
def test_with_the_question_first_the_gaze_depends_on_the_question() -> None:
    for order, depends in (("question_first", True), ("video_first", False)):
        vlm = foveated(order)
        batch = batch_of(clip(1, 3, ASKED[:2], order, side(vlm)), size=side(vlm))
        tokens = vlm.visual_tokens(batch, vlm.language.embed(batch.input_ids_KS)).x_BSD
        assert (not torch.allclose(tokens[0], tokens[1], atol=1e-4)) == depends
        assert (not torch.allclose(tokens[0, 0], tokens[1, 0], atol=1e-4)) == depends, "from the first frame on"


def test_the_answer_teaches_where_to_look() -> None:
    """No gradient is cut on the way from the text's loss through the queries into the coarse pass."""
    vlm = foveated("question_first").train()
    vlm.token_logprobs(batch_of(*two_clips(vlm), size=side(vlm))).sum().backward()
    for name in ("llm_to_query.weight", "llm_to_query.bias", "q_static"):
        assert vlm.connector.get_parameter(name).grad.abs().max() > 1e-6, name


def test_queries_start_wide() -> None:
    """At a standard deviation of 0.02 all queries would read the same average."""
    torch.manual_seed(0)
    made = Variant("connector", "foveated").settings

    connector = assembly.room(made, dim=512, text_dim=512, query_dim=512, grid=(2, 2))
    for tensor in (connector.q_static, connector.q_init, connector.llm_to_query.bias):
        assert 0.8 < tensor.std() < 1.2


@torch.no_grad()
def test_entropy_is_reported_while_somebody_watches() -> None:
    vlm = foveated("question_first")
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    quiet = per_row(vlm, batch)
    assert vlm.connector.metrics == {}
    vlm.connector.monitor = True
    torch.testing.assert_close(per_row(vlm, batch), quiet)
    assert set(vlm.connector.metrics) == {"entropy_coarse", "entropy_fine"}
    most = torch.log(torch.tensor(4.0))  # 2 x 2 patches
    assert all(0 < value < most for value in vlm.connector.metrics.values())


def test_rank_within() -> None:
    clip_K = torch.tensor([0, 2, 0, 1, 2, 0])
    assert rank_within(clip_K, 3).tolist() == [0, 0, 1, 0, 1, 2]
    g = torch.Generator().manual_seed(0)
    clip_K = torch.randint(0, 5, (40,), generator=g)
    seen = [0] * 5
    for index, rank in zip(clip_K.tolist(), rank_within(clip_K, 5).tolist(), strict=True):
        assert rank == seen[index]
        seen[index] += 1


# ---------------------------------------------------------------------------------------------------- sequence and loss


def test_laying_out_is_what_lists_would_do() -> None:
    g = torch.Generator().manual_seed(0)
    k, s, v, d = 4, 5, 3, 2
    text, visual = torch.randn(k, s, d, generator=g), torch.randn(k, v, d, generator=g)
    text_mask, visual_mask = torch.rand(k, s, generator=g) > 0.4, torch.rand(k, v, generator=g) > 0.4
    at = torch.tensor([0, 2, 5, 3])
    source = interleave(s, v, at)
    x, mask = pick(source, text, visual), pick(source, text_mask, visual_mask)
    for row, place in enumerate(at.tolist()):
        expected = torch.cat([text[row, :place], visual[row], text[row, place:]])
        expected_mask = torch.cat([text_mask[row, :place], visual_mask[row], text_mask[row, place:]])
        assert torch.equal(x[row], expected) and torch.equal(mask[row], expected_mask)


def test_prefix_is_the_text_before_the_video() -> None:
    vlm = foveated("question_first")
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    prefix = prefix_of(batch, vlm.language.embed(batch.input_ids_KS))
    for row, (question, _) in enumerate(ASKED):
        words = chat().decode(batch.input_ids_KS[row][: prefix.mask_KP[row].sum()].tolist())
        assert words == question
    assert prefix.mask_KP.shape[1] == batch.visual_at_K.max() and prefix.x_KPD.shape[:2] == prefix.mask_KP.shape


@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_log_probabilities_are_those_of_the_whole_sequence(order: str) -> None:
    """Row by row without padding: token i of the text is predicted from everything that stands before it."""
    vlm = foveated(order)
    batch = batch_of(*two_clips(vlm, "all"), size=side(vlm))
    logp = vlm.token_logprobs(batch)
    for row in range(3):
        n, at = int(batch.attention_mask_KS[row].sum()), int(batch.visual_at_K[row])
        ids = batch.input_ids_KS[row, :n]
        visual = foveated_by_hand(vlm, batch, row)
        text = vlm.language.embed(ids[None])[0]
        x = torch.cat([text[:at], visual, text[at:]])
        every = vlm.language.logits(vlm.language.hidden(x[None])[0]).log_softmax(-1)
        for i in range(1, n):
            if i != at:
                place = i - 1 if i < at else i - 1 + len(visual)
                torch.testing.assert_close(logp[row, i], every[place, ids[i]], rtol=0, atol=1e-5)
    assert (logp[:, 0] == 0).all()


@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_what_is_outside_the_loss_mask_does_not_count(order: str) -> None:
    vlm = foveated(order)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    scored = vlm.targets(batch)
    assert torch.equal(scored.ids_M, batch.input_ids_KS[batch.loss_mask_KS]), "exactly the tokens under the mask"
    before = vlm.token_logprobs(batch)

    # Without the end token in the mask its label cannot matter, nor what stands in padding.
    last = batch.attention_mask_KS & ~batch.attention_mask_KS.roll(-1, 1)
    last[:, -1] = batch.attention_mask_KS[:, -1]
    fewer = batch._replace(loss_mask_KS=batch.loss_mask_KS & ~last)
    other = torch.where(
        last | ~batch.attention_mask_KS, (batch.input_ids_KS + 1) % chat().vocab_size, batch.input_ids_KS
    )
    torch.testing.assert_close(vlm.token_logprobs(fewer._replace(input_ids_KS=other)), vlm.token_logprobs(fewer))
    torch.testing.assert_close(vlm.token_logprobs(fewer), before.masked_fill(last, 0.0))
    assert not torch.allclose(vlm.token_logprobs(batch._replace(input_ids_KS=other)), before), "inside it does"


@torch.no_grad()
def test_next_token_distribution_is_that_of_the_first_target() -> None:
    vlm = foveated("question_first")
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    first = batch.loss_mask_KS.int().argmax(1, keepdim=True)
    whole = vlm.next_token_logprobs(batch)
    assert whole.shape == (3, chat().vocab_size)
    torch.testing.assert_close(whole.exp().sum(1), torch.ones(3))
    expected = vlm.token_logprobs(batch).gather(1, first)
    torch.testing.assert_close(whole.gather(1, batch.input_ids_KS.gather(1, first)), expected)


@pytest.mark.fault(86)
@pytest.mark.parametrize("order", ["question_first", "video_first"])
def test_without_a_video_every_token_but_the_first_is_learned(order: str) -> None:
    vlm = model(Case(order, ()))
    texts = [clip(i, None, [asked], order, side(vlm), "all") for i, asked in enumerate(ASKED)]
    batch = batch_of(*texts, size=side(vlm))
    assert not batch.visual_at_K.any()
    with torch.no_grad():
        found = vlm.token_logprobs(batch)
        logp = vlm.language.logits(
            vlm.language.hidden(vlm.language.embed(batch.input_ids_KS), batch.attention_mask_KS)
        ).log_softmax(-1)
    alone = logp[:, :-1].gather(2, batch.input_ids_KS[:, 1:, None]).squeeze(2)
    valid = batch.attention_mask_KS[:, 1:]
    assert (found[:, 1:] != 0).equal(valid) and torch.allclose(found[:, 1:][valid], alone[valid], atol=1e-5)


@pytest.mark.fault(86, 98)
def test_a_sequence_longer_than_the_language_model_reads_is_refused_in_one_line() -> None:
    vlm = model(Case("question_first", ()))
    batch = batch_of(clip(1, 4, ASKED[:1], vlm.order, side(vlm)), size=side(vlm))
    vlm.language.max_positions = 4 + batch.input_ids_KS.shape[1]
    vlm.targets(batch)
    vlm.language.max_positions -= 1
    with pytest.raises(UserError, match=r"^4 visual tokens and \d+ tokens of text .* dataset.max_tokens$"):
        vlm.targets(batch)
    text = batch_of(clip(1, None, [("one " * 9000, "two")], vlm.order, side(vlm)), size=side(vlm))
    with pytest.raises(UserError, match="0 visual tokens"):
        vlm.targets(text)


def test_parts_hold_every_parameter_once() -> None:
    vlm = foveated("question_first")
    parts = named_parts(vlm)
    names = [name for members in parts.values() for name, _ in members]
    assert sorted(names) == sorted(name for name, _ in vlm.named_parameters())
    assert {name for name, _ in parts["connector"]} >= {"vision.query.query_in.weight", "connector.q_static"}
    assert set(parts) == {"vision", "connector", "language"}, "parts without weights are not named"


# ---------------------------------------------------------------------------------------------------- connectors


def test_standardise_is_the_mean_and_variance_of_what_it_saw() -> None:
    g = torch.Generator().manual_seed(0)
    scale, shift = torch.tensor([1.0, 30.0, 0.01]), torch.tensor([0.0, 500.0, -2.0])
    room = Standardise(3, momentum=0.01).train()
    seen, batches = [], []
    for _ in range(5):
        x = torch.randn(4, 6, 3, generator=g) * scale + shift
        mask = torch.rand(4, 6, generator=g) > 0.3
        out = room(torch.where(mask.unsqueeze(-1), x, torch.tensor(1e6)), mask)  # what is masked must not be counted
        seen.append(x[mask])
        batches.append(((x[mask] - x[mask].mean(0)) ** 2).mean(0))
        # Training and evaluation compute the same.
        torch.testing.assert_close(room.eval()(x, mask)[mask], out[mask])
        room.train().end_step()
    means = torch.stack([x.mean(0) for x in seen])
    torch.testing.assert_close(room.mean, means.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(room.var, torch.stack(batches).mean(0), rtol=1e-3, atol=0)
    assert int(room.updates) == 5

    before = {name: value.clone() for name, value in room.state_dict().items()}
    room(torch.full((4, 6, 3), 7.0), torch.zeros(4, 6, dtype=torch.bool))  # nothing to see
    room.eval()(torch.full((4, 6, 3), 7.0), torch.ones(4, 6, dtype=torch.bool))
    room.end_step()
    assert all(torch.equal(before[name], value) for name, value in room.state_dict().items())


@pytest.mark.parametrize("parts", [2, 4])
def test_standardise_moves_once_a_step_in_however_many_parts(parts: int) -> None:
    g = torch.Generator().manual_seed(0)
    whole, divided = Standardise(3).train(), Standardise(3).train()
    for _ in range(3):
        x, mask = 5 + torch.randn(4, 6, 3, generator=g), torch.rand(4, 6, generator=g) > 0.3
        pieces = [divided(*piece) for piece in zip(x.chunk(parts), mask.chunk(parts), strict=True)]
        torch.testing.assert_close(torch.cat(pieces), whole(x, mask), rtol=1e-5, atol=1e-6)
        whole.end_step()
        divided.end_step()
        torch.testing.assert_close(divided.state_dict(), whole.state_dict(), rtol=1e-5, atol=1e-6)
    assert int(divided.updates) == 3


def test_standardise_forgets_exponentially_after_its_first_updates() -> None:
    room = Standardise(1, momentum=0.5).train()
    for value in (0.0, 0.0, 0.0, 8.0, 8.0):
        room(torch.full((2, 1), value), torch.ones(2, dtype=torch.bool))
        room.end_step()
    assert float(room.mean) == pytest.approx(6.0)


def test_published_projector_is_scale_times_linear() -> None:
    """fVLM: v = s (W z + b) with s = 0.14 and no standardisation."""
    torch.manual_seed(0)
    project = Projector(4, 6, "linear", 0.14, standardise=False, readings=("coarse", "fine"))
    x = torch.randn(2, 3, 4)
    expected = 0.14 * (x @ project.layers.weight.T + project.layers.bias)
    torch.testing.assert_close(project(x, torch.ones(2, 3, dtype=torch.bool), "fine"), expected)
    with pytest.raises(ValueError, match="connector.projector='cubic'"):
        Projector(4, 6, "cubic", 1.0, False)


def test_mean_weighs_merged_patches_by_their_size() -> None:
    vlm = model(Case("video_first", (Variant("connector", "mean"),)))
    dim, t, n = vlm.vision.dim, 2, 4
    x = torch.randn(1, t, n, dim, generator=torch.Generator().manual_seed(0))
    time, mask = torch.tensor([[0.1, 0.2]]), torch.ones(1, t, dtype=torch.bool)
    # Two patches of frame 0 are equal, so merging them into one of size 2 must change nothing.
    x[0, 0, 1] = x[0, 0, 0]
    whole = Tokens.of_frames(x, time, mask, (2, 2))
    merged = whole.each(torch.tensor([i for i in range(t * n) if i != 1]))
    merged.size_BS[0, 0] = 2
    results = [vlm.connector(Patches(tokens, time, mask), vlm.language, None)[0].x_BSD for tokens in (whole, merged)]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)
    by_hand = vlm.connector.project(x.mean(2), mask)
    torch.testing.assert_close(results[0], by_hand, rtol=0, atol=1e-5)


def test_pixel_shuffle_keeps_neighbours_together() -> None:
    y, x = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    folded = fold(torch.stack([y, x], -1)[None, None].float(), 2)
    assert folded.shape == (1, 1, 2 * 3, 2 * 2 * 2)
    places = folded[0, 0, 4].reshape(4, 2)  # second row, second column of the coarse grid
    assert places.tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    shuffled = model(Case("video_first", (Variant("connector", "patches", (("shuffle", 2),)),)))
    batch = batch_of(*two_clips(shuffled), size=side(shuffled))
    tokens = shuffled.visual_tokens(batch, shuffled.language.embed(batch.input_ids_KS))
    assert tokens.x_BSD.shape[1] == 4 and (tokens.size_BS == 4).all() and (tokens.yx_BS2 == 0.5).all()

    with pytest.raises(UserError, match="connector.shuffle=3.*2 x 2"):
        model(Case("video_first", (Variant("connector", "patches", (("shuffle", 3),)),)))


def test_autoregressive_reading_refuses_attention_that_sees_ahead():
    def with_(attention: str, *changes) -> Case:
        mode = Variant("connector", "foveated", (("mode", "autoregressive"),))
        return Case("question_first", (mode, Variant("attention", attention, changes)))

    with pytest.raises(UserError, match="FullRoom frames see later ones; use attention=none"):
        model(with_("full"))
    model(with_("full", ("causal", True)))
    model(with_("mamba", ("bidirectional", False)))
