"""Cross-entropy in parts, whose logits never exist all at once, is the plain one: losses, log-probs and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_causal import FAMILIES, TINY
from test_stages import clips, start
from torch import Tensor
from transformers import AutoConfig

from hvlm.functional import scored_in_parts
from hvlm.head.text import TextHead
from hvlm.language.causal import Causal
from hvlm.stage._base import Stage
from hvlm.types import Batch, Targets

M, DIM = 11, 32


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_gradients_are_those_of_finite_differences(cap: float | None) -> None:
    torch.manual_seed(0)
    ids = torch.randint(7, (5,))
    x, weight, bias, each = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 4), (7, 4), (7,), (5,)))

    def of(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        def logits(h: Tensor) -> Tensor:
            found = F.linear(h, weight, bias)
            return found if cap is None else cap * torch.tanh(found / cap)

        return (scored_in_parts(logits, x, ids, 2)[0] * each).sum()  # each token with a weight of its own

    assert torch.autograd.gradcheck(of, [t.requires_grad_() for t in (x, weight, bias)])


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_scores_in_parts_as_at_once(name: str, half: bool) -> None:
    """Biases, scales and caps of logits and tied embeddings included."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{"model_type": name, **TINY, **FAMILIES[name]}).to_diff_dict()
    room = Causal(None, config={k: v for k, v in config.items() if not isinstance(v, dict | list)}, vocab_size=420)
    states, ids, weight = torch.randn(M, DIM), torch.randint(420, (M,)), torch.randn(M)
    found = []
    head = TextHead(logits=room.logits)
    for at_once in (M, 3):
        targets = Targets(states, ids, ids, ids, head.logits, at_once * 4 * 420 + 5)
        with torch.no_grad():
            asked = targets.scored()[0]
        room.zero_grad()
        x = states.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logp, likeliest = scored_in_parts(head.logits, x, ids, at_once)
        if not half:
            close(asked, logp.detach())
        (logp * weight).sum().backward()
        gradients = [p.grad for p in room.parameters() if p.grad is not None]
        assert gradients and logp.dtype == torch.float32
        found.append([logp, likeliest.float(), *((x.grad, *gradients) if not half else ())])
    for plain, parted in zip(*found, strict=True):
        close(parted, plain)


def learned(stage: Stage, batch: Batch) -> dict[str, Tensor]:
    """Losses, measures and gradients of a step."""
    stage.zero_grad()
    terms, measures = stage.losses(batch)
    sum(term.total / term.count for term in terms.values()).backward()
    values = {f"{n}/{i}": x.detach().float() for n, mean in (terms | measures).items() for i, x in enumerate(mean)}
    return values | {n: p.grad for n, p in stage.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["align", "sft", "dpo", "task"])
def test_a_stage_learns_in_parts_what_it_learns_at_once(needles: list[str], name: str) -> None:
    stage, reading = start(needles, f"stage={name}", "head=text", *(["head.logits_mb=1"] if name != "dpo" else []))
    stage.eval()
    batch = clips(reading, 8)
    if name == "dpo":  # else policy and reference are the same, and nothing depends on the log-probs
        for parameter in stage.model.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    head, width = stage.model.head, 0
    assert isinstance(head, TextHead) and head.at_once == (256 if name == "dpo" else 1) << 20
    plain = learned(stage, batch)

    rows: list[int] = []
    logits = head._logits

    def counted(h: Tensor) -> Tensor:
        nonlocal width
        found = logits(h)
        rows.append(len(h))
        width = found.shape[-1]
        return found

    head._logits, head.at_once = counted, 3 * 4 * 300
    parted = learned(stage, batch)
    scored = int((batch.loss_mask_KS & batch.attention_mask_KS).sum())
    at_once = 3 * 300 // width
    assert plain.keys() == parted.keys() and max(rows) <= at_once < scored // 8, "and never more logits than that"
    assert sum(rows) > scored
    for key, value in plain.items():
        close(parted[key], value)


def test_parts_of_logits_are_a_setting_in_reach(needles: list[str]) -> None:
    assert start(needles, "stage=sft", "head.logits_mb=null")[0].model.head.at_once is None
    assert start(needles, "stage=sft", "head.logits_mb=2")[0].model.head.at_once == 2 << 20
