"""The mixing layers against readable references, in value and gradient; streams, masks, FLOPs, published names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hvlm import attention
from hvlm.attention import (
    CrossMemoryAttention,
    FullAttention,
    HierarchicalAttentionBlock,
    LinearAttentionBlock,
    LocalGlobalAttention,
    Mamba2Layer,
    MambaLayer,
    PerformerAttention,
    StridedAttention,
    _kernel,
    _scan,
    _softmax,
)
from hvlm.attention._flex import flex_attend, strided_mask, window_mask
from hvlm.attention._room import read_out
from hvlm.attention._scan import selective_scan
from hvlm.attention._softmax import attend_part, attend_window, join
from hvlm.attention.cross_memory import CrossMemoryRoom, Memory, merge_neighbours, newest
from hvlm.attention.full import FullRoom
from hvlm.attention.local_global import LocalGlobalRoom
from hvlm.attention.mamba import BidirectionalMamba, MambaRoom
from hvlm.attention.mamba2 import Mamba2Room, ssd, ssd_reference
from hvlm.attention.performer import PerformerRoom, orthogonal_features
from hvlm.attention.strided import StridedRoom
from hvlm.types import Tokens

D, H = 32, 4
LAYERS = {
    "full": lambda causal: FullAttention(D, H, causal),
    "strided": lambda causal: StridedAttention(4, D, H, phase=1, causal=causal),
    "local_global": lambda causal: LocalGlobalAttention(5, 3, D, H, causal),
    "local": lambda causal: LocalGlobalAttention(5, 0, D, H, causal),
    "wide_window": lambda causal: LocalGlobalAttention(100, 1, D, H, causal),
    "favor": lambda causal: PerformerAttention(D, H, 24, "softmax", causal=causal),
    "relu": lambda causal: PerformerAttention(D, H, 24, "relu", causal=causal),
    "elu": lambda causal: PerformerAttention(D, H, kernel="elu", causal=causal),
    "mamba": lambda causal: MambaLayer(D, 4) if causal else BidirectionalMamba(D, 4),
    "mamba2": lambda causal: Mamba2Layer(D, 8, 16, chunk=8) if causal else None,
    "cross_memory": lambda causal: CrossMemoryAttention(D, H, causal),
}
CASES = [(name, causal) for name in LAYERS for causal in (False, True) if LAYERS[name](causal) is not None]
# Those that are composed of others have tests of their own.
WRITTEN_OUT = [case for case in CASES if case[0] != "cross_memory" and case != ("mamba", False)]
LENGTHS = [1, 7, 53]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Everything that goes piece by piece does so at these sizes, too."""
    monkeypatch.setattr(_softmax, "SCORES", 1 << 11)
    monkeypatch.setattr(_kernel, "AT_LEAST", 16)
    monkeypatch.setattr(_kernel, "FEATURES", 1 << 11)
    monkeypatch.setattr(_kernel, "FEATURES_LEARNING", 1 << 11)
    monkeypatch.setattr(_kernel, "CAUSAL_CHUNK", 16)
    monkeypatch.setattr(_scan, "STATES", 1 << 12)


def made(name: str, causal: bool, seed: int = 0):
    torch.manual_seed(seed)
    layer = LAYERS[name](causal).eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return layer


