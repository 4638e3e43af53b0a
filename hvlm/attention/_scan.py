"""The selective scan of S6 without its states in memory (Gu & Dao 2023, equation 2 with Euler's rule for B):

    h_t = exp(Δ_t A) ⊙ h_{t-1} + (Δ_t x_t) B_tᵀ,   y_t = h_t C_t + D ⊙ x_t          h in [D, N], one row per channel

All of h would be S·D·N numbers, N times the activations. Here a stretch of tokens at a time exists: its decays and
inputs are made at once, its states follow one another by one fused multiply-add each, and what is kept for the backward
pass is the state at the start of every stretch. The backward pass makes them again and walks back through the stretch,

    g_t = C_t dy_t + exp(Δ_{t+1} A) ⊙ g_{t+1},
    d exp(Δ_t A) = g_t ⊙ h_{t-1},   d(Δ_t x_t) = g_t B_t,   dB_t = g_tᵀ (Δ_t x_t),   dC_t = dy_tᵀ h_t.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvlm.functional import LOG2_E, wide

STATES, TOKENS = 1 << 19, 16  # numbers of states that exist at a time, but those of 16 tokens: one of 16 is kept


def selective_scan(
    x_BSD: Tensor,
    delta_BSD: Tensor,
    a_DN: Tensor,
    b_BSN: Tensor,
    c_BSN: Tensor,
    d_D: Tensor,
    state_BDN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y [B, S, D], the last state [B, D, N]), float32 at least. ``state``: the one before the first token, by default
    zero.

    delta is positive; where it is 0 the state stays as it is and takes nothing up: so padding is passed over.
    """
    dtype = wide(x_BSD.dtype)
    if state_BDN is None:
        state_BDN = x_BSD.new_zeros(x_BSD.shape[0], *a_DN.shape, dtype=dtype)
    with torch.autocast(x_BSD.device.type, enabled=False):
        given = (x_BSD, delta_BSD, a_DN, b_BSN, c_BSN, state_BDN)
        y, last = _Scan.apply(*(tensor.to(dtype) for tensor in given))
        return torch.addcmul(y, x_BSD.to(dtype), d_D.to(dtype)), last


def selective_scan_reference(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same, token by token."""
    h = x.new_zeros(x.shape[0], *a.shape) if state is None else state
    out = []
    for t in range(x.shape[1]):
        h = (delta[:, t, :, None] * a).exp() * h + (delta[:, t] * x[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(1)
        out.append((h @ c[:, t].unsqueeze(-1)).squeeze(-1) + d * x[:, t])
    return torch.stack(out, 1), h


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, delta, b, c = (tensor.transpose(0, 1).contiguous() for tensor in (x, delta, b, c))  # time first
        y, starts = torch.empty_like(x), []
        decay, states = _room_for(x, a)
        for at in _stretches(x, a):
            starts.append(state)
            now, made = _states(x[at], delta[at], a, b[at], state, decay, states)
            torch.matmul(c[at].unsqueeze(-2), made.mT, out=y[at].unsqueeze(-2))  # h C takes 4 times as long
            state = made[-1].clone()
        learns = starts and any(ctx.needs_input_grad)
        ctx.save_for_backward(x, delta, a, b, c, torch.stack(starts) if learns else x.new_empty(0))
        return y.transpose(0, 1), state

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor, ...]:
        x, delta, a, b, c, starts = ctx.saved_tensors
        dy = dy.transpose(0, 1).contiguous()
        # As the caller has them, clips first in memory: compiled code relies on it.
        dx, ddelta, db, dc = (t.new_empty(t.shape[1], len(t), t.shape[2]).transpose(0, 1) for t in (x, x, b, c))
        da = torch.zeros_like(a)
        decay, states = _room_for(x, a)
        g_room = torch.empty_like(decay)
        carry = dlast
        for start, at in reversed(list(zip(starts, _stretches(x, a), strict=True))):
            decayed, made = _states(x[at], delta[at], a, b[at], start, decay, states)
            torch.matmul(dy[at].unsqueeze(-2), made, out=dc[at].unsqueeze(-2))
            g = torch.mul(dy[at].unsqueeze(-1), c[at].unsqueeze(-2), out=g_room[: len(made)])
            g[-1] += carry
            for t in range(len(made) - 2, -1, -1):
                g[t].addcmul_(decayed[t + 1], g[t + 1])
            carry = decayed[0] * g[0]
            dinput = torch.matmul(b[at].unsqueeze(-2), g.mT).squeeze(-2)
            torch.matmul((delta[at] * x[at]).unsqueeze(-2), g, out=db[at].unsqueeze(-2))
            # d(Δ A) = g ⊙ h_{t-1} ⊙ exp(Δ A)
            g *= decayed
            g[1:] *= made[:-1]
            g[0] *= start
            torch.addcmul(torch.einsum("tbdn,dn->tbd", g, a), dinput, x[at], out=ddelta[at])
            torch.mul(dinput, delta[at], out=dx[at])
            da += g.mul_(delta[at].unsqueeze(-1)).sum((0, 1))  # as a product of matrices: 8 times as long
        return *(tensor.transpose(0, 1) for tensor in (dx, ddelta)), da, db.transpose(0, 1), dc.transpose(0, 1), carry


def _stretches(x_SBD: Tensor, a: Tensor) -> list[slice]:
    many = _many(x_SBD, a)
    return [slice(start, start + many) for start in range(0, len(x_SBD), many)]


def _many(x_SBD: Tensor, a: Tensor) -> int:
    """Tokens of a stretch."""
    return max(TOKENS, STATES // (x_SBD.shape[1] * a.numel()))


def _room_for(x_SBD: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Two buffers [stretch, B, D, N], used again and again."""
    many = min(len(x_SBD), _many(x_SBD, a))
    return (x_SBD.new_empty(many, x_SBD.shape[1], *a.shape), x_SBD.new_empty(many, x_SBD.shape[1], *a.shape))


def _states(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, start: Tensor, decay: Tensor, states: Tensor
) -> tuple[Tensor, Tensor]:
    """(exp(Δ A), h) [T, B, D, N] of a stretch, in the buffers."""
    decay = torch.mul(delta.unsqueeze(-1), a * LOG2_E, out=decay[: len(x)]).exp2_()  # faster: functional.exp_
    states = torch.mul((delta * x).unsqueeze(-1), b.unsqueeze(-2), out=states[: len(x)])
    before = start
    for t in range(len(x)):
        before = states[t].addcmul_(decay[t], before)
    return decay, states
