"""What heads are promised: their own output, loss and view; the visual tokens and their places."""

from __future__ import annotations

import pytest
import torch
from _rooms import Classify
from _tiny import ASKED, Case, Variant, batch_of, clip, model, side, two_clips

from hvlm import assembly
from hvlm.data.views import Questions
from hvlm.model import VLM, named_parts
from hvlm.stage._base import Losses, Stage
from hvlm.types import Batch


class OfTheHead(Stage):
    """A stage that leaves view and loss to the head."""

    def losses(self, batch: Batch) -> Losses:
        return Losses.of("head", *self.model.head.loss(self.model.output(batch), batch))


def with_head(order: str, connector: str = "mean", classes: int = 2) -> VLM:
    vlm = model(Case(order, (Variant("connector", connector),)))
    torch.manual_seed(0)
    vlm.head = Classify(classes, text_dim=vlm.language.dim)
    return vlm.eval()


@pytest.mark.parametrize("connector", ["mean", "patches", "longvlm", "foveated"])
@pytest.mark.parametrize("order", ["question_first", "video_first"])
@torch.no_grad()
def test_a_head_reads_the_states_at_the_places_of_the_video(order: str, connector: str) -> None:
    vlm = with_head(order, connector)
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    sequence = vlm.sequence(batch)
    h = vlm.hidden(sequence)
    rows = torch.arange(3).unsqueeze(1)
    assert torch.equal(sequence.x_KLD[rows, sequence.visual_place_KV], sequence.tokens.x_BSD)
    assert torch.equal(sequence.mask_KL[rows, sequence.visual_place_KV], sequence.tokens.mask_BS)
    text = vlm.language.embed(batch.input_ids_KS)
    assert torch.equal(sequence.x_KLD[rows, sequence.text_place_KS], text)
    whole, frames = vlm.head(h, sequence)
    assert whole.shape == (3, 2) and frames.shape == (3, int(sequence.tokens.frame_BS.max()) + 1, 2)
    for row in range(3):
        of_video = h[row, sequence.visual_place_KV[row]]
        for t in sequence.tokens.frame_BS[row][sequence.tokens.mask_BS[row]].unique().tolist():
            seen = sequence.tokens.mask_BS[row] & (sequence.tokens.frame_BS[row] == t)
            torch.testing.assert_close(frames[row, t], vlm.head.scores(of_video[seen].mean(0)), rtol=0, atol=1e-5)


def test_a_stage_that_leaves_it_to_the_head_learns_its_loss() -> None:
    vlm = with_head("question_first").train()
    items = [clip(seed, 2, ASKED[:1], vlm.order, side(vlm)) for seed in range(6)]
    batch = batch_of(*items, size=side(vlm))
    batch = batch._replace(rows=[{"label": seed % 2} for seed in range(6)])
    stage = OfTheHead(model=vlm, steps=30, batch_size=6, trainable={"head": 3e-2, "language": 3e-3})
    stage.freeze()
    assert {name for name, _ in named_parts(vlm)["head"]} == {"head.scores.weight", "head.scores.bias"}
    optimizer = stage.configure_optimizers()["optimizer"]
    for _ in range(30):
        terms, measures = stage.losses(batch)
        total, count = terms["head"]
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    assert measures["accuracy"].total == count == 6


def test_the_view_is_the_stages_or_the_heads() -> None:
    vlm = with_head("question_first")
    vlm.head.view = view = Questions()
    assert assembly.view_of(OfTheHead, vlm) is view
    sft = assembly.room_class("stage", Variant("stage", "sft").settings)
    assert assembly.view_of(sft, vlm) is sft.view and isinstance(sft.view, Questions)


def test_a_head_that_writes_no_text_says_so() -> None:
    vlm = with_head("question_first")
    batch = batch_of(*two_clips(vlm), size=side(vlm))
    with pytest.raises(ValueError, match="Classify gives no logits of tokens; use head=text"):
        vlm.token_logprobs(batch)
    with pytest.raises(ValueError, match="Classify gives no logits of tokens; use head=text"):
        vlm.head.logits(torch.zeros(1, vlm.language.dim))
