"""Queries, keys and values of several heads, and the way back: what the softmax and kernel mechanisms share."""

from __future__ import annotations

from torch import Tensor, nn

from hvlm.functional import join_heads


class Heads(nn.Module):
    """dim: width. num_heads: must divide it. dropout: on what the layer gives, in training only."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"attention: dim={dim} does not divide by num_heads={num_heads}")
        self.dim, self.num_heads, self.head_dim = dim, num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def project(self, x_BSD: Tensor, scaled: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each [B, H, S, d]; ``scaled``: q is divided by sqrt(d)."""
        b, s, _ = x_BSD.shape
        q, k, v = self.qkv(x_BSD).view(b, s, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return q * self.head_dim**-0.5 if scaled else q, k, v

    def finish(self, y_BHSd: Tensor) -> Tensor:
        return self.dropout(self.out(join_heads(y_BHSd)))

    def projection_flops(self, length: int) -> int:
        return 8 * length * self.dim**2
