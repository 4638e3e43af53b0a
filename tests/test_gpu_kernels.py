"""The way to and from the fused kernels of other packages, with plain stand-ins for them: layouts, arguments, states.

The kernels themselves run on GPUs only and have not been run.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.attention import Mamba2Layer, MambaLayer, PerformerAttention, _gpu
from hvlm.attention._scan import selective_scan_reference
from hvlm.attention.mamba2 import ssd_reference


def selective_scan_fn(
    u_BDL: Tensor, delta_BDL: Tensor, A: Tensor, B_BNL: Tensor, C_BNL: Tensor, D: Tensor, *, return_last_state: bool
):
    assert return_last_state and all(x.is_contiguous() for x in (u_BDL, delta_BDL, B_BNL, C_BNL))
    y, last = selective_scan_reference(u_BDL.mT, delta_BDL.mT, A, B_BNL.mT, C_BNL.mT, D)
    return y.mT, last


def mamba_chunk_scan_combined(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    chunk_size: int,
    *,
    return_final_states: bool,
):
    assert return_final_states and chunk_size >= 16 and chunk_size & (chunk_size - 1) == 0 and B_BLGN.shape[2] == 1
    y, last_BHNP = ssd_reference(x_BLHP, dt_BLH, A, B_BLGN[:, :, 0], C_BLGN[:, :, 0])
    return y, last_BHNP.mT


def causal_conv1d_fn(x_BDL: Tensor, weight_DW: Tensor, bias_D: Tensor):
    width = weight_DW.shape[1]
    assert 2 <= width <= 4
    return F.conv1d(F.pad(x_BDL, (width - 1, 0)), weight_DW.unsqueeze(1), bias_D, groups=len(bias_D))


def chunk_linear_attn(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, *, scale: float, normalize: bool):
    assert normalize
    weights = (scale * torch.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK)).tril()
    return torch.einsum("bhts,bshv->bthv", weights / weights.sum(-1, keepdim=True), v_BTHV), None


LAYERS = {
    "mamba": MambaLayer(32, 4),
    "mamba_wide": MambaLayer(32, 4, d_conv=6),
    "mamba2": Mamba2Layer(32, 8, 16, chunk=9),
    "relu": PerformerAttention(32, 4, 24, "relu", causal=True),
    "elu": PerformerAttention(32, 4, kernel="elu", causal=True),
}


@pytest.fixture
def fused(monkeypatch) -> list[str]:
    """As if the packages and a GPU were there; the names of what was called."""
    called: list[str] = []
    for kernel in (selective_scan_fn, mamba_chunk_scan_combined, causal_conv1d_fn, chunk_linear_attn):

        def run(*args, kernel=kernel, **kwargs):
            called.append(kernel.__name__)
            return kernel(*args, **kwargs)

        monkeypatch.setattr(_gpu, kernel.__name__, run)
    monkeypatch.setattr(_gpu, "can", lambda kernel, x: kernel is not None)
    return called


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("name", "kernels"), [
    ("mamba", {"selective_scan_fn", "causal_conv1d_fn"}), ("mamba_wide", {"selective_scan_fn"}),
    ("mamba2", {"mamba_chunk_scan_combined", "causal_conv1d_fn"}), ("relu", {"chunk_linear_attn"}),
    ("elu", {"chunk_linear_attn"}),
])  # fmt: skip
def test_the_fused_way_is_the_same(name, kernels, masked, request):
    layer = LAYERS[name].eval()
    x = torch.randn(2, 21, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(21) < torch.tensor([[21], [12]]) if masked else None
    real = torch.ones(2, 21, dtype=torch.bool) if mask is None else mask
    with torch.no_grad():
        plain = layer(x, mask)
        called = request.getfixturevalue("fused")
        fused = layer(x, mask)
        assert set(called) == (set() if masked and name in ("relu", "elu") else kernels)
        torch.testing.assert_close(fused[real], plain[real], rtol=1e-4, atol=1e-5)
        # A stream goes on from a state, which the kernels are not asked to do.
        called.clear()
        state, parts = None, []
        for t in range(21):
            y, state = layer.step(x[:1, t : t + 1], state)
            parts.append(y)
        assert not called
        if not masked:
            torch.testing.assert_close(torch.cat(parts, 1), plain[:1], rtol=1e-4, atol=1e-5)
