"""Mamba: a state-space layer whose state takes up what the token chooses (S6, Gu & Dao 2023), linear in S.

    (x, z) = W_in u;  x <- SiLU(conv4(x));  (Δ, B, C) = W_x x,  Δ = softplus(W_Δ Δ + b_Δ)
    h_t = exp(Δ_t A) ⊙ h_{t-1} + (Δ_t x_t) B_tᵀ,  y_t = h_t C_t + D ⊙ x_t;  out = W_out (y ⊙ SiLU(z))

A = -exp(A_log), in float32. Parameters and their names are those of mamba_ssm's ``Mamba``, so its checkpoints load
strictly. The layer is causal; the room adds a branch that reads backwards (``*_b``), as VideoMamba does (Li et al.
2024).

Cost with E = 2 D inner channels and N states: 6 S D E for the projections, 9 S E N for the scan and little beside:
linear in S. A stream keeps E (N + 3) values, whatever its length.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.attention import _gpu
from hvlm.attention._base import MixingRoom, no_memory
from hvlm.attention._conv import causal_conv, conv_step
from hvlm.attention._dt import dt_bias
from hvlm.attention._scan import selective_scan, selective_scan_reference
from hvlm.config.ranges import PositiveInt, Probability
from hvlm.functional import dtype_here, evenly

STRETCH = 512  # tokens at a time where nothing is learned


class MambaState(NamedTuple):
    """conv [B, width - 1, E]: the last inputs of the convolution. ssm [B, E, N]."""

    conv: Tensor
    ssm: Tensor


class MambaLayer(nn.Module):
    """dim: D. state_size: N. expand: E / D. d_conv: width of the convolution. dt_rank: of Δ's projection, default D/16.
    dropout: on what the layer gives, in training only."""

    causal = True
    # A = -exp(A_log) would be drawn to -1, and the skip D to 0: neither is a weight that should be small.
    no_weight_decay = frozenset({"A_log", "A_b_log", "D", "D_b"})

    def __init__(
        self,
        dim: int = 768,
        state_size: PositiveInt = 16,
        expand: PositiveInt = 2,
        d_conv: PositiveInt = 4,
        dt_rank: PositiveInt | None = None,
        dropout: Probability = 0.0,
    ):
        super().__init__()
        self.dim, self.state_size, self.d_inner, self.d_conv = dim, state_size, expand * dim, d_conv
        self.dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(dim, 2 * self.d_inner, bias=False)
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self._add_branch("")

    def _add_branch(self, end: str) -> None:
        """One direction's own parameters; ``end`` is "" or "_b"."""
        e, r = self.d_inner, self.dt_rank
        conv = nn.Conv1d(e, e, self.d_conv, groups=e, padding=self.d_conv - 1)
        dt_proj = nn.Linear(r, e)
        nn.init.uniform_(dt_proj.weight, -(r**-0.5), r**-0.5)
        with torch.no_grad():
            dt_proj.bias.copy_(dt_bias(e))
        states = torch.arange(1, self.state_size + 1, dtype=torch.float32)
        self.add_module(f"conv1d{end}", conv)
        self.add_module(f"x_proj{end}", nn.Linear(e, r + 2 * self.state_size, bias=False))
        self.add_module(f"dt_proj{end}", dt_proj)
        self.register_parameter("A_log" if not end else "A_b_log", nn.Parameter(states.log().expand(e, -1).clone()))
        self.register_parameter(f"D{end}", nn.Parameter(torch.ones(e)))

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """[B, S, dim] -> [B, S, dim]. mask_BS: bool; what is False is passed over, and its output means nothing."""
        no_memory(self, memory)
        fused = x_BSD.is_cuda or _gpu.can(_gpu.selective_scan_fn, x_BSD)
        if not (fused or torch.is_grad_enabled() or torch.compiler.is_compiling()):
            return self.dropout(self._lean(x_BSD, mask_BS))
        x, z = self.in_proj(x_BSD).chunk(2, -1)
        y, _ = self._branch(x, z, mask_BS, "", self.scan)
        return self.dropout(self.out_proj(y))

    def _lean(self, x_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        """The same where nothing is learned, a stretch of tokens after the other as a stream has them: what is as wide
        as the inner channels stays in the processor's cache."""
        y, state = torch.empty_like(x_BSD, dtype=dtype_here(x_BSD)), None
        for at in evenly(slice(0, x_BSD.shape[1]), STRETCH):
            x, z = self.in_proj(x_BSD[:, at]).chunk(2, -1)
            state = state or self.new_state(len(x), x)
            mask = None if mask_BS is None else mask_BS[:, at]
            inner, state = self._branch(x, z, mask, "", selective_scan, state=state)
            y[:, at] = self.out_proj(inner)
        return y

    def reference(self, x_BSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        """The same with the recurrence token by token and torch's convolution."""
        x, z = self.in_proj(x_BSD).chunk(2, -1)
        y, _ = self._branch(x, z, mask_BS, "", selective_scan_reference, plain=True)
        return self.dropout(self.out_proj(y))

    @staticmethod
    def scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Any = None) -> Any:
        if _gpu.can(_gpu.selective_scan_fn, x) and state is None:
            return _gpu.selective_scan(x, delta, a, b, c, d)
        return selective_scan(x, delta, a, b, c, d, state)

    def step(self, x_B1D: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """One more token of a stream: ([B, 1, dim], the new state). Equals the whole pass."""
        x, z = self.in_proj(x_B1D).chunk(2, -1)
        y, state = self._branch(x, z, None, "", selective_scan, state=state or self.new_state(len(x), x))
        return self.dropout(self.out_proj(y)), state

    def new_state(self, rows: int, like: Tensor) -> MambaState:
        return MambaState(
            like.new_zeros(rows, self.d_conv - 1, self.d_inner),
            like.new_zeros(rows, self.d_inner, self.state_size, dtype=torch.float32),
        )

    def _branch(
        self,
        x: Tensor,
        z: Tensor,
        mask: Tensor | None,
        end: str,
        scan: Any,
        plain: bool = False,
        state: MambaState | None = None,
    ) -> tuple[Tensor, MambaState | None]:
        """Convolution, scan and gate of one direction: [B, S, E] -> [B, S, E]."""
        conv, x_proj, dt_proj = (getattr(self, f"{name}{end}") for name in ("conv1d", "x_proj", "dt_proj"))
        a = -(self.A_b_log if end else self.A_log).float().exp()
        d = getattr(self, f"D{end}")
        x = x if mask is None else x * mask.unsqueeze(-1)
        if state is not None:
            x, kept = conv_step(x, conv, state.conv)
        elif plain:
            x = conv(x.mT)[..., : x.shape[1]].mT
        else:
            x = causal_conv(x, conv)
        x = F.silu(x)
        dt, b, c = x_proj(x).split([self.dt_rank, self.state_size, self.state_size], -1)
        delta = F.softplus(dt_proj(dt).float())
        if mask is not None:
            delta = delta * mask.unsqueeze(-1)
        y, last = scan(x.float(), delta, a, b.float(), c.float(), d.float(), None if state is None else state.ssm)
        y = y.to(z.dtype) * F.silu(z)
        return y, None if state is None else MambaState(kept, last)

    def flops(self, length: int) -> int:
        e, n, r = self.d_inner, self.state_size, self.dt_rank
        projections = 2 * (3 * self.dim * e + e * (r + 2 * n) + r * e)
        return length * (projections + 2 * self.d_conv * e + 9 * e * n)

    def state_bytes(self, length: int, bytes_per_value: int = 4) -> int:
        return self.d_inner * (self.state_size + self.d_conv - 1) * bytes_per_value


class BidirectionalMamba(MambaLayer):
    """With a second branch that reads from the end; both share the projections in and out (VideoMamba)."""

    causal = False

    def __init__(self, *layer: Any, **settings: Any):
        super().__init__(*layer, **settings)
        self._add_branch("_b")

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        no_memory(self, memory)
        x, z = self.in_proj(x_BSD).chunk(2, -1)
        y, _ = self._branch(x, z, mask_BS, "", self.scan)
        back = None if mask_BS is None else mask_BS.flip(1)
        y_b, _ = self._branch(x.flip(1), z.flip(1), back, "_b", self.scan)
        return self.dropout(self.out_proj(y + y_b.flip(1)))

    def step(self, x_B1D: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        raise ValueError("what reads from the end cannot stream; use attention.bidirectional=false")

    def flops(self, length: int) -> int:
        shared = 6 * length * self.dim * self.d_inner
        return 2 * super().flops(length) - shared


class MambaRoom(MixingRoom):
    """bidirectional: also from the end to the start; false is causal. See ``MambaLayer`` and ``MixingRoom``."""

    layer = MambaLayer

    def make(self, bidirectional: bool = True, **layer: Any) -> nn.Module:
        return (BidirectionalMamba if bidirectional else MambaLayer)(**layer)
