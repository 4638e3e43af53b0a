"""Local, then global fusion: tokens and words attend to each other, then one state of each to the other's.

After the plan of HiViLT. What its formulas leave open is read so: each side is joined with what it attended to (so that
products are of equal lengths), everything pooled is masked, and the state of both reaches every visual token, so that
the language model hears of it.
"""

from __future__ import annotations

from hvlm.config.ranges import AnyFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability
from hvlm.fusion._hierarchical import HierarchicalFusion
from hvlm.fusion._pool import Pooling


class HiViLT(HierarchicalFusion):
    """layers: of local fusion. local_fusion, global_fusion: leave one of them out. pooling: of tokens and words, for
    global fusion. The rest: see ``FusingRoom``.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        layers: PositiveInt = 1,
        local_fusion: bool = True,
        global_fusion: bool = True,
        pooling: Pooling = "mean",
        text_layers: NonNegativeInt = 1,
        mlp_ratio: PositiveFloat = 1.0,
        gate: AnyFloat = 1.0,
        dropout: Probability = 0.0,
        write_text: bool = False,
    ):
        super().__init__(
            dim=dim, num_heads=num_heads, layers=layers, local_fusion=local_fusion, global_fusion=global_fusion,
            pooling=pooling, text_layers=text_layers, mlp_ratio=mlp_ratio, gate=gate, dropout=dropout,
            write_text=write_text,
        )  # fmt: skip
