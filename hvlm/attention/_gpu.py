"""Fused kernels for GPUs from mamba_ssm, causal_conv1d and flash-linear-attention (fla), where those are installed.

Untested on GPUs until `make test-gpu` (`tests/test_gpu.py`) has run on one. Every function here computes what a tested
path in pure torch beside its call computes; a name is None where its package is missing.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

try:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
except ImportError:
    selective_scan_fn = None
try:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
except ImportError:
    mamba_chunk_scan_combined = None
try:
    from causal_conv1d import causal_conv1d_fn
except ImportError:
    causal_conv1d_fn = None
try:
    from fla.ops.linear_attn import chunk_linear_attn
except ImportError:
    chunk_linear_attn = None


def can(kernel: Any, x: Tensor) -> bool:
    return x.is_cuda and kernel is not None


def selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """``_scan.selective_scan`` from a zero state. The kernel wants channels before time."""
    x, delta, b, c = (t.mT.contiguous() for t in (x, delta, b, c))
    y, last = selective_scan_fn(x, delta, a, b, c, d, return_last_state=True)
    return y.mT, last


def ssd(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """``mamba2.ssd`` from a zero state. The kernel's states are [B, H, P, N], its B and C have a group axis, and its
    chunks are powers of two of 16 or more (what is short of a chunk it pads itself)."""
    chunk = max(16, 1 << (chunk - 1).bit_length())
    y, last = mamba_chunk_scan_combined(x, delta, a, b.unsqueeze(2), c.unsqueeze(2), chunk, return_final_states=True)
    return y, last.mT


def causal_conv(x_BSE: Tensor, weight_EW: Tensor, bias_E: Tensor) -> Tensor:
    """``_conv.causal_conv``. The kernel wants channels before time."""
    return causal_conv1d_fn(x_BSE.mT, weight_EW, bias_E).mT


def causal_kernel(phi_q_BHSm: Tensor, phi_k_BHSm: Tensor, v_BHSd: Tensor) -> Tensor:
    """Σ_{j<=i} φ(q_i) φ(k_j) v_j over its normaliser, for features without constants. fla wants time before heads."""
    q, k, v = (t.transpose(1, 2) for t in (phi_q_BHSm, phi_k_BHSm, v_BHSd))
    y, _ = chunk_linear_attn(q, k, v, scale=1.0, normalize=True)
    return y.transpose(1, 2)
