"""Writing with a cache is what the whole sequence says, token for token. Each check takes a ``Variant``."""

from __future__ import annotations

import torch

from hvlm.checks.models import shared_model
from hvlm.checks.tiny import Case, Variant, batch_of, chat, model, side, two_clips
from hvlm.data.collate import Item
from hvlm.evaluation.generate import generate
from hvlm.model import VLM, interleave, pick


def greedy(vlm: VLM, item: Item, num_tokens: int) -> str:
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


def decoding_with_a_cache_is_argmax_over_the_whole_sequence(variant: Variant, order: str) -> None:
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


def bytes_of_a_cache_are_what_is_allocated(variant: Variant) -> None:
    """What the room says of its memory is what its cache keeps."""
    vlm = shared_model(Case("question_first", (variant,)))
    lm, room = vlm.language, vlm.kvcache
    for rows, length in ((1, 7), (3, 12)):
        kept = room.new()
        with torch.no_grad():
            lm.hidden(torch.randn(rows, length, lm.dim), cache=kept)
        assert kept.nbytes == room.bytes(length, rows) > 0
