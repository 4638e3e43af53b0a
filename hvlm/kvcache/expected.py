"""Expected Attention (Devoto et al. 2025): what queries to come will attend to, had they the distribution of those that
were."""

from __future__ import annotations

import torch
from torch import Tensor

from hvlm.caching import PastKV, Rotates
from hvlm.config.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Share
from hvlm.errors import UserError
from hvlm.functional import repeat_heads
from hvlm.kvcache._evict import Budget, EvictingKV, EvictingRoom, Look, grouped, order_in_row


class ExpectedAttention(EvictingRoom):
    """Of the queries of the pass, before their rotation, mean μ and covariance Σ of every query head are taken, and
    both are rotated by the average rotation R over the next ``future`` positions. For q ~ N(Rμ, RΣRᵀ) the expectation
    of exp(s q·k), with s the attention's scale, is exp(s μᵀRᵀk + s² kᵀRΣRᵀk / 2). These, made to sum to one over the
    places, averaged over a KV head's query heads, plus ``epsilon``, times the length of the value, are the scores.

    As in the authors' implementation: queries are taken as normal, their average rotation in place of a rotation each,
    the first tokens of a row (sinks) neither counted among the queries nor among the places that are compared, and
    kept. In a context of several pieces the queries are those of the piece. Layers with a window are scored as if they
    had none.

    Args:
        budget: places that each KV head keeps of the context, sinks among them.
        share: in its stead, the share of the context's places.
        sink: first tokens of a row that are kept in any case.
        future: positions over which the rotation is averaged.
        epsilon: added to the expected attention before it is multiplied with the value's length.
        chunk: the context is read in pieces of so many places; null: at once.
    """

    def __init__(
        self,
        *,
        budget: PositiveInt = 1024,
        share: Share | None = None,
        sink: NonNegativeInt = 4,
        future: PositiveInt = 512,
        epsilon: NonNegativeFloat = 0.0,
        chunk: PositiveInt | None = None,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
    ):
        super().__init__(
            name="expected", budget=budget, share=share, chunk=chunk,
            num_layers=num_layers, num_kv_heads=num_kv_heads, head_dim=head_dim,
        )  # fmt: skip
        if share is None and budget <= sink:
            raise UserError(f"kvcache.budget={budget}: expected more than kvcache.sink={sink}, which are kept anyway")
        self.sink, self.future, self.epsilon = sink, future, epsilon

    def new(self) -> PastKV:
        return ExpectedCache(self.budget, self.sink, self.future, self.epsilon)


class ExpectedCache(EvictingKV):
    def __init__(self, budget: Budget, sink: int, future: int, epsilon: float) -> None:
        super().__init__("expected", budget)
        self.sink, self.future, self.epsilon = sink, future, epsilon

    def score(self, look: Look) -> tuple[Tensor, Tensor | None]:
        heads, groups, new = look.query.shape[1], look.key.shape[1], look.query.shape[2]
        rotation = self.rotation
        if rotation is None:
            raise UserError(
                "kvcache=expected: how this language model rotates its queries cannot be told from outside; use "
                "kvcache=snapkv"
            )
        order_KL = order_in_row(self.mask_KL)
        mean, root = self._queries(look, rotation, (self.mask_KL & (order_KL >= self.sink))[:, -new:])

        sinks = look.valid & (self._of_places(order_KL, look.index) < self.sink)
        if bool((sinks.sum(2) > self._goal_K[:, None]).any()):
            raise UserError(f"{self.budget}: fewer places of a row stay than its kvcache.sink={self.sink}; use fewer")
        key, scale = repeat_heads(look.key, heads), look.how.scale_for(look.key.shape[-1])
        logit = scale * (key @ mean.unsqueeze(-1)).squeeze(-1)
        logit = logit + 0.5 * scale**2 * (key @ root).square().sum(-1)
        compared = (look.valid & ~sinks).repeat_interleave(heads // groups, 1)
        if look.bias is not None:
            logit = logit + look.bias.repeat_interleave(heads // groups, 1)
        lowest = torch.finfo(logit.dtype).min
        weight = grouped(logit.masked_fill(~compared, lowest).softmax(-1), groups)
        return (weight + self.epsilon) * look.value.norm(dim=-1), sinks

    def _queries(self, look: Look, rotation: Rotates, counted_KS: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated by the average rotation: their mean [K, H, d], and a square root of their covariance, [K, H, d, S]
        (its product with its own transpose is the covariance)."""
        layer, new = look.layer, look.query.shape[2]
        angles = rotation.angles(self.position_KL[:, -new:], layer)
        query = look.query if angles is None else rotation.turn(look.query, angles.back)
        weight = counted_KS.float()[:, None, :, None]
        many = weight.sum(2, keepdim=True).clamp(min=1)
        mean = (query * weight).sum(2, keepdim=True) / many
        apart = (query - mean) * (weight / many).sqrt()

        ahead = self.next_K1 + torch.arange(self.future, device=query.device)
        angles = rotation.angles(ahead, layer)
        average = None if angles is None else angles.mean
        # Fewer deviations than channels are rotated one by one, more of them as the square root of their covariance.
        if new > query.shape[-1]:
            apart = _root(apart.mT @ apart)
        return rotation.turn(mean, average).squeeze(2), rotation.turn(apart, average).mT


def _root(covariance: Tensor) -> Tensor:
    """[..., d, d] whose transpose times itself is the covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return values.clamp(min=0).sqrt().unsqueeze(-1) * vectors.mT
