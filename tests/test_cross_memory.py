"""Cross-memory: the layer written out, and what its room remembers."""

from __future__ import annotations

import pytest
import torch
from _layers import D, H, inputs, made, right_padded, tokens

from hvlm.attention.cross_memory import CrossMemoryRoom, Memory, _goes, merge_neighbours, newest

pytestmark = pytest.mark.usefixtures("small_pieces")


@pytest.mark.parametrize("causal", [False, True])
def test_cross_memory_written_out(causal):
    layer = made("cross_memory", causal)
    local, memory = inputs(12), inputs(5, seed=3)
    mask, memory_mask = right_padded(12), torch.arange(5) < torch.tensor([[2], [5]])
    masked = layer(local, memory, mask, memory_mask) * mask.unsqueeze(-1)
    expected = layer.reference(local, memory, mask, memory_mask) * mask.unsqueeze(-1)
    torch.testing.assert_close(masked, expected, rtol=1e-4, atol=1e-5)
    found, expected = layer(local, memory), layer.reference(local, memory)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), (local, memory)) for y in (found, expected)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-4)


def test_fusion_ratio():
    layer = made("cross_memory", False)
    local, memory = inputs(12).detach(), inputs(5, seed=3).detach()
    assert layer.fuse_with_memory(local, memory, 0.0) is local
    far = layer.fuse_with_memory(local, memory, 1.0)
    torch.testing.assert_close(layer.fuse_with_memory(local, memory, 0.25), 0.75 * local + 0.25 * far)
    assert layer(local, memory).shape == local.shape and (layer(local, memory) - layer(local)).abs().max() > 1e-4
    with pytest.raises(ValueError, match="expected 0 to 1"):
        layer.fuse_with_memory(local, memory, 1.5)


@pytest.mark.parametrize("update", ["merge", "fifo", "write"])
def test_memory_is_bounded_and_carries(update):
    torch.manual_seed(0)
    room = CrossMemoryRoom(8, 6, update, dim=D, num_heads=H).eval()
    x = inputs(61).detach()
    mixed, memory = room(tokens(x))
    assert mixed.x_BSD.shape == x.shape and memory.x_BMD.shape == (2, 6, D)
    changed = x.clone()
    changed[:, 8:15] += torch.randn(2, 7, D)  # the second segment is seen in the third through the memory alone
    difference = (room(tokens(changed))[0].x_BSD - mixed.x_BSD).abs().amax((0, 2))
    assert difference[:8].max() == 0 and difference[16:24].min() > 1e-6
    # A stream of segments is the whole.
    state, parts = room.new_memory(x), []
    for piece in x.split(8, 1):
        part, state = room.step(piece, torch.ones(piece.shape[:2], dtype=torch.bool), state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), mixed.x_BSD)


def test_what_the_memory_keeps():
    x = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0, 1.1], [-1, 0], [0.9, 0.1]])[None]
    memory = Memory(x, torch.ones(1, 6, dtype=torch.bool), torch.ones(1, 6))
    assert torch.equal(newest(memory, 2).x_BMD, x[:, -2:])
    merged = merge_neighbours(memory, 4)
    torch.testing.assert_close(merged.x_BMD, torch.tensor([[[1, 0.05], [0, 1.05], [-1, 0], [0.9, 0.1]]]))
    assert merged.size_BM.tolist() == [[2, 2, 1, 1]]
    padded = memory._replace(mask_BM=torch.tensor([[True, False, True, True, True, False]]),
                             size_BM=torch.tensor([[1.0, 0, 1, 1, 1, 0]]))  # fmt: skip
    kept = merge_neighbours(padded, 5)
    torch.testing.assert_close(kept.x_BMD[:, :4], x[:, [0, 2, 3, 4]])
    assert kept.mask_BM.tolist() == [[True, True, True, True, False]]


def test_what_is_unlike_its_neighbours_stays():
    x = torch.ones(1, 320, 2)
    x[0, 77] = torch.tensor([1.0, -1.0])
    merged = merge_neighbours(Memory(x, torch.ones(1, 320, dtype=torch.bool), torch.ones(1, 320)), 64)
    assert merged.x_BMD.shape[1] == 64 and merged.size_BM.sum() == 320
    alone = (merged.x_BMD[0] == x[0, 77]).all(-1)
    assert alone.sum() == 1 and merged.size_BM[0, alone] == 1


def test_a_round_merges_pairs():
    """Two neighbouring pairs never go at once: that would make one token of three."""
    x = torch.randn(4, 60, D, generator=torch.Generator().manual_seed(0))
    goes = _goes(Memory(x, torch.ones(4, 60, dtype=torch.bool), torch.ones(4, 60)), 8)
    assert goes.any(1).all() and not (goes[:, 1:] & goes[:, :-1]).any()


def test_neighbours_meet_across_padding():
    x = torch.tensor([[1.0, 0], [5, 5], [1, 0.1], [0, 1], [-1, 0]])[None]
    mask = torch.tensor([[True, False, True, True, True]])
    merged = merge_neighbours(Memory(x, mask, mask.float()), 3)
    torch.testing.assert_close(merged.x_BMD, torch.tensor([[[1, 0.05], [0, 1], [-1, 0]]]))


@pytest.mark.parametrize("update", ["merge", "fifo", "write"])
def test_padding_is_not_remembered(update):
    torch.manual_seed(0)
    room = CrossMemoryRoom(8, 6, update, dim=D, num_heads=H).eval()
    x, mask = inputs(24, rows=3).detach(), torch.ones(3, 24, dtype=torch.bool)
    mask[0, 13:16] = False
    mask[1, 2:16] = False
    state, alone = room.new_memory(x), [room.new_memory(x[:1]) for _ in x]
    for start in range(0, 24, 8):
        at = slice(start, start + 8)
        y, state = room.step(x[:, at], mask[:, at], state)
        for i, real in enumerate(mask[:, at]):
            if real.any():
                one, alone[i] = room.step(x[i : i + 1, at][:, real], mask[i : i + 1, at][:, real], alone[i])
                torch.testing.assert_close(y[i, real], one[0], rtol=1e-4, atol=1e-5)


def test_sizes_count_in_low_precision_too():
    room = CrossMemoryRoom(256, 8, "merge", dim=D, num_heads=H).bfloat16().eval()
    _, memory = room(tokens(torch.randn(1, 5120, D, dtype=torch.bfloat16)))
    assert memory.size_BM.sum() == 5120 and memory.x_BMD.dtype == torch.bfloat16
