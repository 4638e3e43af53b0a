"""No text reaches what stands before it: what a model says of a token never depends on that token or on later ones."""

from __future__ import annotations

import torch
from torch import Tensor

from hvlm.checks.tiny import Case, batch_of, chat, model, side, two_clips
from hvlm.model import VLM
from hvlm.types import Batch


@torch.no_grad()
def states(vlm: VLM, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The language model's states [K, L, D], where each text token stands [K, S], and which places are real [K, L]."""
    sequence = vlm.sequence(batch)
    return vlm.hidden(sequence), sequence.text_place_KS, sequence.mask_KL


def changed_from(batch: Batch, place: int) -> Batch:
    """Other words at ``place`` and later, in every row."""
    later = torch.arange(batch.input_ids_KS.shape[1]) >= place
    return batch._replace(
        input_ids_KS=torch.where(later, (batch.input_ids_KS + 3) % chat().vocab_size, batch.input_ids_KS)
    )


def assert_nothing_leaks(vlm: VLM, loss: str) -> None:
    """States before place i stay as they were, to the last bit, when the tokens at i and later change.

    ``loss=all``: for any i, since every token is scored. ``loss=answer``: for those of the answer; what comes before is
    given, and a fusion may let visual tokens know it.
    """
    batch = batch_of(*two_clips(vlm, loss), size=side(vlm))
    first = int(batch.loss_mask_KS.int().argmax(1).max())  # so that it is inside every row's answer, or behind it
    last = int(batch.attention_mask_KS.sum(1).max()) - 1
    at = int(batch.visual_at_K[0])
    places = {first, last} if loss == "answer" else {1, at, at + 1, first, last}
    h, place_KS, mask = states(vlm, batch)
    for i in sorted(places - {0}):
        other, _, _ = states(vlm, changed_from(batch, i))
        before = mask & (torch.arange(h.shape[1]) < place_KS[:, i : i + 1])
        assert torch.equal(h[before], other[before]), f"states before token {i} changed with it"
        assert not torch.equal(h[mask], other[mask]), "the change must be seen, or this test sees nothing"


def no_text_reaches_what_stands_before_it(case: Case) -> None:
    """With every token scored, and, where a fusion reads the text, with the answer's alone."""
    vlm = model(case)
    assert_nothing_leaks(vlm, "all")
    if vlm.fusion.reads_text:
        assert_nothing_leaks(vlm, "answer")
