"""The deep query: one more token carried through a vision transformer that only it knows about.

fVLM's foveated encoder. The patches of a frame go through the encoder once, and every layer's keys and values are kept.
A query u_0 = W_in q then passes through the same layers with the same weights,

    u <- u + LS1( W_O attn(W_Q LN1(u), K, V) );   u <- u + LS2( MLP(LN2(u)) );   z = W_out LN_final(u),

so that it is a further token with asymmetric attention: it sees the patches, they never see it, and queries never see
each other. Per query and layer this costs 10 D^2 + 2 N D multiplications: next to nothing beside the patches' own pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from hvlm.functional import attend, attention_entropy, attention_weights, join_heads, split_heads
from hvlm.merging import MergedKeys
from hvlm.types import KV


class Gaze(nn.Module):
    """The query's way in and out: ``query_in`` (no bias: a bias would make all queries alike) and ``query_out``.

    query_dim: width of the query that comes in. dim: width of the encoder, and of the feature z that goes out.
    ``record``: a list to which every call appends its attention weights, mean over heads, [layers, F, Q, N]; None: not.
    """

    part = "connector"  # shaped by the encoder's width, trained with those who ask

    def __init__(self, query_dim: int, dim: int):
        super().__init__()
        self.query_in = nn.Linear(query_dim, dim, bias=False)
        self.query_out = nn.Linear(dim, dim)
        self.record: list[Tensor] | None = None

    def forward(
        self,
        query_FQD: Tensor,
        kv: KV,
        layers: Iterable[nn.Module],
        norm: Callable[[Tensor], Tensor],
        project: Callable[[nn.Module, Tensor], Tensor],
        finish: Callable[[nn.Module, Tensor, Tensor], Tensor],
        shallow: bool = False,
        return_entropy: bool = False,
        merged: MergedKeys | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(z [F, Q, dim], entropy or None) for Q queries [F, Q, query_dim] on each of F frames.

        layers: the encoder's, in order. norm: its last normalisation.
        project(layer, u_FQD) -> [F, heads, Q, d]: W_Q LN1(u), split into heads.
        finish(layer, u_FQD, attended_FQD) -> u_FQD: the rest of the layer, from W_O on, residuals included.
        shallow: fVLM's ablation: one cross-attention of W_in q over the last layer's keys and values, nothing else.
        return_entropy: also give the mean entropy of the attention over layers, heads and queries (nats, no gradient);
            near ln(number of keys) the queries look at everything alike.
        merged: where a merger joined patches, what stands behind each key.
        """
        u = self.query_in(query_FQD)
        bias = None if merged is None else merged.log_size_FN[:, None, None, :]
        looks: list[tuple[Tensor, Tensor]] = []  # queries and keys of each layer
        if shallow:
            k, v = kv[-1]
            looks.append((split_heads(u, k.shape[1]), k))
            u = join_heads(attend(*looks[0], v, bias))
        else:
            for layer, (k, v) in zip(layers, kv, strict=True):
                looks.append((project(layer, u), k))
                u = finish(layer, u, join_heads(attend(*looks[-1], v, bias)))
        if self.record is not None:
            weights = torch.stack([attention_weights(q.float(), k.float(), bias).mean(1) for q, k in looks]).detach()
            self.record.append(weights if merged is None else merged.spread(weights))
        entropy = torch.stack([attention_entropy(q, k, bias) for q, k in looks]).mean() if return_entropy else None
        return self.query_out(norm(u)), entropy
