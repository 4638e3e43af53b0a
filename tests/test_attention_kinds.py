"""Performer, Mamba and Mamba-2 against their papers and other packages."""

from __future__ import annotations

import pytest
import torch
from _layers import CASES, LAYERS, D, H, inputs, made, right_padded

from hvlm.attention import Mamba2Layer, MambaLayer, PerformerAttention, _kernel, strided
from hvlm.attention._scan import selective_scan
from hvlm.attention.mamba import BidirectionalMamba
from hvlm.attention.mamba2 import ssd, ssd_reference
from hvlm.attention.performer import PerformerRoom, orthogonal_features, paired_features
from hvlm.errors import UserError
from hvlm.io.checkpoint import load_into

pytestmark = pytest.mark.usefixtures("small_pieces")


def errors(features: int, tries: int = 5) -> float:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 256, 16) for _ in range(3))
    q, k = 0.25 * q, 0.25 * k
    exact = (q @ k.mT / 4).softmax(-1) @ v
    found = []
    for _ in range(tries):
        w = paired_features(features, 16)
        found.append((_kernel.kernel_attention(q, k, v, "softmax", w) - exact).norm() / exact.norm())
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 53, 203])
@pytest.mark.parametrize("name, causal", [case for case in CASES if case[0] not in ("full", "cross_memory")])
def test_without_gradients_it_is_the_same(name, causal, length, masked, monkeypatch):
    """Some mechanisms then go stretch by stretch through their projections, too."""
    monkeypatch.setattr(_kernel, "PROJECTED", 80)
    monkeypatch.setattr(strided, "PROJECTED", 80)
    layer = LAYERS[name](causal).eval()
    x = torch.randn(2, length, D)
    mask = torch.rand(2, length) < 0.7 if masked else None
    real = torch.ones(2, length, dtype=torch.bool) if mask is None else mask
    learning = layer(x, mask)
    with torch.no_grad():
        if name in ("favor", "relu", "elu") and not causal or name == "local" or name == "strided" and length > 80:
            monkeypatch.setattr(layer, "project", None)  # not the way that learns
        if name == "mamba" and causal:
            monkeypatch.setattr(layer, "scan", None)
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                found = layer(x, mask)
            assert found.dtype == (torch.bfloat16 if half else torch.float32)
            torch.testing.assert_close(found.float()[real], learning[real], atol=0.05 if half else 1e-5, rtol=0)


def test_more_features_are_nearer_to_softmax():
    few, some, many = (errors(m) for m in (16, 64, 256))
    assert few > 1.5 * some > 1.5 * 1.5 * many and many < 0.05


def test_as_near_to_softmax_as_performer_pytorch():
    """256 features, the same inputs: our error and the best peer's, over draws of the features; 128 of ours are as good
    (`make bench-attention` installs it)."""
    peer = pytest.importorskip("performer_pytorch")
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 128, 64, generator=g) for _ in range(3))
    for scale in (0.3, 0.5, 1.0):
        exact = torch.nn.functional.scaled_dot_product_attention(scale * q, scale * k, v)
        ours, half, theirs = [], [], []
        for seed in range(8):
            torch.manual_seed(seed)
            for found, m in (ours, 256), (half, 128):
                y = _kernel.kernel_attention(scale * q, scale * k, v, "softmax", paired_features(m, 64))
                found.append((y - exact).norm() / exact.norm())
            other = peer.FastAttention(dim_heads=64, nb_features=256, causal=False)
            theirs.append((other(scale * q, scale * k, v) - exact).norm() / exact.norm())
        ours, half, theirs = (torch.stack(found).mean() for found in (ours, half, theirs))
        print(f"q, k of size {scale}: {ours:.3f}, with half as many {half:.3f}, against {theirs:.3f}")
        assert ours < 1.02 * theirs and half < 1.02 * theirs
        if scale == 0.3:  # where features are of use
            assert half < 0.7 * (v.mean(2, keepdim=True) - exact).norm() / exact.norm()


