"""Performer: softmax attention by random features, linear in the number of tokens (Choromanski et al. 2021).

    exp(q k) = E_w[ exp(w q - |q|²/2) exp(w k - |k|²/2) ],  w ~ N(0, I)        (FAVOR+, positive features)
    y_i = φ(q_i) (Σ_j φ(k_j) v_jᵀ) / (φ(q_i) Σ_j φ(k_j)),   φ(x) = exp(W x - |x|²/2)

W: m/2 rows and their negatives (the paper's hyperbolic features: what is odd in w cancels), in blocks of orthogonal
ones, drawn anew every ``redraw`` training steps. Their lengths: √d (the paper's regularised kernel; with whole blocks
the terms up to the second order are exact, while log E_w[..] is lower than q k by |q + k|⁴ / (4 (d + 2)) and terms
beyond), or a Gaussian row's (no bias, but more variance). ``python -m experiments.attention.features`` compares them.
Other kernels: φ(x) = relu(W x) + ε (generalised attention; no pairs), and φ(x) = elu(x) + 1 without any projection
(Katharopoulos et al. 2020). How exp is kept in range: ``_kernel.py``.

Cost: 4 S m D operations for the features' sums and 2 S m D for W (relu: 4) beside the projections' 8 S D², with m
features (m = d and no W for elu): linear in S. Causal: prefix sums, in chunks. A stream keeps H ((m + 1) (d + 1) + 1)
values, however long it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hvlm.attention import _gpu
from hvlm.attention._base import MixingRoom, no_memory
from hvlm.attention._kernel import (
    EPS_RELU,
    EPS_SOFTMAX,
    half_square,
    kernel_attention_layer,
    kernel_attention_lean,
    scaled,
)
from hvlm.attention._kernel_causal import CAUSAL_CHUNK, KernelState, kernel_attention_causal, kernel_attention_fused
from hvlm.attention._qkv import Heads
from hvlm.config.ranges import NonNegativeInt, PositiveInt, Probability


class PerformerAttention(Heads):
    """kernel: ``softmax`` (FAVOR+), ``relu`` or ``elu``. num_features: m, by default ⌊d ln d⌋ (softmax: made even); elu
    has none. lengths: of W's rows, ``equal`` or ``gaussian``. redraw: training steps between new projections; 0
    keeps the first. causal: a token sees what came before and itself. dim, num_heads, dropout: see ``Heads``."""

    projection: Tensor
    steps: Tensor

    def __init__(
        self,
        dim: int = 768,
        num_heads: int = 12,
        num_features: PositiveInt | None = None,
        kernel: Literal["softmax", "relu", "elu"] = "softmax",
        lengths: Literal["equal", "gaussian"] = "equal",
        redraw: NonNegativeInt = 1000,
        causal: bool = False,
        dropout: Probability = 0.0,
    ):
        super().__init__(dim, num_heads, dropout)
        if kernel not in ("softmax", "relu", "elu"):
            raise ValueError(f"attention.kernel={kernel!r}: expected softmax, relu or elu")
        if num_features is not None and num_features < 1:
            raise ValueError(f"attention.num_features={num_features}: expected 1 or more, or null")
        if kernel == "softmax" and num_features is not None and num_features % 2:
            raise ValueError(f"attention.num_features={num_features}: softmax has pairs, expected an even number")
        if lengths not in ("equal", "gaussian"):
            raise ValueError(f"attention.lengths={lengths!r}: expected equal or gaussian")
        self.kernel, self.lengths, self.redraw, self.causal = kernel, lengths, redraw, causal
        d = self.head_dim
        default = max(2, int(d * math.log(d)))
        default -= default % 2 if kernel == "softmax" else 0
        self.num_features = d if kernel == "elu" else num_features or default
        if kernel != "elu":
            self.register_buffer("projection", self._draw())
            self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """[B, S, dim] -> [B, S, dim]. mask_BS: bool, False where nobody may look; there the output means nothing."""
        no_memory(self, memory)
        self.count()
        return self.mix(x_BSD, mask_BS)

    def mix(self, x_BSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        """``forward`` with the features as they are."""
        given = (self.kernel, self._projection(), mask_BS)
        if self.causal:
            q, k, v = self.project(x_BSD, scaled=False)
            if self.kernel != "softmax" and mask_BS is None and _gpu.can(_gpu.chunk_linear_attn, q):
                return self.finish(kernel_attention_fused(q, k, v, *given[:2]))
            return self.finish(kernel_attention_causal(q, k, v, *given)[0])
        if not (x_BSD.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling()):
            return self.dropout(kernel_attention_lean(x_BSD, self, *given))
        return self.finish(kernel_attention_layer(x_BSD, self, *given))

    def reference(self, q: Tensor, k: Tensor, v: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        """The same with every pair's weight φ(q_i) φ(k_j) written out; q, k, v unscaled."""
        q, k = q.float(), k.float()
        projection = scaled(self._projection())
        seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device)
        seen = (seen.tril() if self.causal else seen)[None, None]
        if mask_BS is not None:
            seen = seen & mask_BS[:, None, None]
        if self.kernel == "elu":
            weights = (nn.functional.elu(q) + 1) @ (nn.functional.elu(k) + 1).transpose(-1, -2)
        elif self.kernel == "relu":
            weights = ((q @ projection.T).relu() + EPS_RELU) @ ((k @ projection.T).relu() + EPS_RELU).mT
        else:
            e_q, e_k = q @ projection.T, k @ projection.T
            largest = e_k.detach().amax(-1).unsqueeze(-2).masked_fill(~seen, -torch.inf).amax(-1)  # c_i [B, H, S or 1]
            phi_q = (e_q - half_square(q) - e_q.detach().amax(-1, keepdim=True)).exp() + EPS_SOFTMAX
            e_k = (e_k - half_square(k)).unsqueeze(2) - largest[..., None, None]
            phi_k = e_k.exp() + EPS_SOFTMAX  # [B, H, S or 1, S, m]
            weights = (phi_q.unsqueeze(3) * phi_k).sum(-1)
        weights = weights * seen
        return (weights / weights.sum(-1, keepdim=True)) @ v.float()

    def step(self, x_B1D: Tensor, state: KernelState | None = None) -> tuple[Tensor, KernelState]:
        """One more token of a stream: ([B, 1, dim], the new state, None before the first). Equals the causal pass."""
        if not self.causal:
            raise ValueError("a stream needs attention.causal=true")
        given = self.project(x_B1D, scaled=False)
        y, state = kernel_attention_causal(*given, self.kernel, self._projection(), state=state)
        return self.finish(y), state

    def flops(self, length: int) -> int:
        d, m = self.head_dim, self.num_features
        maps = {"elu": 0, "relu": 4, "softmax": 2}[self.kernel] * length * m * self.dim  # a pair is mapped once
        # A causal pass also looks at the pairs inside a chunk.
        pairs = 2 * length * min(CAUSAL_CHUNK, length) * (m + d + 1) * self.num_heads if self.causal else 0
        return self.projection_flops(length) + maps + 4 * length * m * self.dim + pairs

    def state_bytes(self, length: int, bytes_per_value: int = 4) -> int:
        return self.num_heads * ((self.num_features + 1) * (self.head_dim + 1) + 1) * bytes_per_value

    def _projection(self) -> Tensor | None:
        return None if self.kernel == "elu" else self.projection

    @torch.no_grad()
    def count(self) -> None:
        """One more training step; new features where they are due."""
        if not self.training or self.kernel == "elu":
            return
        if self.redraw and int(self.steps) and int(self.steps) % self.redraw == 0:
            self.projection.copy_(self._draw().to(self.projection))
        self.steps += 1

    def _load_from_state_dict(self, state: Mapping[str, Tensor], prefix: str, *given: Any) -> None:
        w = state.get(f"{prefix}projection")
        if self.kernel == "softmax" and w is not None and not torch.equal(w[len(w) // 2 :], -w[: len(w) // 2]):
            given[-1].append(
                f"{prefix}projection: its rows are not in pairs w and -w, as softmax features are now; the mixing was "
                "trained with other features and has to be trained again"
            )
        super()._load_from_state_dict(state, prefix, *given)

    def _draw(self) -> Tensor:
        draw = paired_features if self.kernel == "softmax" else orthogonal_features
        return draw(self.num_features, self.head_dim, self.lengths)


def orthogonal_features(num_features: int, dim: int, lengths: str = "equal") -> Tensor:
    """W [m, d]: blocks of orthogonal rows, each √d or as long as a Gaussian one. Independent rows vary more."""
    blocks = [torch.linalg.qr(torch.randn(dim, dim))[0].T for _ in range(math.ceil(num_features / dim))]
    unit = torch.cat(blocks)[:num_features]
    return unit * (dim**0.5 if lengths == "equal" else torch.randn(num_features, dim).norm(dim=1, keepdim=True))


def paired_features(num_features: int, dim: int, lengths: str = "equal") -> Tensor:
    """W [m, d] for FAVOR+: the second half is minus the first."""
    half = orthogonal_features(num_features // 2, dim, lengths)
    return torch.cat([half, -half])


class PerformerRoom(MixingRoom):
    """See ``PerformerAttention`` and ``MixingRoom``."""

    layer = PerformerAttention

    def mixed_again(self, layer: nn.Module, x_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        layer.count()  # here, once, and not when the layer is computed again
        return checkpoint(layer.mix, x_BSD, mask_BS, use_reentrant=False)
