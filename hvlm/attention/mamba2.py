"""Mamba-2: one decay per head, so that a stretch of the sequence is a matrix product (SSD, Dao & Gu 2024).

    h_t = exp(Δ_t a) h_{t-1} + B_t (Δ_t x_t)ᵀ,   y_t = C_t h_t + D x_t          per head; h in [N, P], a < 0 a number

In chunks of Q tokens, with s_ij = Σ_{k=j+1..i} Δ_k a:

    Y = ((C Bᵀ) ⊙ exp(s)) (ΔX)  inside a chunk,  +  exp(s_i,start) C_i h_start  from the chunks before.

Names and parameters are those of mamba_ssm's ``Mamba2Simple``; out = W_out RMSNorm(y ⊙ SiLU(z)).

Cost with E = 2 D inner channels in heads of P, N states: 6 S D E for the projections and 2 S Q (N + E) + 4 S E N for
the scan: linear in S. A stream keeps E N + 3 (E + 2 N) values, whatever its length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.attention import _gpu
from hvlm.attention._base import MixingRoom, no_memory
from hvlm.attention._conv import causal_conv, conv_step
from hvlm.attention._dt import dt_bias
from hvlm.config.ranges import PositiveInt, Probability
from hvlm.functional import wide


def ssd(
    x_BSHP: Tensor,
    delta_BSH: Tensor,
    a_H: Tensor,
    b_BSN: Tensor,
    c_BSN: Tensor,
    chunk: int = 64,
    state_BHNP: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y [B, S, H, P], the last state [B, H, N, P]). Decays and states in float32 at least, products in the dtype
    of ``x``.

    Any length and any chunk give the same. Where delta is 0 the state stays and takes nothing up.
    """
    if _gpu.can(_gpu.mamba_chunk_scan_combined, x_BSHP) and state_BHNP is None:
        return _gpu.ssd(x_BSHP, delta_BSH, a_H, b_BSN, c_BSN, chunk)
    b, s, h, p = x_BSHP.shape
    short = -s % chunk
    dtype = x_BSHP.dtype
    x = (x_BSHP * delta_BSH.unsqueeze(-1).to(dtype)).transpose(1, 2)
    decay = (delta_BSH.to(wide(dtype)) * a_H.to(wide(dtype))).transpose(1, 2)  # log of it, <= 0
    x, decay = F.pad(x, (0, 0, 0, short)), F.pad(decay, (0, short))
    keys, queries = F.pad(b_BSN, (0, 0, 0, short)), F.pad(c_BSN, (0, 0, 0, short))
    x = x.unflatten(2, (-1, chunk))  # [B, H, C, Q, P]
    along = decay.unflatten(2, (-1, chunk)).cumsum(-1)  # from the start of the chunk, [B, H, C, Q]
    keys, queries = (t.unflatten(1, (-1, chunk)).unsqueeze(1) for t in (keys, queries))  # [B, 1, C, Q, N]
    ahead = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    between = (along.unsqueeze(-1) - along.unsqueeze(-2)).masked_fill(ahead, -torch.inf).exp()
    inside = ((queries @ keys.mT) * between.to(dtype)) @ x
    # What each chunk adds to the state, and what it leaves of the one before.
    left = (along[..., -1:] - along).exp().to(dtype)
    added = (keys * left.unsqueeze(-1)).mT @ x  # [B, H, C, N, P]
    whole = along[..., -1].exp()
    state = x.new_zeros(b, h, keys.shape[-1], p, dtype=wide(dtype)) if state_BHNP is None else state_BHNP
    before = []
    # unbind, not indexing: the gradient of an index is as large as what was indexed
    for add, keep in zip(added.to(state.dtype).unbind(2), whole[..., None, None].unbind(2), strict=True):
        before.append(state)
        state = torch.addcmul(add, keep, state)
    earlier = (queries * along.exp().to(dtype).unsqueeze(-1)) @ torch.stack(before, 2).to(dtype)
    return (inside + earlier).flatten(2, 3)[:, :, :s].transpose(1, 2), state


