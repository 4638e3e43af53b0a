"""Which specialist is asked: a light classifier of a clip's kind, on pooled features of the base's encoder.

It is a multinomial logistic regression over the mean and the spread of all patch features of a clip, made with the
adapter off, so that no specialist's weights move its own choice. Trained on the tags of the data (``fit``), a model
carries it as ``model.router`` and gives every text row the set of adapter weights of its clip's domain.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hvlm.contracts import Vision
from hvlm.errors import UserError
from hvlm.gaze import encode_frames
from hvlm.types import NOTHING_ELSE, Batch

log = logging.getLogger(__name__)

BASE = "base"  # where no set of weights belongs to a domain
PENALTY = 1e-3  # on squared weights: what is separable stays short of certain
WIDEST = 10**6  # features: of more no encoder has, but a damaged file may claim them
FIELDS = ("mean", "scale", "weight", "bias")


class Route(NamedTuple):
    """Where a clip goes. domain: its kind. adapter: set of weights, or "base". confidence: of the domain, 0 to 1."""

    domain: str
    adapter: str
    confidence: float


class Router:
    """Pooled features [B, F] -> probability of each domain.

    domains: names, in the order of the classes. adapters: {domain: its set of weights}; others are the base's.
    prompts: {domain: what its conversations begin with} (``domain.prompt``), of those that have one.
    mean, scale: float32 [F], of the training features. weight, bias: float32 [domains, F], [domains].
    said: the routes of the clips seen so far, by their name.
    """

    def __init__(
        self,
        domains: Sequence[str],
        adapters: Mapping[str, str],
        mean: Tensor,
        scale: Tensor,
        weight: Tensor,
        bias: Tensor,
        prompts: Mapping[str, str] | None = None,
    ):
        self.domains, self.adapters, self.prompts = tuple(domains), dict(adapters), dict(prompts or {})
        self.mean, self.scale, self.weight, self.bias = mean, scale, weight, bias
        self.said: dict[str, Route] = {}

    def probabilities(self, pooled_BF: Tensor) -> Tensor:
        """float32 [B, domains]."""
        x = (pooled_BF.float().cpu() - self.mean) / self.scale
        return F.linear(x, self.weight, self.bias).softmax(-1)

    def routes(self, pooled_BF: Tensor) -> list[Route]:
        """The likeliest domain of each clip."""
        best = self.probabilities(pooled_BF).max(-1)
        names = [self.domains[i] for i in best.indices.tolist()]
        found = zip(names, best.values.tolist(), strict=True)
        return [Route(name, self.adapters.get(name, BASE), confidence) for name, confidence in found]

    # -- in a file ---------------------------------------------------------------------------------------------------

    def to_plain(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        names = {"domains": list(self.domains), "adapters": self.adapters, "prompts": self.prompts}
        return names | {field: getattr(self, field) for field in FIELDS}

    @classmethod
    def from_plain(cls, plain: Any, source: Any) -> Router:
        """What ``to_plain`` gave. source: the file, for the message. UserError where it is something else."""
        names = _names_of(plain) if isinstance(plain, Mapping) else None
        tensors = [plain.get(field) for field in FIELDS] if names is not None else []
        if names is None or not all(isinstance(x, Tensor) and x.is_floating_point() for x in tensors):
            raise UserError(f"{source}: its router is damaged; make it again with task=gather")
        mean, scale, weight, bias = (x.float() for x in tensors)
        fits = (
            mean.dim() == 1
            and len(mean) <= WIDEST
            and mean.shape == scale.shape
            and (len(names[0]), len(mean)) == tuple(weight.shape)
        )
        fits = fits and bias.shape == weight.shape[:1]
        if not (fits and all(x.isfinite().all() for x in (mean, scale, weight, bias)) and (scale > 0).all()):
            raise UserError(f"{source}: its router is damaged; make it again with task=gather")
        domains, adapters, prompts = names
        return cls(domains, adapters, mean, scale, weight, bias, prompts)

    def check(self, width: int, names: Sequence[str], source: Any) -> None:
        """Whether it belongs to a model: UserError where it was made for another.

        Args:
            width: of the model's pooled features.
            names: the model's sets of adapter weights.
            source: the file, for the message.
        """
        if len(self.mean) != width:
            raise UserError(
                f"{source}: its router reads {len(self.mean)} features of a clip, and this encoder gives {width}; make "
                "it again with task=gather"
            )
        if unknown := sorted(set(self.adapters.values()) - {*names, BASE}):
            raise UserError(
                f"{source}: its router sends clips to {unknown[0]!r:.100}, which is no set of adapter weights here "
                f"({', '.join(names) or 'none'}); make it again with task=gather"
            )


def _names_of(plain: Mapping[str, Any]) -> tuple[list[str], dict[str, str], dict[str, str]] | None:
    """(domains, adapters, prompts); None where they are no texts."""
    domains, maps = plain.get("domains"), [plain.get(name) for name in ("adapters", "prompts")]
    if not isinstance(domains, list | tuple) or not all(isinstance(one, dict) for one in maps):
        return None
    texts = [*domains, *(text for one in maps for pair in one.items() for text in pair)]
    if not domains or not all(isinstance(text, str) for text in texts):
        return None
    return list(domains), dict(maps[0]), dict(maps[1])


def fit(
    pooled_NF: Tensor, labels_N: Tensor, domains: Sequence[str], adapters: Mapping[str, str], penalty: float = PENALTY
) -> Router:
    """The router of these clips, the same for the same clips.

    Args:
        pooled_NF: features, see ``pooled``.
        labels_N: int64, index into ``domains``.
        domains, adapters: see ``Router``.
        penalty: times the mean of the squared weights of a class.
    """
    pooled_NF = pooled_NF.float()
    mean, scale = pooled_NF.mean(0), pooled_NF.std(0, correction=0).clamp(min=1e-6)
    x = (pooled_NF - mean) / scale
    with torch.enable_grad():
        weight = torch.zeros(len(domains), x.shape[1], requires_grad=True)
        bias = torch.zeros(len(domains), requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(x, weight, bias), labels_N) + penalty * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return Router(domains, adapters, mean, scale, weight.detach(), bias.detach())


@torch.no_grad()
def pooled(vision: Vision, batch: Batch) -> Tensor:
    """Mean and standard deviation of all patch features of each clip, float32 [B, 2 * dim]; zero without a video.

    The caller switches adapters off.
    """
    b, t = batch.frame_mask_BT.shape
    shown = batch.frame_mask_BT.flatten().nonzero().squeeze(1)
    frames = batch.frames_BTCHW.flatten(0, 1)[shown]
    clip = torch.arange(b, device=shown.device).repeat_interleave(t)[shown]
    sums = torch.zeros((b, 2, vision.dim), device=shown.device)
    count = torch.zeros(b, 1, device=shown.device)
    for start in range(0, len(frames), vision.frames_at_once):
        part = slice(start, start + vision.frames_at_once)
        x_FND = encode_frames(vision, frames[part], NOTHING_ELSE).tokens.x_BSD.float()
        sums[:, 0].index_add_(0, clip[part], x_FND.sum(1))
        sums[:, 1].index_add_(0, clip[part], x_FND.square().sum(1))
        count.index_add_(0, clip[part], x_FND.new_full((len(x_FND), 1), x_FND.shape[1]))
    mean, square = (sums / count.clamp(min=1).unsqueeze(1)).unbind(1)
    return torch.cat([mean, (square - mean.square()).clamp(min=0).sqrt()], 1)
