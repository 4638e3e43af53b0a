"""The calls of the first description, and the rooms around the layers."""

from __future__ import annotations

import pytest
import torch
from _layers import D, H, inputs, tokens

from hvlm import attention
from hvlm.attention import (
    CrossMemoryAttention,
    HierarchicalAttentionBlock,
    LinearAttentionBlock,
    LocalGlobalAttention,
    MambaLayer,
    PerformerAttention,
    StridedAttention,
)
from hvlm.attention._base import read_out
from hvlm.attention.cross_memory import CrossMemoryRoom
from hvlm.attention.full import FullRoom
from hvlm.attention.local_global import LocalGlobalRoom
from hvlm.attention.mamba import MambaRoom
from hvlm.attention.mamba2 import Mamba2Room
from hvlm.attention.performer import PerformerRoom
from hvlm.attention.strided import StridedRoom

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_calls_of_the_first_description():
    x = torch.randn(2, 128, 768)
    for layer in (
        StridedAttention(stride=4, dim=768, num_heads=12),
        LocalGlobalAttention(local_window=64, num_global_tokens=4, dim=768, num_heads=12),
        PerformerAttention(dim=768, num_heads=12),
        MambaLayer(dim=768, state_size=16),
        StridedAttention(stride=4),
    ):
        assert layer(x).shape == x.shape
    layer = CrossMemoryAttention(dim=768, num_heads=12)
    assert layer(x, torch.randn(2, 32, 768)).shape == x.shape
    assert layer.fuse_with_memory(x, torch.randn(2, 32, 768), fusion_ratio=0.5).shape == x.shape
    for kind, settings in (("strided", {"stride": 4}), ("local_global", {}), ("cross_memory", {}), ("full", {})):
        assert HierarchicalAttentionBlock(attention_type=kind, **settings)(x).shape == x.shape
    for kind in ("performer", "mamba", "mamba2"):
        assert LinearAttentionBlock(attention_type=kind)(x).shape == x.shape
    with pytest.raises(ValueError, match="expected one of"):
        HierarchicalAttentionBlock(attention_type="nothing")
    with pytest.raises(TypeError):
        HierarchicalAttentionBlock(attention_type="strided", strude=4)
    with pytest.raises(ValueError, match="reads no memory"):
        StridedAttention(4)(x, memory=x)
    assert set(attention.__all__) == {n for n in dir(attention) if isinstance(getattr(attention, n), type)}


ROOMS = {
    "full": lambda **more: FullRoom(dim=D, num_heads=H, **more),
    "strided": lambda **more: StridedRoom(stride=4, dim=D, num_heads=H, **more),
    "local_global": lambda **more: LocalGlobalRoom(local_window=5, num_global_tokens=3, dim=D, num_heads=H, **more),
    "performer": lambda **more: PerformerRoom(num_features=24, redraw=2, dropout=0.2, dim=D, num_heads=H, **more),
    "mamba": lambda **more: MambaRoom(dim=D, **more),
    "mamba2": lambda **more: Mamba2Room(dim=D, **more),
    "cross_memory": lambda **more: CrossMemoryRoom(8, 6, dim=D, num_heads=H, **more),
}


@pytest.mark.parametrize("name", ROOMS)
def test_checkpointing_changes_nothing(name):
    """Over three steps, in which Performer draws new features."""
    torch.manual_seed(0)
    plain, again = (ROOMS[name](gradient_checkpointing=which).train() for which in (False, True))
    again.load_state_dict(plain.state_dict())
    found = []
    for room in (plain, again):
        torch.manual_seed(1)
        for step in range(3):
            out, _ = room(tokens(inputs(21, seed=step).detach()))
            out.x_BSD.square().sum().backward()
        grads = {key: p.grad for key, p in room.named_parameters() if p.grad is not None}
        found.append((out.x_BSD, grads, dict(room.named_buffers())))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_readout():
    """Of each four places the last that is valid."""
    came = tokens(inputs(22).detach())
    mask = torch.arange(22) < torch.tensor([22, 10])[:, None]
    mask[0, [3, 4, 5, 6, 7]] = False
    read = read_out(came._replace(mask_BS=mask), 4)
    assert read.mask_BS.tolist() == [[True, False, True, True, True, True], [True] * 3 + [False] * 3]
    assert read.time_BS[read.mask_BS].tolist() == [2, 11, 15, 19, 21, 3, 7, 9]
    room, _ = MambaRoom(readout=64, dim=D)(came._replace(mask_BS=mask))
    assert room.x_BSD.shape == (2, 1, D) and room.time_BS.tolist() == [[21], [9]]