def ssd_reference(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same, token by token."""
    h = x.new_zeros(x.shape[0], x.shape[2], b.shape[-1], x.shape[3]) if state is None else state
    out = []
    for t in range(x.shape[1]):
        taken = b[:, t, None, :, None] * (delta[:, t, :, None] * x[:, t]).unsqueeze(2)
        h = (delta[:, t] * a).exp()[..., None, None] * h + taken
        out.append((c[:, t, None, None] @ h).squeeze(2))
    return torch.stack(out, 1), h


class Mamba2State(NamedTuple):
    """conv [B, width - 1, E + 2 N]: the last inputs of the convolution. ssm [B, H, N, P]."""

    conv: Tensor
    ssm: Tensor


class GatedRMSNorm(nn.Module):
    """RMSNorm(y ⊙ SiLU(z)) ⊙ weight."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        return F.rms_norm((y.float() * F.silu(z.float())), self.weight.shape, self.weight.float(), self.eps)


class Mamba2Layer(nn.Module):
    """dim: D. state_size: N. head_dim: P, by default 64 or E. expand: E / D. chunk: Q. dropout: when training."""

    causal = True

    def __init__(
        self,
        dim: int = 768,
        state_size: PositiveInt = 64,
        head_dim: PositiveInt | None = None,
        expand: PositiveInt = 2,
        d_conv: PositiveInt = 4,
        chunk: PositiveInt = 64,
        dropout: Probability = 0.0,
    ):
        super().__init__()
        e = expand * dim
        head_dim = min(64, e) if head_dim is None else head_dim
        if e % head_dim:
            raise ValueError(f"attention.head_dim={head_dim} does not divide the {e} inner channels")
        self.dim, self.state_size, self.head_dim, self.d_inner = dim, state_size, head_dim, e
        self.num_heads, self.d_conv, self.chunk = e // head_dim, d_conv, chunk
        mixed = e + 2 * state_size
        self.in_proj = nn.Linear(dim, e + mixed + self.num_heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, d_conv, groups=mixed, padding=d_conv - 1)
        self.dt_bias = nn.Parameter(dt_bias(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.num_heads))
        self.norm = GatedRMSNorm(e)
        self.out_proj = nn.Linear(e, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """[B, S, dim] -> [B, S, dim]. mask_BS: bool; what is False is passed over, and its output means nothing."""
        no_memory(self, memory)
        return self._mix(x_BSD, mask_BS, None)[0]

    def reference(self, x_BSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        """The same with the recurrence token by token."""
        return self._mix(x_BSD, mask_BS, None, reference=True)[0]

    def step(self, x_B1D: Tensor, state: Mamba2State | None = None) -> tuple[Tensor, Mamba2State]:
        """One more token of a stream: ([B, 1, dim], the new state). Equals the whole pass."""
        return self._mix(x_B1D, None, state or self.new_state(len(x_B1D), x_B1D))

    def new_state(self, rows: int, like: Tensor) -> Mamba2State:
        return Mamba2State(
            like.new_zeros(rows, self.d_conv - 1, self.conv1d.in_channels),
            like.new_zeros(rows, self.num_heads, self.state_size, self.head_dim, dtype=torch.float32),
        )

    def _mix(
        self, x_BSD: Tensor, mask: Tensor | None, state: Mamba2State | None, reference: bool = False
    ) -> tuple[Tensor, Mamba2State | None]:
        e, n = self.d_inner, self.state_size
        z, mixed, dt = self.in_proj(x_BSD).split([e, e + 2 * n, self.num_heads], -1)
        mixed = mixed if mask is None else mixed * mask.unsqueeze(-1)
        kept = None
        if state is None:
            mixed = causal_conv(mixed, self.conv1d)
        else:
            mixed, kept = conv_step(mixed, self.conv1d, state.conv)
        x, b, c = F.silu(mixed).split([e, n, n], -1)
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        delta = F.softplus(dt.float() + self.dt_bias.float())
        delta = delta if mask is None else delta * mask.unsqueeze(-1)
        a = -self.A_log.float().exp()
        if reference:
            y, last = ssd_reference(x, delta, a, b, c)
        else:
            y, last = ssd(x, delta, a, b, c, min(self.chunk, x.shape[1]), None if state is None else state.ssm)
        y = y + self.D.to(x.dtype).unsqueeze(-1) * x
        y = self.out_proj(self.norm(y.flatten(-2), z).to(x_BSD.dtype))
        return self.dropout(y), None if state is None else Mamba2State(kept, last)

    def flops(self, length: int) -> int:
        e, n, q = self.d_inner, self.state_size, self.chunk
        projections = 2 * self.dim * (3 * e + 2 * n + self.num_heads)
        return length * (projections + 2 * self.d_conv * (e + 2 * n) + 2 * q * (n + e) + 4 * e * n)

    def state_bytes(self, length: int, bytes_per_value: int = 4) -> int:
        conv = (self.d_conv - 1) * (self.d_inner + 2 * self.state_size)
        return (self.d_inner * self.state_size + conv) * bytes_per_value


class TwoWays(nn.Module):
    """A causal layer forward and one of its own backward in time, summed."""

    causal = False

    def __init__(self, forward: nn.Module, backward: nn.Module):
        super().__init__()
        self.onward, self.back = forward, backward

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        back = None if mask_BS is None else mask_BS.flip(1)
        return self.onward(x_BSD, mask_BS) + self.back(x_BSD.flip(1), back).flip(1)

    def flops(self, length: int) -> int:
        return self.onward.flops(length) + self.back.flops(length)


class Mamba2Room(MixingRoom):
    """bidirectional: also from the end to the start, by a second layer; false is causal. See ``Mamba2Layer`` and
    ``MixingRoom``."""

    layer = Mamba2Layer

    def make(self, bidirectional: bool = True, **layer: Any) -> nn.Module:
        return TwoWays(Mamba2Layer(**layer), Mamba2Layer(**layer)) if bidirectional else Mamba2Layer(**layer)
