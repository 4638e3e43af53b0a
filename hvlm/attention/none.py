"""No exchange between visual tokens: the control for every mixing room."""

from __future__ import annotations

from hvlm.attention._base import check_readout, read_out
from hvlm.config.ranges import PositiveInt
from hvlm.contracts import Attention
from hvlm.types import Tokens


class NoAttention(Attention):
    """Tokens -> (Tokens, None). ``readout=k`` hands on every k-th token, as it does in the rooms that mix."""

    causal, mixes = True, False

    def __init__(self, readout: PositiveInt = 1):
        super().__init__()
        self.readout = check_readout(readout)

    def forward(self, tokens: Tokens) -> tuple[Tokens, None]:
        return read_out(tokens, self.readout), None
