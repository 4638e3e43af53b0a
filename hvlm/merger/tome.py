"""ToMe: the most similar patches merge (Bolya et al. 2023, "Token Merging: Your ViT But Faster")."""

from __future__ import annotations

import torch

from hvlm.merger._base import Choice, MergerRoom
from hvlm.merger._scores import View
from hvlm.merging import bipartite_down_to


class ToMe(MergerRoom):
    """Bipartite soft matching in rounds that at most halve the tokens, until the budget is met: over the whole clip, or
    with ``scope=frame`` in each frame, which then gets an even share. Similarity is the cosine of the encoder's
    features.

    O(S² D / 4) operations for S patches compared with each other, a third more for all further rounds together.
    """

    def choose(self, view: View) -> Choice:
        b, t, n, d = view.x_BTND.shape
        size = torch.ones(b, t * n, device=view.x_BTND.device)
        if not self.per_frame:
            return Choice(bipartite_down_to(view.x_BTND.flatten(1, 2), size, view.valid_BS, view.total_B))
        frames = view.mask_BT.flatten().unsqueeze(1).expand(-1, n)
        roots = bipartite_down_to(view.x_BTND.flatten(0, 1), size.view(b * t, n), frames, view.even_BT().flatten())
        return Choice((roots.view(b, t, n) + n * torch.arange(t, device=roots.device).view(1, t, 1)).flatten(1))