def test_orthogonal_features():
    w = orthogonal_features(40, 16)
    unit = torch.nn.functional.normalize(w, dim=1)
    assert w.shape == (40, 16)
    for block in unit.split(16):
        torch.testing.assert_close(block @ block.T, torch.eye(len(block)), rtol=0, atol=1e-5)
    torch.testing.assert_close(w.norm(dim=1), torch.full((40,), 4.0))
    lengths = orthogonal_features(4000, 16, "gaussian").norm(dim=1)
    assert abs(lengths.square().mean() - 16) < 1 and abs(lengths.var() - 0.5) < 0.1


def test_features_in_pairs():
    """What is odd in w cancels, and with a whole block of equal lengths what is linear and quadratic is exact."""
    w = paired_features(32, 16)
    assert torch.equal(w[16:], -w[:16])
    torch.testing.assert_close(w.T @ w / 32, torch.eye(16), rtol=0, atol=1e-5)
    layer = PerformerAttention(64, 2)
    assert layer.projection.shape == (110, 32)  # d ln d is 110.9
    assert torch.equal(layer.projection[55:], -layer.projection[:55])


@pytest.mark.parametrize("given, word", [({"num_features": 7}, "even"), ({"lengths": "long"}, "gaussian")])
def test_features_that_cannot_be(given, word):
    with pytest.raises(ValueError, match=word):
        PerformerAttention(D, H, **given)


@pytest.mark.parametrize("kernel", ["softmax", "relu", "elu"])
def test_padding_may_hold_anything(kernel):
    """Neither the constant that keeps exp in range nor a sum knows of what is not there."""
    layer = PerformerAttention(D, H, 32, kernel).eval()
    x, mask = inputs(40).detach(), right_padded(40)
    wild = torch.where(mask[..., None], x, 1e5 * x)
    with torch.no_grad():
        torch.testing.assert_close(layer(wild, mask)[mask], layer(x, mask)[mask])
    wild.requires_grad_()
    layer(wild, mask)[mask].sum().backward()
    assert wild.grad.isfinite().all() and not wild.grad[~mask].any()


def test_features_are_redrawn_in_training_only():
    layer = PerformerAttention(D, H, 8, redraw=3)
    first, x = layer.projection.clone(), inputs(5).detach()
    layer.eval()
    for _ in range(7):
        layer(x)
    assert torch.equal(layer.projection, first)
    layer.train()
    for _ in range(3):
        layer(x)
        assert torch.equal(layer.projection, first)
    layer(x)
    assert not torch.equal(layer.projection, first)
    assert torch.equal(layer.projection[4:], -layer.projection[:4])
    torch.testing.assert_close(layer.projection.norm(dim=1), first.norm(dim=1))


def test_lengths_of_a_room():
    equal, gaussian = (
        PerformerRoom(num_features=8, lengths=name, dim=D, num_heads=H) for name in ("equal", "gaussian")
    )
    for room, same in (equal, True), (gaussian, False):
        (layer,) = (module for module in room.modules() if isinstance(module, PerformerAttention))
        assert (layer.projection.norm(dim=1).std() < 1e-4) == same


