"""Visual tokens and words as one sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvlm.types import Tokens


class Joint(nn.Module):
    """[V; T] with an embedding of the modality, in units of each state's size, and their masks behind each other."""

    def __init__(self, dim: int):
        super().__init__()
        self.modality = nn.Parameter(torch.randn(2, dim) * 0.02)

    def forward(self, tokens: Tokens, text_KPD: Tensor, prompt_KP: Tensor) -> tuple[Tensor, Tensor]:
        both = []
        for x, kind in ((tokens.x_BSD, self.modality[0]), (text_KPD, self.modality[1])):
            size = x.detach().float().square().mean(-1, keepdim=True).sqrt().to(x.dtype)
            both.append(x + size * kind)
        return torch.cat(both, 1), torch.cat([tokens.mask_BS, prompt_KP], 1)
