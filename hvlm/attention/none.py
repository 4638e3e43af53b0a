"""No exchange between visual tokens: the control for every mixing room."""

from __future__ import annotations

from torch import nn

from hvlm.types import Tokens


class NoAttention(nn.Module):
    """Tokens -> (Tokens, None). ``readout=k`` hands on every k-th token, as it does in the rooms that mix."""

    def __init__(self, readout: int = 1):
        super().__init__()
        if readout < 1:
            raise ValueError(f"attention.readout={readout}: expected 1 (all tokens) or more (every k-th)")
        self.readout = readout

    def forward(self, tokens: Tokens) -> tuple[Tokens, None]:
        if self.readout > 1:
            tokens = tokens.each(slice(self.readout - 1, None, self.readout))
        return tokens, None
