"""Scores of heads without training are what their definitions say, and patterns made of them choose heads."""

from __future__ import annotations

import math

import pytest
import torch
from test_kvcache_rivals import MASK, embeddings, language, rotation

from experiments.duo import scores
from hvlm.errors import UserError
from hvlm.evaluation.head_scores import at_random, by_reconstruction, by_relative_attention, inverse
from hvlm.io.head_patterns import choose_heads, read_pattern, write_pattern

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@torch.no_grad()
def test_reconstruction_is_the_highest_attention_that_the_context_is_paid_while_it_is_repeated() -> None:
    x, request = embeddings(24), embeddings(3, 7)
    found = by_reconstruction(language(), x, request, MASK, skip=2)
    whole, mask = torch.cat([x, request, x], 1), torch.cat([MASK, torch.ones(3, 3).bool(), MASK], 1)
    seen = (mask[:, None, None] & torch.ones(51, 51).bool().tril()) | torch.eye(51).bool()
    weights = (
        language("eager")
        .model.model(
            inputs_embeds=whole,
            attention_mask=torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            output_attentions=True,
        )
        .attentions
    )
    for layer in range(2):
        for head in range(2):
            each = []
            for row in range(3):
                valid = MASK[row].nonzero().flatten().tolist()
                repeated = [27 + j for j in valid]
                each.append(
                    max(
                        weights[layer][row, h, i, j].item()
                        for h in (2 * head, 2 * head + 1)
                        for i in repeated
                        for j in valid[2:]
                    )
                )
            assert math.isclose(found[layer, head].item(), sum(each) / 3, rel_tol=1e-4)
    alone = [by_reconstruction(language(), x[r : r + 1, m], request[r : r + 1], skip=2) for r, m in enumerate(MASK)]
    torch.testing.assert_close(torch.stack(alone).mean(0), found, **CLOSE)
    with pytest.raises(UserError, match="skip=24: a context has no more tokens"):
        by_reconstruction(language(), x, request, skip=24)


@torch.no_grad()
def test_relative_attention_is_the_area_under_the_cumulative_attention_of_mean_query_and_mean_key() -> None:
    lm, x, positions = language(), embeddings(24), 12
    found = by_relative_attention(lm, x, MASK, positions)
    taken = {"q_proj": [], "k_proj": []}
    for layer in lm.model.model.layers:
        for name, outputs in taken.items():
            getattr(layer.self_attn, name).register_forward_hook(lambda _, __, out, to=outputs: to.append(out))
    lm.hidden(x, MASK)
    theta = lm.model.config.rope_parameters["rope_theta"]
    turns = [rotation(i, theta=theta) for i in range(positions)]
    for layer in range(2):
        for head in range(2):
            areas = []
            for row in range(3):
                for query_head in (2 * head, 2 * head + 1):
                    q = taken["q_proj"][layer][row, MASK[row], 8 * query_head : 8 * query_head + 8].double().mean(0)
                    k = taken["k_proj"][layer][row, MASK[row], 8 * head : 8 * head + 8].double().mean(0)
                    scores = torch.stack([(turns[-1] @ q) @ (turn @ k) / math.sqrt(8) for turn in turns])
                    areas.append(scores.softmax(0).cumsum(0).mean().item())
            assert math.isclose(found[layer, head].item(), sum(areas) / len(areas), rel_tol=1e-4)
    assert found.std() > 1e-3, "heads must differ, or this sees nothing"


def test_patterns_without_training_are_files_that_choose_heads(tmp_path) -> None:
    assert torch.equal(at_random(3, 4, 5), at_random(3, 4, 5)) and not torch.equal(
        at_random(3, 4, 5), at_random(3, 4, 6)
    )
    gates = torch.tensor([[1.0, 0.2, 1.0], [0.2, 1.0, 0.0]])
    for share in (1 / 6, 0.5, 2 / 3):
        kept = choose_heads(gates, share).heads
        assert torch.equal(choose_heads(inverse(gates), 1 - share).heads, ~kept)
    write_pattern(tmp_path, inverse(gates), 4, 16)
    assert torch.equal(read_pattern(tmp_path, 2, 3).gates, inverse(gates))
    for score, expected in (("inverse", inverse(inverse(gates))), ("random", at_random(2, 3, 7))):
        scores.main([score, "--like", str(tmp_path), "--seed", "7", "--out", str(tmp_path / score)])
        torch.testing.assert_close(read_pattern(tmp_path / score, 2, 3).gates, expected)
    with pytest.raises(UserError, match="relative: give --checkpoint, or --source with --texts"):
        scores.main(["relative", "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
