"""No adapter: the language model trains whole, or not at all (``stage.trainable``)."""

from __future__ import annotations

from torch import nn

from hvlm.contracts import Adapter


class NoAdapter(Adapter):
    """Adds nothing to any room."""

    def attach(self, model: nn.Module) -> None:
        return
