"""No adapter: the language model trains whole, or not at all (``stage.trainable``)."""

from __future__ import annotations

from torch import nn


class NoAdapter:
    """``apply(module)`` adds what trains inside a module; every base weight keeps its name. Here: nothing."""

    def apply(self, module: nn.Module) -> nn.Module:
        return module
