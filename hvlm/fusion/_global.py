"""Global fusion: a state of each modality attends to the other's, and to that of what local fusion made."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvlm.config.ranges import Probability
from hvlm.fusion._cross import CrossAttention, FeedForward
from hvlm.fusion._pool import Pool, Pooling


class GlobalFusion(nn.Module):
    """V_g attends to [T_g; F_g], T_g to [V_g; F_g], and MLP([V_g'; T_g']) is the state of both, [K, D].

    V_g and T_g are pooled of what came into local fusion, F_g of what it made of both, with an embedding of the
    modality.
    """

    def __init__(self, dim: int, num_heads: int, pooling: Pooling, mlp_ratio: float = 1.0, dropout: Probability = 0.0):
        super().__init__()
        self.pool_v, self.pool_t, self.pool_f = (Pool(dim, pooling) for _ in range(3))
        self.norm_v, self.norm_t, self.norm_f = (nn.LayerNorm(dim) for _ in range(3))
        self.modality = nn.Parameter(torch.randn(2, dim) * 0.02)
        self.v2t, self.t2v = (CrossAttention(dim, num_heads, dropout) for _ in range(2))
        self.mlp = FeedForward(2 * dim, max(1, round(mlp_ratio * dim)), dim, dropout)

    def forward(
        self, unimodal: tuple[Tensor, Tensor], local: tuple[Tensor, Tensor], mask_KV: Tensor, mask_KP: Tensor
    ) -> Tensor:
        """unimodal, local: (visual [K, V, D], text [K, P, D]) before and after local fusion."""
        v = self.norm_v(self.pool_v(unimodal[0], mask_KV)).unsqueeze(1)
        t = self.norm_t(self.pool_t(unimodal[1], mask_KP)).unsqueeze(1)
        both = torch.cat([self.norm_f(local[0]) + self.modality[0], self.norm_f(local[1]) + self.modality[1]], 1)
        f = self.pool_f(both, torch.cat([mask_KV, mask_KP], 1)).unsqueeze(1)
        has_v, has_t = mask_KV.any(1, keepdim=True), mask_KP.any(1, keepdim=True)
        v_new = v + self.v2t(v, torch.cat([t, f], 1), torch.cat([has_t, has_v | has_t], 1))
        t_new = t + self.t2v(t, torch.cat([v, f], 1), torch.cat([has_v, has_v | has_t], 1))
        v_new, t_new = v_new * has_v.unsqueeze(-1), t_new * has_t.unsqueeze(-1)
        return self.mlp(torch.cat([v_new, t_new], -1).squeeze(1))
