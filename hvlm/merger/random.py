"""Control: patches chosen by chance, the rest dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvlm.config.ranges import Seed, Share
from hvlm.merger._base import Choice, MergerRoom
from hvlm.merger._scores import View
from hvlm.merging import best_of_each, roots_or_dropped


class RandomMerge(MergerRoom):
    """An even share of every frame, drawn without replacement: anew for each batch in training, always the same places
    in evaluation. seed: of both; how many batches were drawn is kept with the weights, so that training resumes
    exactly. (Strong on video: UniPruneBench, Peng et al. 2025.)"""

    across = False
    drops = True
    draws: Tensor

    def __init__(self, keep: Share = 0.25, seed: Seed = 0, **room: Any):
        super().__init__(keep, **room)
        self.seed = seed
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))

    def choose(self, view: View) -> Choice:
        b, t, n = view.x_BTND.shape[:3]
        if self.training:
            self.draws += 1
            score = np.random.default_rng([self.seed, int(self.draws)]).random((b, t, n))
        else:  # row by row, so that a longer clip of the batch changes nothing
            score = np.broadcast_to(np.random.default_rng([self.seed, 0]).random((t, n)), (b, t, n)).copy()
        score_BTN = torch.from_numpy(score).to(view.x_BTND.device)
        return Choice(roots_or_dropped(best_of_each(score_BTN, view.even_BT())))
