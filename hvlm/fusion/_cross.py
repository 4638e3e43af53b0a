"""Attention of one modality's states to the other's, with the keys that each query has chosen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvlm.config.ranges import Probability
from hvlm.functional import attend, join_heads, split_heads, transposed


class Gate(nn.Module):
    """x + gate * size(x) * update, with a learned gate: how much a modality takes from the other.

    size(x) is each state's own root mean square, a constant for the gradient: visual tokens and embedded words differ
    in size by orders of magnitude, and one gate means the same for both. init: 0 begins as no fusion at all.
    """

    def __init__(self, init: float):
        super().__init__()
        self.gate = nn.Parameter(torch.full((1,), float(init)))

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        size = x.detach().float().square().mean(-1, keepdim=True).sqrt().to(update.dtype)
        return x + (self.gate * size * update).to(x.dtype)


class CrossAttention(nn.Module):
    """softmax(q kᵀ / √d) v with queries of one side and keys of the other. A query that may see no key gets zero."""

    def __init__(self, dim: int, num_heads: int, dropout: Probability = 0.0):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"fusion: dim={dim} does not divide by num_heads={num_heads}")
        self.num_heads = num_heads
        self.q, self.kv, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_KQD: Tensor, y_KND: Tensor, seen: Tensor) -> Tensor:
        """[K, Q, D]. seen: bool, [K, N] (which keys are there) or [K, Q, N] (which of them each query sees)."""
        if seen.dim() == 2:
            seen = seen.unsqueeze(1)
        any_KQ1 = seen.any(-1, keepdim=True)
        q = split_heads(self.q(x_KQD), self.num_heads)
        k, v = (split_heads(z, self.num_heads) for z in self.kv(y_KND).chunk(2, -1))
        # Where there is nothing to see everything is seen and nothing is taken: no row of the softmax is empty.
        out = self.out(join_heads(attend(q, k, v, (seen | ~any_KQ1).unsqueeze(1))))
        return self.dropout(out.masked_fill(~any_KQ1, 0))

    def scores(self, x_KQD: Tensor, y_KND: Tensor) -> Tensor:
        """float32 [K, Q, N]: the mean over the heads of q · k, up to a factor, for choosing; no gradient.

        That mean is one product of whole states, so the projection of the longer side is folded into the shorter one:
        no key, or no query, of the longer side is made.
        """
        dim = self.q.in_features
        with torch.no_grad(), torch.autocast(x_KQD.device.type, enabled=False):
            x, y = x_KQD.float(), y_KND.float()
            wq, bq, wk, bk = (w.float() for w in (self.q.weight, self.q.bias, self.kv.weight[:dim], self.kv.bias[:dim]))
            if x.shape[1] <= y.shape[1]:
                q = x @ wq.T + bq
                return (q @ wk) @ transposed(y) + (q @ bk).unsqueeze(2)
            k = y @ wk.T + bk
            return x @ transposed(k @ wq) + (k @ bq).unsqueeze(1)


def best(scores_KQN: Tensor, mask_KN: Tensor, k: int) -> Tensor:
    """bool [K, Q, N]: the ``k`` valid keys with the highest scores of each query, all where there are fewer."""
    scores = scores_KQN.masked_fill(~mask_KN.unsqueeze(1), -torch.inf)
    places = scores.topk(min(k, scores.shape[-1]), dim=-1).indices
    found = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(-1, places, True)
    return found & mask_KN.unsqueeze(1)


class FeedForward(nn.Sequential):
    """into -> hidden -> out, with GELU."""

    def __init__(self, into: int, hidden: int, out: int, dropout: Probability = 0.0):
        super().__init__(nn.Linear(into, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out))


class Block(nn.Module):
    """A pre-norm transformer layer without an order: x + attn(LN x), then x + FFN(LN x), each through a ``Gate``.

    crosses: between the two, attention to the other side.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, dropout: Probability, gate: float = 1.0, crosses: bool = False
    ):
        super().__init__()
        hidden = max(1, round(mlp_ratio * dim))
        self.norm, self.attention = nn.LayerNorm(dim), CrossAttention(dim, num_heads, dropout)
        self.gate = Gate(gate)
        self.crosses = crosses
        if crosses:
            self.cross_norm, self.other_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.cross, self.cross_gate = CrossAttention(dim, num_heads, dropout), Gate(gate)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), FeedForward(dim, hidden, dim, dropout)
        self.mlp_gate = Gate(gate)

    def forward(
        self, x_KSD: Tensor, mask_KS: Tensor, other_KND: Tensor | None = None, there_KN: Tensor | None = None
    ) -> Tensor:
        y = self.norm(x_KSD)
        x = self.gate(x_KSD, self.attention(y, y, mask_KS))
        if self.crosses:
            x = self.cross_gate(x, self.cross(self.cross_norm(x), self.other_norm(other_KND), there_KN))
        return self.mlp_gate(x, self.mlp(self.mlp_norm(x)))
