"""Next-token prediction, shared by alignment and instruction tuning."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hvlm.stage._base import Stage
from hvlm.types import Batch


class TextStage(Stage):
    """Cross-entropy of the text given the video, mean over the scored tokens of the whole batch."""

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logits, ids, *_ = self.model.targets(batch)
        total = F.cross_entropy(logits, ids, reduction="sum")
        hits = (logits.argmax(-1) == ids).sum().float()
        return total, ids.new_tensor(len(ids)), {"token_accuracy": hits}
