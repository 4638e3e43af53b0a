"""Rooms that exist in tests alone: they show that the contracts carry what is to come."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvlm.adapter._base import AttachedAdapter
from hvlm.contracts import Fusion, Head
from hvlm.model import VLM
from hvlm.types import Batch, Fused, Sequence, Tokens


class Mix(Fusion):
    """Every visual token learns the mean of what may be known of the text."""

    reads_text = True

    def __init__(self, *, dim: int):
        super().__init__()
        self.mix = nn.Linear(dim, dim)

    def forward(self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...] = ()) -> Fused:
        known = prompt_KP.unsqueeze(-1)
        mean = (text_KPD * known).sum(1) / known.sum(1).clamp(min=1)
        return Fused(tokens._replace(x_BSD=tokens.x_BSD + self.mix(mean).unsqueeze(1)))


class IgnoresTheMask(Mix):
    """Takes all the text that it is handed, whatever the mask says."""

    def forward(self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...] = ()) -> Fused:
        return Fused(tokens._replace(x_BSD=tokens.x_BSD + self.mix(text_KPD.sum(1)).unsqueeze(1)))


class Cheat(Mix):
    """Looks at the whole row, the answer included, on the way into the language model."""

    def watch(self, language: nn.Module) -> None:
        embed = language.embed

        def watched(ids_KS: Tensor) -> Tensor:
            self.seen = embed(ids_KS)
            return self.seen

        language.embed = watched

    def forward(self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor, layers: tuple[Tokens, ...] = ()) -> Fused:
        return Fused(tokens._replace(x_BSD=tokens.x_BSD + self.mix(self.seen.mean(1)).unsqueeze(1)))


def with_fusion(vlm: VLM, kind: type[Mix]) -> VLM:
    """The model with such a room in the place of its fusion."""
    torch.manual_seed(5)
    vlm.fusion = kind(dim=vlm.language.dim)
    nn.init.normal_(vlm.fusion.mix.weight, std=1.0)
    if isinstance(vlm.fusion, Cheat):
        vlm.fusion.watch(vlm.language)
    return vlm.eval()


class LowRank(AttachedAdapter):
    """W x + B A x beside the query projections of the rooms in ``parts`` (Hu et al. 2021)."""

    def __init__(
        self, *, rank: int = 2, parts: tuple[str, ...] = ("language",), names: list[str] | None = None, name: str = "a"
    ):
        super().__init__(names=names, name=name)
        self.rank, self.adapts = rank, frozenset(parts)

    def targets(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for path, module in model.named_modules():
            if path.split(".", 1)[0] in self.adapts and path.endswith("q_proj"):
                yield path, module

    def make(self, module: nn.Module) -> nn.Module:
        down = nn.Linear(module.in_features, self.rank, bias=False)
        up = nn.Linear(self.rank, module.out_features, bias=False)
        nn.init.zeros_(up.weight)
        return nn.Sequential(down, up)


def with_adapter(vlm: VLM, adapter: AttachedAdapter, loud: bool = True) -> VLM:
    """The model with such an adapter attached; ``loud``: whose weights are no longer zero."""
    vlm.adapter = adapter
    adapter.attach(vlm)
    if loud:
        torch.manual_seed(6)
        for parameter in adapter.parameters():
            nn.init.normal_(parameter, std=0.5)
    return vlm.eval()


class Classify(Head):
    """One of a few classes for every clip and question, from the states at the video's places: their mean over each
    frame, then over the frames."""

    def __init__(self, classes: int, *, text_dim: int):
        super().__init__()
        self.scores = nn.Linear(text_dim, classes)

    def forward(self, hidden_KLD: Tensor, sequence: Sequence) -> tuple[Tensor, Tensor]:
        """(logits of the rows [K, classes], logits of every frame [K, T, classes])."""
        tokens = sequence.tokens
        place = sequence.visual_place_KV.unsqueeze(-1).expand(-1, -1, hidden_KLD.shape[-1])
        of_video = hidden_KLD.gather(1, place) * tokens.mask_BS.unsqueeze(-1)
        frames = int(tokens.frame_BS.max()) + 1
        of_frame = F.one_hot(tokens.frame_BS, frames) * tokens.mask_BS.unsqueeze(-1)
        count = of_frame.sum(1).clamp(min=1).unsqueeze(-1)
        state_KTD = of_frame.to(of_video.dtype).transpose(1, 2) @ of_video / count
        return self.scores(of_video.sum(1) / tokens.mask_BS.sum(1, keepdim=True)), self.scores(state_KTD)

    def loss(self, output: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        want = torch.tensor([row["label"] for row in batch.rows])
        total = F.cross_entropy(output[0].float(), want, reduction="sum")
        return total, torch.tensor(len(want)), {"accuracy": (output[0].argmax(-1) == want).sum().float()}
