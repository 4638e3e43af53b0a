"""Local and global: a window around every token, and a few learned tokens that have read everything.

Longformer (Beltagy et al. 2020) and ETC / BigBird (Ainslie, Zaheer et al. 2020) give some tokens of the sequence global
sight. Here the global ones are G learned latents g, as in Set Transformer's induced attention (Lee et al. 2019), so
that one layer already carries what is far away:

    g' = g + W_r softmax(q_g [k; k_g]ᵀ) [v; v_g]              every latent reads all tokens and all latents
    y_i = softmax over {|i - j| <= w} ∪ {g'} of q_i k_j / √d,  times v_j

Causal: a latent that has read everything would tell the past about the future, so the latents stay as they were
learned: places to look at when nothing near is worth it.

Cost: 4 S (2 w + 1 + G) D + 4 G S D operations beside the projections' 8 S D²: linear in S. A stream keeps the window
and the latents: 2 (w + G) D values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvlm.attention._base import MixingRoom, check_streams, no_memory
from hvlm.attention._chunked_inference import Join, window_lean
from hvlm.attention._flex import flex_attend, window_mask
from hvlm.attention._qkv import Heads, KeysValues
from hvlm.attention._softmax import attend_part, attend_window, join
from hvlm.config.ranges import NonNegativeInt, Probability
from hvlm.functional import attend, join_heads, lowest


class LocalGlobalAttention(Heads):
    """local_window: w, the furthest place that is seen to either side. num_global_tokens: G, may be 0.
    causal: up to one's own place. dim, num_heads, dropout: see ``Heads``."""

    def __init__(
        self,
        local_window: NonNegativeInt = 64,
        num_global_tokens: NonNegativeInt = 4,
        dim: int = 768,
        num_heads: int = 12,
        causal: bool = False,
        dropout: Probability = 0.0,
    ):
        super().__init__(dim, num_heads, dropout)
        if local_window < 0 or num_global_tokens < 0:
            raise ValueError(
                f"attention.local_window={local_window}, attention.num_global_tokens={num_global_tokens}: expected >= 0"
            )
        self.local_window, self.num_global_tokens, self.causal = local_window, num_global_tokens, causal
        self.latents = nn.Parameter(torch.randn(1, num_global_tokens, dim)) if num_global_tokens else None
        self.read = nn.Linear(dim, dim) if num_global_tokens and not causal else None

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """[B, S, dim] -> [B, S, dim]. mask_BS: bool, False where nobody may look; there the output means nothing."""
        no_memory(self, memory)
        if not (x_BSD.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling()):
            far = None if self.latents is None else self._far
            return self.dropout(window_lean(x_BSD, self, self.local_window, self.causal, mask_BS, far))
        q, k, v = self.project(x_BSD)
        if x_BSD.is_cuda:  # not tested on a GPU; equal to the other path on a CPU
            local = flex_attend(q, k, v, window_mask(q.shape[2], self.local_window, self.causal, q.device), mask_BS)
        else:
            local = attend_window(q, k, v, self.local_window, self.causal, mask_BS, joins=self.latents is not None)
        if self.latents is None:
            return self.finish(local[0])
        k_g, v_g = self.split_qkv(1, 2)[1](self.globals(k, v, mask_BS))
        return self.finish(join(local, attend_part(q, k_g, v_g))[0])

    def _far(self, k: Tensor, v: Tensor, mask_BS: Tensor | None) -> Join:
        k_g, v_g = self.split_qkv(1, 2)[1](self.globals(k, v, mask_BS))
        return lambda q, local: join(local, attend_part(q, k_g, v_g))[0]

    def globals(self, k: Tensor, v: Tensor, mask_BS: Tensor | None) -> Tensor:
        """The latents after reading, [B, G, dim]."""
        latents = self.latents.expand(k.shape[0], -1, -1)
        if self.read is None:
            return latents
        q_g, k_g, v_g = self.project(latents)
        absent = None if mask_BS is None else torch.where(mask_BS[:, None, None], 0.0, lowest(k.dtype))
        read, _ = join(attend_part(q_g, k, v, absent), attend_part(q_g, k_g, v_g))
        return latents + self.read(join_heads(read))

    def reference(self, x_BSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        """The same with all scores and a mask."""
        q, k, v = self.project(x_BSD)
        place = torch.arange(q.shape[2], device=q.device)
        seen = (place[:, None] - place).abs() <= self.local_window
        seen = (seen & (place <= place[:, None]) if self.causal else seen)[None, None]
        if mask_BS is not None:
            seen = seen & mask_BS[:, None, None]
        if self.latents is None:
            return self.finish(attend(q, k, v, seen, scale=1.0))
        latents = self.latents.expand(len(x_BSD), -1, -1)
        if self.read is not None:
            q_g, k_g, v_g = self.project(latents)
            both = (
                torch.ones(len(x_BSD), 1, 1, k.shape[2], dtype=torch.bool)
                if mask_BS is None
                else mask_BS[:, None, None]
            )
            both = nn.functional.pad(both, (0, self.num_global_tokens), value=True)
            read = attend(q_g, torch.cat([k, k_g], 2), torch.cat([v, v_g], 2), both, scale=1.0)
            latents = latents + self.read(join_heads(read))
        _, k_g, v_g = self.project(latents)
        seen = nn.functional.pad(seen.expand(len(x_BSD), 1, -1, -1), (0, self.num_global_tokens), value=True)
        return self.finish(attend(q, torch.cat([k, k_g], 2), torch.cat([v, v_g], 2), seen, scale=1.0))

    def step(self, x_B1D: Tensor, state: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """One more token of a stream: ([B, 1, dim], the new state: global tokens, then the window). Equals the causal
        pass."""
        check_streams(self.causal)
        q, k, v = self.project(x_B1D)
        if state is None:
            state = KeysValues(k[:, :, :0], v[:, :, :0])
            if self.latents is not None:
                state = KeysValues(*self.split_qkv(1, 2)[1](self.globals(k, v, None)))
        state = state.followed_by(k, v)
        y = self.finish(attend(q, *state, scale=1.0))
        many = state.keys.shape[2] - self.num_global_tokens - self.local_window
        return y, state if many <= 0 else state.without(self.num_global_tokens, many)

    def flops(self, length: int) -> int:
        g = self.num_global_tokens
        w = min(self.local_window, length - 1)
        near = length * (w + 1) - w * (w + 1) // 2  # pairs up to one's own place
        near = near if self.causal else 2 * near - length
        reading = 0 if self.read is None else 4 * g * (length + g) * self.dim + 2 * g * self.dim**2
        latents = g * self.dim**2 * (4 if self.read is None else 10)
        return self.projection_flops(length) + 4 * (near + g * length) * self.dim + reading + latents

    def state_bytes(self, length: int, bytes_per_value: int = 4) -> int:
        return 2 * (min(length, self.local_window) + self.num_global_tokens) * self.dim * bytes_per_value


class LocalGlobalRoom(MixingRoom):
    """See ``LocalGlobalAttention`` and ``MixingRoom``."""

    layer = LocalGlobalAttention
