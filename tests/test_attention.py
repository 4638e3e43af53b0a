"""The mixing layers against readable references, in value and gradient; streams, masks, types, FLOPs."""

from __future__ import annotations

import pytest
import torch
from _layers import CASES, LENGTHS, WRITTEN_OUT, D, H, inputs, made, right_padded, run
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hvlm.attention import (
    CrossMemoryAttention,
    FullAttention,
    LocalGlobalAttention,
    Mamba2Layer,
    MambaLayer,
    PerformerAttention,
    StridedAttention,
    _kernel,
    _kernel_causal,
)
from hvlm.attention._flex import flex_attend, strided_mask, window_mask
from hvlm.attention._scan import selective_scan
from hvlm.attention._softmax import attend_part, attend_window, join
from hvlm.attention.mamba2 import ssd
from hvlm.attention.performer import orthogonal_features

pytestmark = pytest.mark.usefixtures("small_pieces")


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
    queries, keys = layer.split_qkv(1, 2, scaled=scaled)
    apart = (*queries(x), *keys(x))
    given = torch.randn(3, *together[0].shape)
    wanted, found = (
        torch.autograd.grad(sum((y * g).sum() for y, g in zip(of, given, strict=True)), (x, *layer.qkv.parameters()))
        for of in (together, apart)
    )
    torch.testing.assert_close(apart, together)
    torch.testing.assert_close(found, wanted)


QUICK = {("full", False)}  # tracing the others takes a minute
COMPILED = [
    pytest.param(*case, True, marks=() if case in QUICK else pytest.mark.slow)
    for case in [*map(tuple, CASES)]
    if case[0] != "wide_window"
] + [pytest.param(name, False, False, marks=pytest.mark.slow) for name in ("favor", "local")]


@pytest.mark.parametrize(("name", "causal", "masked"), COMPILED)
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


COUNTED = {
    "full": FullAttention(128, 4), "strided": StridedAttention(4, 128, 4), "local": LocalGlobalAttention(16, 0, 128, 4),
    "local_global": LocalGlobalAttention(16, 4, 128, 4), "causal": LocalGlobalAttention(16, 4, 128, 4, True),
    "favor": PerformerAttention(128, 4, 32), "elu": PerformerAttention(128, 4, kernel="elu"),
    "favor_causal": PerformerAttention(128, 4, 32, causal=True), "mamba": MambaLayer(128), "mamba2": Mamba2Layer(128),
    "cross_memory": CrossMemoryAttention(128, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_flops_are_those_that_are_computed(name, monkeypatch):
    """torch counts products; of S6 they are seven eighths."""
    monkeypatch.setattr(_kernel_causal, "CAUSAL_CHUNK", 128)
    monkeypatch.setattr("hvlm.attention.performer.CAUSAL_CHUNK", 128)
    layer = COUNTED[name].eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        layer(torch.randn(1, 512, 128))
    assert layer.flops(512) == pytest.approx(counter.get_total_flops(), rel=0.15 if name == "mamba" else 0.06)


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
    "relu_causal": lambda q, k, v: _kernel_causal.kernel_attention_causal(q, k, v, "relu", W, MASK)[0],
    "elu_causal": lambda q, k, v: _kernel_causal.kernel_attention_causal(q, k, v, "elu", None)[0],
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


def test_flex_masks_made_while_evaluating_serve_training():
    window_mask.cache_clear()
    with torch.inference_mode():
        mask = window_mask(40, 5, False, torch.device("cpu"))
    assert window_mask(40, 5, False, torch.device("cpu")) is mask
    assert not mask.kv_indices.is_inference() and not mask.kv_num_blocks.is_inference()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as it must be on a CPU
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