def test_features_without_pairs_are_refused():
    state = PerformerAttention(D, H, 8).state_dict()
    state["projection"] = orthogonal_features(8, D // H)
    with pytest.raises(UserError, match="^old.ckpt: projection: its rows are not in pairs .* trained again$"):
        load_into(PerformerAttention(D, H, 8), state, "old.ckpt")


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("name", ["elu", "local", "mamba"])
def test_of_no_tokens(name, learns):
    layer = LAYERS[name](name == "mamba")
    with torch.set_grad_enabled(learns):
        assert layer(torch.zeros(1, 0, D)).shape == (1, 0, D)


@pytest.mark.parametrize("name", ["favor", "relu", "elu", "strided", "local"])
def test_autocast_keeps_away_from_float64(name, monkeypatch):
    monkeypatch.setattr(strided, "PROJECTED", 4)
    layer, x = LAYERS[name](False).double().eval(), torch.randn(2, 9, D).double()
    wanted = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        learning = layer(x)
        with torch.no_grad():
            found = layer(x)
    for y in learning, found:
        assert y.dtype == torch.float64
        torch.testing.assert_close(y, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["favor", "elu", "strided"])
def test_dropout_without_gradients(name, monkeypatch):
    monkeypatch.setattr(strided, "PROJECTED", 4)
    layer = LAYERS[name](False).train()
    layer.dropout.p = 1.0
    with torch.no_grad():
        assert not layer(torch.randn(1, 9, D)).any()


# ------------------------------------------------------------------------------------------------ Mamba


def test_mamba_equals_transformers():
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = MambaConfig(hidden_size=D, state_size=8, num_hidden_layers=1, conv_kernel=4, expand=2, use_bias=False)
    torch.manual_seed(0)
    theirs = MambaMixer(config, 0).eval()
    ours = MambaLayer(D, 8).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = inputs(37).detach()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


def test_mamba_has_the_published_parameters():
    names = {n: tuple(p.shape) for n, p in MambaLayer(768, 16).named_parameters()}
    assert names == {
        "A_log": (1536, 16), "D": (1536,), "in_proj.weight": (3072, 768), "out_proj.weight": (768, 1536),
        "conv1d.weight": (1536, 1, 4), "conv1d.bias": (1536,), "x_proj.weight": (80, 1536),
        "dt_proj.weight": (1536, 48), "dt_proj.bias": (1536,),
    }  # fmt: skip
    extra = {n for n, _ in BidirectionalMamba(D, 4).named_parameters()} - {
        n for n, _ in MambaLayer(D, 4).named_parameters()
    }
    assert extra == {
        "A_b_log", "D_b", "conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight", "dt_proj_b.weight", "dt_proj_b.bias",
    }  # fmt: skip


def test_bidirectional_is_a_layer_each_way():
    both = made("mamba", False)
    ways = []
    for end in ("", "_b"):
        way = MambaLayer(D, 4).eval()
        names = {"A_log": "A_b_log"} if end else {}
        own = {n for n, _ in way.named_parameters()} - {"in_proj.weight", "out_proj.weight"}
        names = {n: names.get(n, n.replace(n.split(".")[0], n.split(".")[0] + end, 1)) for n in own}
        state = both.state_dict()
        way.load_state_dict({n: state[names.get(n, n)] for n in way.state_dict()})
        ways.append(way)
    x, mask = inputs(23).detach(), right_padded(23)
    found, valid = both(x, mask), mask.unsqueeze(-1)
    expected = ways[0].reference(x, mask) + ways[1].reference(x.flip(1), mask.flip(1)).flip(1)
    torch.testing.assert_close(found * valid, expected * valid, rtol=1e-4, atol=1e-5)


def test_bidirectional_is_symmetric_when_its_branches_are():
    layer = BidirectionalMamba(D, 4).eval()
    state = layer.state_dict()
    for name in state:
        if "_b" in name:
            state[name] = state[name.replace("_b", "", 1)]
    layer.load_state_dict(state)
    x = inputs(23).detach()
    torch.testing.assert_close(layer(x.flip(1)).flip(1), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 8])
def test_s6_keeps_no_more_states_than_activations(batch):
    """Of all states, N = 16 times the activations, one token's in sixteen at most is kept for the backward pass."""
    x, delta = torch.randn(batch, 256, 32, requires_grad=True), torch.rand(batch, 256, 32)
    b, c = torch.randn(batch, 256, 16), torch.randn(batch, 256, 16)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        selective_scan(x, delta, -torch.rand(32, 16), b, c, torch.ones(32))
    assert sum(saved) <= 6 * x.numel()


def test_mamba2_equals_transformers():
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(hidden_size=D, state_size=8, num_heads=4, head_dim=16, expand=2, n_groups=1, chunk_size=8,
                          num_hidden_layers=1, conv_kernel=4, use_bias=False)  # fmt: skip
    torch.manual_seed(0)
    theirs = Mamba2Mixer(config, 0).eval()
    ours = Mamba2Layer(D, 8, 16, chunk=16).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = inputs(37).detach()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
def test_ssd_is_the_recurrence_for_any_chunk(chunk):
    torch.manual_seed(0)
    x, delta, a = torch.randn(2, 37, 3, 4), torch.rand(2, 37, 3), -torch.rand(3)
    b, c, state = torch.randn(2, 37, 5), torch.randn(2, 37, 5), torch.randn(2, 3, 5, 4)
    for found, expected in zip(
        ssd(x, delta, a, b, c, chunk, state), ssd_reference(x, delta, a, b, c, state), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