def inputs(length: int, rows: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, D, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def right_padded(length: int) -> Tensor:
    return torch.arange(length) < torch.tensor([[max(1, length // 2)], [length]])


def run(layer, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return layer(x, None, mask) if isinstance(layer, CrossMemoryAttention) else layer(x, mask)


def written_out(layer, x: Tensor, mask: Tensor | None) -> Tensor:
    """What the layer's own readable reference gives."""
    if isinstance(layer, (FullAttention, StridedAttention, PerformerAttention)):
        raw = {"scaled": False} if isinstance(layer, PerformerAttention) else {}
        return layer.finish(layer.reference(*layer.project(x, **raw), mask))
    return layer.reference(x, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("name", "causal"), WRITTEN_OUT)
def test_equals_its_reference_in_value_and_gradient(name, causal, length, masked):
    layer, x = made(name, causal), inputs(length)
    mask = right_padded(length) if masked else None
    expected = written_out(layer, x, mask)
    found = run(layer, x, mask)
    valid = torch.ones(2, length, 1) if mask is None else mask.unsqueeze(-1).float()
    torch.testing.assert_close(found * valid, expected * valid, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(found) * valid
    parts = [x, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad((y * upstream).sum(), parts, allow_unused=True) for y in (found, expected)),
                    strict=True):  # fmt: skip
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "causal"), CASES)
def test_padding_and_other_clips_change_nothing(name, causal):
    layer, x = made(name, causal), inputs(53).detach()
    together = run(layer, x, right_padded(53))
    torch.testing.assert_close(together[1], run(layer, x[1:])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[0, :26], run(layer, x[:1, :26])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [3, 100])
@pytest.mark.parametrize("name", [name for name, causal in CASES if causal])
def test_causal_does_not_know_the_future(name, size):
    layer, x = made(name, True), inputs(53).detach()
    changed = x.clone()
    changed[:, 30:] += size * torch.randn_like(changed[:, 30:])
    a, b = run(layer, x), run(layer, changed)
    torch.testing.assert_close(a[:, :30], b[:, :30], rtol=1e-4, atol=1e-5)
    assert (a[:, 30:] - b[:, 30:]).abs().max() > 1e-3


def numbers(state) -> int:
    return sum(numbers(part) if isinstance(part, tuple) else getattr(part, "numel", int)() for part in state)


@pytest.mark.parametrize("name", [name for name, causal in CASES if causal and name != "cross_memory"])
def test_a_stream_equals_the_whole_and_its_state_is_what_it_says(name):
    layer, x, state, parts = made(name, True), inputs(40).detach(), None, []
    with torch.no_grad():
        for t in range(40):
            y, state = layer.step(x[:, t : t + 1], state)
            parts.append(y)
            if t in (2, 39):
                assert numbers(state) == 2 * layer.state_bytes(t + 1, 1)
        torch.testing.assert_close(torch.cat(parts, 1), run(layer, x), rtol=1e-4, atol=1e-5)
    if name not in ("full", "strided"):
        assert layer.state_bytes(10**3) == layer.state_bytes(10**6)


@pytest.mark.parametrize("name", ["full", "strided", "local_global", "favor"])
def test_what_looks_ahead_does_not_stream(name):
    with pytest.raises(ValueError, match="attention.causal=true"):
        made(name, False).step(inputs(1))


@pytest.mark.parametrize(("name", "causal"), CASES)
def test_bfloat16(name, causal):
    layer, x = made(name, causal), inputs(53)
    plain = run(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        low = run(layer, x)
    low.float().sum().backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(low).all()
    assert (low.float() - plain).abs().max() < 0.05 * plain.abs().max()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("name", "causal"), CASES)
def test_weights_of_other_types(name, causal, dtype, masked):
    layer, x = made(name, causal), inputs(53).detach()
    mask = torch.arange(53) < torch.tensor([[53], [20]]) if masked else None
    real = torch.ones(2, 53, dtype=torch.bool) if mask is None else mask
    plain = run(layer, x, mask)[real]
    layer, x = layer.to(dtype), x.to(dtype).requires_grad_()
    y = run(layer, x, mask)
    y.float().sum().backward()
    assert y.dtype == dtype and torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    assert (y[real].float() - plain).abs().max() < (1e-4 if dtype == torch.float64 else 0.05) * plain.abs().max()


@pytest.mark.parametrize("scaled", [True, False])
def test_projections_apart_are_the_same(scaled):
    layer, x = FullAttention(D, H, False), inputs(13)
    together = layer.project(x, scaled)
    queries, keys = layer.apart(scaled)
    apart = (*queries(x), *keys(x))
    given = torch.randn(3, *together[0].shape)
    wanted, found = (
        torch.autograd.grad(sum((y * g).sum() for y, g in zip(of, given, strict=True)), (x, *layer.qkv.parameters()))
        for of in (together, apart)
    )
    torch.testing.assert_close(apart, together)
    torch.testing.assert_close(found, wanted)


COMPILED = [(*case, True) for case in CASES if case[0] != "wide_window"]


@pytest.mark.parametrize(("name", "causal", "masked"), [*COMPILED, ("favor", False, False), ("local", False, False)])
def test_compiled(name, causal, masked):
    """Forward and backward traced. Three pieces are enough: tracing takes its time with every one."""
    layer, x = made(name, causal), inputs(18)
    mask = torch.arange(18) < torch.tensor([[18], [10]]) if masked else None
    real = torch.ones(2, 18, 1) if mask is None else mask.unsqueeze(-1).float()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: run(layer, x, mask), backend="aot_eager")
    found, expected = (of(x) * real for of in (compiled, lambda x: run(layer, x, mask)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    grads = [
        torch.autograd.grad(y.square().sum(), (x, *layer.parameters()), allow_unused=True) for y in (found, expected)
    ]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "causal"), CASES)
def test_dropout_is_for_training(name, causal):
    layer = made(name, causal)
    layer.dropout.p = 0.5
    x = inputs(20).detach()
    assert torch.equal(run(layer, x), run(layer, x))
    layer.train()
    assert not torch.equal(run(layer, x), run(layer, x))


@pytest.mark.parametrize("name", ["full", "strided", "local", "favor", "elu"])
def test_flops_are_those_that_are_computed(name):
    layer = made(name, False)
    if name == "strided":
        layer = StridedAttention(4, D, H)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        layer(inputs(64, rows=1).detach())
    assert layer.flops(64) == pytest.approx(counter.get_total_flops(), rel=0.6)
    assert layer.flops(64) <= 1.1 * counter.get_total_flops() + 8 * 64 * D


# ------------------------------------------------------------------------------------------------ parts of the keys


def test_parts_of_the_keys_join():
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (20, 30, 30))
    whole = (q @ k.mT).softmax(-1) @ v
    two = join(attend_part(q, k[:, :, :11], v[:, :, :11]), attend_part(q, k[:, :, 11:], v[:, :, 11:]))
    torch.testing.assert_close(two[0], whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(two[1].double(), (q @ k.mT).logsumexp(-1), rtol=1e-5, atol=1e-5)


def double(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double().requires_grad_()


W = orthogonal_features(6, 4).double()
MASK = torch.arange(9) < torch.tensor([[9], [5]])
FUNCTIONS = {
    "part": attend_part,
    "window": lambda q, k, v: attend_window(q, k, v, 3, mask_BS=MASK)[0] * MASK[:, None, :, None],
    "window_causal": lambda q, k, v: attend_window(q, k, v, 3, True),
    "strided": lambda q, k, v: StridedAttention(3, 8, 2, 1).attend(q, k, v, MASK),
    "strided_causal": lambda q, k, v: StridedAttention(3, 8, 2, 1, causal=True).attend(q, k, v, None),
    "relu": lambda q, k, v: _kernel.kernel_attention(q, k, v, "relu", W, MASK),
    "elu": lambda q, k, v: _kernel.kernel_attention(q, k, v, "elu", None, MASK),
    "relu_causal": lambda q, k, v: _kernel.kernel_attention_causal(q, k, v, "relu", W, MASK)[0],
    "elu_causal": lambda q, k, v: _kernel.kernel_attention_causal(q, k, v, "elu", None)[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_in_float64(name):
    """By finite differences. Of FAVOR+ they would show the constants, too, which are no part of its gradient."""
    of = FUNCTIONS[name]
    assert torch.autograd.gradcheck(lambda *given: of(*given), [double(2, 2, 9, 4, seed=i) for i in range(3)])


def test_gradients_of_the_scans_in_float64():
    x, b, c, d = double(2, 6, 3, seed=0), double(2, 6, 2, seed=1), double(2, 6, 2, seed=2), double(3, seed=3)
    delta, a = double(2, 6, 3, seed=4).detach().abs().requires_grad_(), double(3, 2, seed=5)
    assert torch.autograd.gradcheck(selective_scan, (x, delta, a, b, c, d, double(2, 3, 2, seed=6)))
    x, delta = double(2, 6, 3, 4, seed=0), delta.detach().requires_grad_()
    a = double(3, seed=5).detach().abs().neg().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *given: ssd(*given[:-1], 4, given[-1]), (x, delta, a, b, c, double(2, 3, 2, 4, seed=6))
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_flex_masks_are_the_same_patterns(causal, masked):
    """FlexAttention is the path on GPUs; on a CPU it runs unfused, forward only."""
    q, k, v = (torch.randn(2, H, 40, 8) for _ in range(3))
    mask = right_padded(40) if masked else None
    valid = torch.ones(2, 1, 40, 1) if mask is None else mask[:, None, :, None].float()
    ours, lse = attend_window(q, k, v, 6, causal, mask)
    flex, flex_lse = flex_attend(q, k, v, window_mask(40, 6, causal, q.device), mask)
    torch.testing.assert_close(flex * valid, ours * valid, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flex_lse * valid[..., 0], lse * valid[..., 0], rtol=1e-4, atol=1e-5)
    layer = StridedAttention(4, D, H, phase=1, causal=causal)
    flex = flex_attend(q, k, v, strided_mask(40, 4, 1, causal, q.device), mask)[0]
    torch.testing.assert_close(flex * valid, layer.attend(q * 8**0.5, k, v, mask) * valid, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ Performer


def errors(features: int, tries: int = 5) -> float:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 256, 16) for _ in range(3))
    q, k = 0.25 * q, 0.25 * k
    exact = (q @ k.mT / 4).softmax(-1) @ v
    found = []
    for _ in range(tries):
        w = orthogonal_features(features, 16)
        found.append((_kernel.kernel_attention(q, k, v, "softmax", w) - exact).norm() / exact.norm())
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 53, 203])
@pytest.mark.parametrize("name, causal", [case for case in CASES if case[0] not in ("strided", "full", "cross_memory")])
def test_without_gradients_it_is_the_same(name, causal, length, masked, monkeypatch):
    """Some mechanisms then go stretch by stretch through their projections, too."""
    monkeypatch.setattr(_kernel, "PROJECTED", 80)
    layer = LAYERS[name](causal).eval()
    x = torch.randn(2, length, D)
    mask = torch.rand(2, length) < 0.7 if masked else None
    real = torch.ones(2, length, dtype=torch.bool) if mask is None else mask
    learning = layer(x, mask)
    with torch.no_grad():
        if name in ("favor", "relu", "elu") and not causal or name == "local":
            monkeypatch.setattr(layer, "project", None)  # not the way that learns
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                found = layer(x, mask)
            assert found.dtype == (torch.bfloat16 if half else torch.float32)
            torch.testing.assert_close(found.float()[real], learning[real], atol=0.05 if half else 1e-5, rtol=0)


def test_more_features_are_nearer_to_softmax():
    few, some, many = (errors(m) for m in (16, 64, 256))
    assert few > 1.5 * some > 1.5 * 1.5 * many and many < 0.05


def test_as_near_to_softmax_as_performer_pytorch():
    """256 features, the same inputs: our error and the best peer's, over draws of the features (`make bench-attention`
    installs it)."""
    peer = pytest.importorskip("performer_pytorch")
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 128, 64, generator=g) for _ in range(3))
    for scale in (0.5, 1.0):
        exact = torch.nn.functional.scaled_dot_product_attention(scale * q, scale * k, v)
        ours, theirs = [], []
        for seed in range(8):
            torch.manual_seed(seed)
            w = orthogonal_features(256, 64)
            found = _kernel.kernel_attention(scale * q, scale * k, v, "softmax", w)
            ours.append((found - exact).norm() / exact.norm())
            other = peer.FastAttention(dim_heads=64, nb_features=256, causal=False)
            theirs.append((other(scale * q, scale * k, v) - exact).norm() / exact.norm())
        ours, theirs = torch.stack(ours).mean(), torch.stack(theirs).mean()
        print(f"q, k of size {scale}: {ours:.3f} against {theirs:.3f}")
        assert ours < 1.02 * theirs


def test_orthogonal_features():
    w = orthogonal_features(40, 16)
    unit = torch.nn.functional.normalize(w, dim=1)
    assert w.shape == (40, 16)
    for block in unit.split(16):
        torch.testing.assert_close(block @ block.T, torch.eye(len(block)), rtol=0, atol=1e-5)


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


# ------------------------------------------------------------------------------------------------ cross-memory


def tokens(x: Tensor) -> Tokens:
    b, s, _ = x.shape
    return Tokens.of_frames(
        x.unsqueeze(2), torch.arange(float(s)).expand(b, -1), torch.ones(b, s, dtype=torch.bool), None
    )


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


# ------------------------------------------------------------------------------------------------ the seed's calls


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
    "strided": lambda **more: StridedRoom(4, dim=D, num_heads=H, **more),
    "local_global": lambda **more: LocalGlobalRoom(5, 3, dim=D, num_heads=H, **more),
    "performer": lambda **more: PerformerRoom(24, redraw=2, dropout=0.2, dim=D, num_heads=H, **more),
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
