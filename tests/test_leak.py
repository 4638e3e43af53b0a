"""No text reaches what stands before it: what a model says of a token never depends on that token or on later ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from _rooms import Cheat, IgnoresTheMask, Mix, with_fusion
from _tiny import ASKED, ORDERS, Case, Variant, batch_of, cases, chat, clip, model, per_row, side, variants

from hvlm import assembly
from hvlm.checks.leaks import assert_nothing_leaks, changed_from, states
from hvlm.data.collate import collate
from hvlm.errors import UserError
from hvlm.evaluation.generate import generate
from hvlm.evaluation.likelihood import Query, answer_likelihoods
from hvlm.evaluation.scores import Question, Try
from hvlm.evaluation.streaming import StreamingReader
from hvlm.model import known_text
from hvlm.prompts import Prompt, context
from hvlm.types import InputSpec

CASES = [pytest.param(case, id=case.id) for case in cases()]
# A fusion that reads the text, behind every connector in every mode, every kind of attention and every merger.
FUSED = [
    Case(order, (variant,))
    for order in ORDERS
    for group in ("connector", "attention", "merger")
    for variant in variants(group)
    if order == "question_first" or group == "connector"
]


@pytest.mark.fault(65)
@pytest.mark.parametrize("case", CASES)
def test_tokens_at_i_and_later_leave_what_stands_before_i_as_it_was(case: Case) -> None:
    assert_nothing_leaks(model(case), "all")


@pytest.mark.fault(65)
@pytest.mark.parametrize("loss", ["all", "answer"])
@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.id)
def test_nor_does_a_fusion_with_the_text_let_the_answer_leak(case: Case, loss: str) -> None:
    assert_nothing_leaks(with_fusion(model(case), Mix), loss)


@pytest.mark.slow
@pytest.mark.fault(65)
@pytest.mark.parametrize("connector", variants("connector"), ids=lambda connector: connector.id)
@pytest.mark.parametrize("order", ORDERS)
def test_no_combination_of_merger_connector_and_attention_lets_it_leak(order: str, connector: Variant) -> None:
    for merger in variants("merger"):
        for attention in variants("attention"):
            try:
                vlm = model(Case(order, (merger, connector, attention)))
            except UserError:  # attention that sees ahead behind a connector that reads forward
                assert connector.id == "foveated-autoregressive"
                continue
            assert_nothing_leaks(with_fusion(vlm, Mix), "all")


@pytest.mark.fault(65)
@pytest.mark.parametrize("order", ORDERS)
def test_a_fusion_that_ignores_the_mask_is_handed_nothing_of_the_answer(order: str) -> None:
    for loss in ("all", "answer"):
        assert_nothing_leaks(with_fusion(model(Case(order, ())), IgnoresTheMask), loss)


@pytest.mark.fault(65)
@pytest.mark.parametrize("order", ORDERS)
def test_a_fusion_that_cheats_is_found_out(order: str) -> None:
    for loss in ("all", "answer"):
        with pytest.raises(AssertionError, match="changed with it"):
            assert_nothing_leaks(with_fusion(model(Case(order, ())), Cheat), loss)


TALKED = [
    (Prompt("what shape ?", [("how many ?", "two three")]), "blue circle star"),
    (Prompt("how many ?", [("what color ?", "red"), ("what shape ?", "ring")]), "two"),
]


@pytest.mark.parametrize("order", ORDERS)
def test_no_answer_of_a_conversation_leaks_into_what_stands_before_it(order: str) -> None:
    """The earlier answers are targets, too: a fusion may know the first question and nothing more."""
    for fusion in (Mix, IgnoresTheMask):
        vlm = with_fusion(model(Case(order, ())), fusion)
        batch = batch_of(clip(1, 4, TALKED, order, side(vlm)), clip(2, 2, TALKED[:1], order, side(vlm)), size=side(vlm))
        first = int(batch.loss_mask_KS.int().argmax(1).max())
        h, place_KS, mask = states(vlm, batch)
        for i in range(first, int(batch.attention_mask_KS.sum(1).max())):
            other, _, _ = states(vlm, changed_from(batch, i))
            before = mask & (torch.arange(h.shape[1]) < place_KS[:, i : i + 1])
            assert torch.equal(h[before], other[before]), f"states before token {i} changed with it"
        for row, (prompt, _) in enumerate(TALKED):
            assert chat().decode(batch.input_ids_KS[row][batch.prompt_KS[row]].tolist()) == prompt.before[0][0]


@pytest.mark.parametrize("order", ORDERS)
def test_an_answer_to_the_last_question_is_given_with_the_earlier_exchanges_known(order: str) -> None:
    """Its likelihood is that of one row that holds everything."""
    vlm = model(Case(order, (Variant("connector", "mean"),)))
    (prompt, answer), inputs = TALKED[0], InputSpec(order, 4, side(vlm))
    item = clip(1, 4, TALKED[:1], order, side(vlm))
    row = chat().encode(prompt, answer, "last", order, **context(prompt))
    whole = batch_of(item._replace(rows=[(*row, {})]), size=side(vlm))
    logp = vlm.token_logprobs(whole)[0].double()
    asked = Question("q", "c", "t", (Try(prompt, (), (answer, "red"), 0),), ())
    (found,) = answer_likelihoods(vlm, chat(), [Query(item.frames, item.times, [asked])], inputs, "32-true")
    end = int(whole.attention_mask_KS[0].sum()) - 1
    torch.testing.assert_close(found[prompt, answer].logp, float(logp[:end].sum()), rtol=1e-4, atol=1e-4)
    assert found[prompt, answer].tokens == 3
    other = batch_of(clip(1, 4, [(str(prompt), answer)], order, side(vlm)), size=side(vlm))
    assert not torch.allclose(vlm.token_logprobs(other)[0].double().sum(), logp.sum()), "the earlier turns are read"


@pytest.mark.fault(65)
@pytest.mark.parametrize("order", ORDERS)
def test_what_may_be_known_is_what_stands_before_the_answer(order: str) -> None:
    vlm = model(Case(order, (Variant("connector", "mean"),)))
    question, answer = ASKED[2]
    for loss in ("answer", "all"):
        batch = batch_of(clip(1, 2, [ASKED[0], (question, answer)], order, side(vlm), loss), size=side(vlm))
        known = chat().decode(batch.input_ids_KS[1][batch.prompt_KS[1]].tolist())
        head, at = chat().encode_prompt(question, order)
        if loss == "answer":
            assert known == question and int(batch.prompt_KS[1].sum()) == len(head)
        else:  # every token but the first is a target; those before the video precede all visual tokens anyway
            assert int(batch.prompt_KS[1].sum()) == max(1, at)
        assert not (batch.prompt_KS & ~batch.attention_mask_KS).any()
        text, mask = known_text(batch, vlm.language.embed(batch.input_ids_KS))
        assert text.shape[1] == mask.shape[1] == batch.prompt_KS.sum(1).max() and not text[~mask].any()
    with pytest.raises(ValueError, match="needs Batch.prompt_KS"):
        known_text(batch._replace(prompt_KS=None), vlm.language.embed(batch.input_ids_KS))


@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_fused_tokens_know_the_question(order: str) -> None:
    """Otherwise the tests above would hold for a room that reads nothing."""
    vlm = with_fusion(model(Case(order, (Variant("connector", "mean"),))), Mix)
    batch = batch_of(clip(1, 3, ASKED[:2], order, side(vlm)), size=side(vlm))
    tokens = vlm.visual_tokens(batch, vlm.language.embed(batch.input_ids_KS)).x_BSD
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3


@pytest.mark.fault(65)
@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_with_fusion_writing_goes_on_from_what_training_sees(order: str) -> None:
    """A model writes the answers whose every token it finds likeliest in the pass that training makes."""
    vlm = with_fusion(model(Case(order, ()), seed=3), Mix)
    for parameter in vlm.language.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    item = clip(1, 3, ASKED, order, side(vlm))
    ids = SimpleNamespace(
        end_id=chat().end_id, end_ids=chat().end_ids, decode=list
    )  # words would leave out special tokens
    said = generate(vlm, ids, batch_of(item, size=side(vlm)), 5)
    assert len(set(map(tuple, said))) > 1, "the answers must differ, or this test sees nothing"
    rows = []
    for (question, _), written, (*_, meta) in zip(ASKED, said, item.rows, strict=True):
        prompt, at = chat().encode_prompt(question, order)
        until = written.index(ids.end_id) + 1 if ids.end_id in written else len(written)
        rows.append((prompt + written[:until], [False] * len(prompt) + [True] * until, at, 0, meta))
    targets = vlm.targets(batch_of(item._replace(rows=rows), size=side(vlm)))
    assert torch.equal(targets.logits_MV.argmax(-1), targets.ids_M) and len(targets.ids_M) >= 5


@pytest.mark.fault(65)
@pytest.mark.parametrize("order", ORDERS)
def test_with_fusion_no_option_is_scored_with_another_ones_visual_pass(order: str) -> None:
    """Options of a question share one pass through the encoder; what fusion makes of it must not know option 0."""
    vlm = with_fusion(model(Case(order, (Variant("connector", "mean"),))), Mix)
    item = clip(1, 3, ASKED[:1], order, side(vlm))
    prompts = {"what color ?": ["red", "blue", "green"], "what shape ?": ["blue circle", "star", "red ring three"]}

    def ask(answers: dict[str, list[str]]) -> dict[tuple[str, str], float]:
        tries = [SimpleNamespace(prompt=prompt, answers=options) for prompt, options in answers.items()]
        query = Query(item.frames, item.times, [SimpleNamespace(tries=[one]) for one in tries])
        (found,) = answer_likelihoods(vlm, chat(), [query], InputSpec(order, 3, side(vlm)), "32-true")
        return {key: value.logp for key, value in found.items()}

    together = ask(prompts)
    assert ask({p: a[::-1] for p, a in prompts.items()}) == pytest.approx(together, abs=1e-5)
    for prompt, answers in prompts.items():
        for answer in answers:
            assert ask({prompt: [answer]})[prompt, answer] == pytest.approx(together[prompt, answer], abs=1e-5)
            row = clip(1, 3, [(prompt, answer)], order, side(vlm))
            ended = per_row(vlm, collate([row], pad_id=chat().pad_id, size=(side(vlm),) * 2))[0]
            assert float(ended[:-1].sum()) == pytest.approx(together[prompt, answer], abs=1e-5)


@pytest.mark.fault(65)
def test_what_a_fusion_cannot_do_is_said_before_the_work() -> None:
    """A stream has no whole clip to fuse with; a stage that scores the question leaves nothing to read behind it."""
    vlm = with_fusion(model(Case("video_first", ())), Mix)
    with pytest.raises(UserError, match="fusion= must be none, others wait for the whole clip"):
        StreamingReader(vlm, chat())
    align = Variant("stage", "align").settings | {"steps": 1, "trainable": {"language": 1e-3}}
    with pytest.raises(UserError, match="stage=align learns to write the question, too.*order=question_first"):
        assembly.stage({"stage": align}, vlm, None)
    assembly.stage({"stage": align}, with_fusion(model(Case("question_first", ())), Mix), None)
    sft = Variant("stage", "sft").settings | {"steps": 1, "trainable": {"language": 1e-3}}
    assembly.stage({"stage": sft}, vlm, None)
