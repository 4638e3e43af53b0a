"""Rows packed into fewer ones are read as if each stood alone: states, losses and gradients."""

from __future__ import annotations

import pytest
import torch
from test_causal import FAMILIES, TINY
from test_stages import clips, start
from test_text_head import close, learned
from torch import Tensor
from transformers import AutoConfig

from hvlm.language._packing import packed
from hvlm.language.causal import Causal
from hvlm.types import Batch

LENGTHS = (12, 3, 7, 5, 0, 4)


def mask_of(lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    """Padding anywhere: at the end of some rows, at the beginning and in the middle of others."""
    mask = torch.zeros(len(lengths), 12, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, torch.randperm(12, generator=torch.Generator().manual_seed(row))[:length]] = True
    return mask


def test_rows_fill_rows() -> None:
    plan = packed(mask_of())
    assert plan is not None and plan.row_RC.shape == (3, 12)  # 12 | 7 + 5 + 0 | 4 + 3
    assert sorted(plan.source_RC[plan.mask_RC].tolist()) == mask_of().flatten().nonzero().squeeze(1).tolist()
    seen = plan.seen()[:, 0]
    for r, i, j in seen.nonzero().tolist():
        assert j <= i and (plan.row_RC[r, i] == plan.row_RC[r, j] or i == j)
    x = torch.arange(72.0).view(6, 12, 1) + 1
    assert torch.equal(plan.back(plan.lay(x), 6, 12), x * mask_of().unsqueeze(-1))
    assert packed(torch.ones(3, 4, dtype=torch.bool)) is None, "nothing to gain"
    assert packed(torch.zeros(1, 4, dtype=torch.bool)) is None


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_reads_packed_rows_as_rows(name: str, attention: str) -> None:
    """Windows, soft caps, learned positions and sizes of merged tokens included."""
    if name == "gemma2" and attention == "sdpa":
        pytest.skip("refused: test_combinations_that_cannot_be_served_are_refused_by_name")
    torch.manual_seed(0)
    values = {"model_type": name, **TINY, **FAMILIES[name]}
    if name in ("llama3", "phi3_longrope"):  # rotations of their own, whose settings are written flat
        values = {**values, **{f"rope_scaling.{k}": v for k, v in values.pop("rope_scaling").items()}}
    else:
        AutoConfig.for_model(**values)
    room = Causal(None, config=values, vocab_size=420, attention=attention).eval()
    x, mask = torch.randn(6, 12, 32), mask_of()
    sizes = torch.rand(6, 12)
    weight = torch.randn(6, 12, 32) * mask.unsqueeze(-1)
    leaping = mask.cumsum(1) * 2 + torch.arange(6).unsqueeze(1)
    for position, log_size in ((None, None), (leaping, None), (None, sizes)):
        found = []
        for pack in (False, True):
            room.pack = pack
            room.zero_grad()
            leaf = x.clone().requires_grad_()
            states = room.hidden(leaf, mask, position, None, log_size)
            (states * weight).sum().backward()
            gradients = [p.grad for p in room.parameters() if p.grad is not None]
            found.append([states * mask.unsqueeze(-1), leaf.grad, *gradients])
        assert len(found[0]) > 5
        for plain, together in zip(*found, strict=True):
            assert (together - plain).abs().max() <= 2e-6 * max(1.0, float(plain.abs().max()))


def ragged(batch: Batch) -> Batch:
    """Of every other row nothing stays but what is around the second target."""
    place = torch.arange(batch.input_ids_KS.shape[1])
    second = (batch.loss_mask_KS.cumsum(1) < 2).sum(1, keepdim=True)
    hidden = ((place < second - 2) | (place > second + 1)) & (torch.arange(len(second)) % 2 == 1).unsqueeze(1)
    return batch._replace(
        attention_mask_KS=batch.attention_mask_KS & ~hidden, loss_mask_KS=batch.loss_mask_KS & ~hidden
    )


@pytest.mark.parametrize("name", ["align", "sft", "dpo", "text"])
def test_a_stage_learns_from_packed_rows_what_it_learns_from_rows(needles: list[str], name: str) -> None:
    stage, reading = start(needles, f"stage={'sft' if name == 'text' else name}", "language.pack=true")
    stage.eval()
    batch = clips(reading, 6)
    if name == "text":  # chats alone
        batch = batch._replace(
            frame_mask_BT=torch.zeros_like(batch.frame_mask_BT), visual_at_K=torch.zeros_like(batch.visual_at_K)
        )
    batch = ragged(batch)
    read: list[int] = []
    layers = stage.model.language.model.base_model
    layers.register_forward_pre_hook(
        lambda _, args, how: read.append(how["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    together = learned(stage, batch)
    fewer, _ = sum(read), read.clear()
    stage.model.language.pack = False
    plain = learned(stage, batch)
    assert fewer < sum(read), "fewer places are read"
    assert plain.keys() == together.keys()
    for key, value in plain.items():
        close(together[key], value)


def test_rows_that_choose_their_adapter_are_not_packed(needles: list[str]) -> None:
    stage, reading = start(needles, "stage=sft", "language.pack=true")
    batch = clips(reading, 2)
    batch = batch._replace(adapter_K=torch.full_like(batch.clip_K, -1))
    with pytest.raises(ValueError, match=r"language.pack=true, which reads several rows as one"):
        stage.model.sequence(batch)
    with torch.no_grad():
        stage.model.sequence(batch)
